"""Reference statistics: accumulated, gathered, stored and read."""
