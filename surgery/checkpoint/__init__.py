"""Layer surgery on a checkpoint's folder."""
