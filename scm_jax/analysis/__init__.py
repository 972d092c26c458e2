"""From finished runs to tables, laws and figures.

It reads run directories and never runs anything; nothing here imports jax.
"""
