"""File formats: safetensors, torch state dicts, GGUF; and atomic output, which leaves a complete file or none."""
