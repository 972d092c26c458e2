"""Readers of raw data: folders, archives, arrays, tfds and drawn images."""
