"""Locks, heartbeats and the state of each run of a sweep."""
