"""Run directories as tables: runs, metrics and results."""
