"""tinyq: trained decoders into llama.cpp, with proof that they arrived intact."""

__version__ = "0.1.0"
