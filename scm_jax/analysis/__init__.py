"""From finished runs to tables, laws and figures; nothing here imports jax."""
