"""The commands ``scm ...`` and what only they need."""
