"""The one limit on waiting: it catches what hangs; a slow machine fails no test."""

HANG = 3600  # seconds
