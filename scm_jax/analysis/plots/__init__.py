"""Plots of tables, ablations and laws; matplotlib is imported when one is drawn."""
