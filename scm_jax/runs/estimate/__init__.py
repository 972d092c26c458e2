"""Cost estimates of a config before it runs."""
