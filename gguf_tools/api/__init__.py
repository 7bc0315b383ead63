"""The public functions, one module each, behind `from gguf_tools import …` and the commands; `results` has their results."""
