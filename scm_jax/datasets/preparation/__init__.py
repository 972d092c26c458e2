"""From raw files to prepared datasets on disk."""
