"""Checks that llama.cpp tokenizes with a file's vocabulary as the source's tokenizer does."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.tokenizers.probe import probe
from gguf_tools.tokenizers.vocabulary import Tokenizer


def prove_vocabulary(path: Path, tokenizer: Tokenizer) -> None:
    """Encode the probe text with llama.cpp, which loads only the vocabulary of `path`, and with the source's tokenizer.

    Raises TokenizerError with the first difference, LlamaError if llama.cpp refuses the file.
    """
    with Runtime(path, RuntimeOptions(vocab_only=True)) as runtime:
        probe(tokenizer, lambda text, special: runtime.tokenize(text, parse_special=special))
