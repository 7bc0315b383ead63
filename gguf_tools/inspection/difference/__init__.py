"""What differs between two GGUF files, or between a GGUF and its source."""
