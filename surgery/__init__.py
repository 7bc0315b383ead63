"""Layer surgery: recipes of ops on a list of layers, applied to models, checkpoints and GGUF files."""
