"""Scaling laws: fits, intervals, isoFLOP valleys, extrapolation, frontiers."""
