"""Surgery on a checkpoint's folder."""
