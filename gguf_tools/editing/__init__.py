"""Changing a GGUF without computing anything: its header, its tensors' names, and the files that it is split into."""
