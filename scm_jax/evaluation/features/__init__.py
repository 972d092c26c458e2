"""Feature networks and the loading of their weights."""
