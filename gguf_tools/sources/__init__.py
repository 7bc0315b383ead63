"""Opening checkpoints, and restoring those saved again by other programs."""
