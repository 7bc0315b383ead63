"""The functions behind `from gguf_tools import …` and behind the commands, one module each; `results` has what they return."""
