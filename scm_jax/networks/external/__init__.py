"""Weights of other code bases, read and written without running any of their code."""
