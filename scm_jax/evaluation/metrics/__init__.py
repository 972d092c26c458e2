"""Distances between sets of features or samples."""
