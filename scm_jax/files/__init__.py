"""File formats and paths; nothing here knows the rest of the package."""
