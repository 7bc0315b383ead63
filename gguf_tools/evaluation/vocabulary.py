"""Proof that a file's vocabulary tokenizes as the source's tokenizer does, by llama.cpp itself."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.tokenizers.probe import probe
from gguf_tools.tokenizers.vocabulary import Tokenizer


def prove_vocabulary(path: Path, tokenizer: Tokenizer) -> None:
    """Encode the probe text by llama.cpp, with only the vocabulary of `path` loaded, and by the source's tokenizer.

    Raises TokenizerError with the first difference, LlamaError where llama.cpp refuses the file.
    """
    with Runtime(path, RuntimeOptions(vocab_only=True)) as runtime:
        probe(tokenizer, lambda text, special: runtime.tokenize(text, parse_special=special))
