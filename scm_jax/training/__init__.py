"""The training step, its state, and everything the host does around it."""
