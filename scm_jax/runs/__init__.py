"""One run: its directory, its objects, and what can be done with it."""
