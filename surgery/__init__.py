"""Layer surgery: recipes of operations (ops) on the list of layers of a model, a checkpoint or a GGUF file."""
