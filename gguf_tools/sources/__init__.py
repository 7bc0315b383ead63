"""What can be opened as a checkpoint."""
