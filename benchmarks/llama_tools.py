"""llama.cpp's own converter and quantizer, each run as a child process: `python benchmarks/llama_tools.py STEP …`.

The converter is the one in llama-cpp-python's sdist, unchanged, with two answers given to it from outside, because it refuses
every tokenizer that it does not know by the hash of a test text, and imports sentencepiece even where that is not used:
`get_vocab_base_pre` answers "qwen2", and `_create_vocab_sentencepiece` that there is no tokenizer.model. Neither touches the
tensors.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import sys
from pathlib import Path


def no_sentencepiece(model: object) -> None:
    """What the converter would find by itself if the sentencepiece package were installed."""
    raise FileNotFoundError("tokenizer.model")


def convert(llama: Path, source: Path, out: Path) -> None:
    """convert_hf_to_gguf.py of the source tree `llama`: a checkpoint to BF16, as it is stored."""
    sys.path.insert(0, str(llama))
    sys.path.insert(1, str(llama / "gguf-py"))
    base = __import__("conversion.base", fromlist=["TextModel"])
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
    base.TextModel._create_vocab_sentencepiece = no_sentencepiece
    sys.argv = ["convert_hf_to_gguf.py", str(source), "--outfile", str(out), "--outtype", "bf16"]
    runpy.run_path(str(llama / "convert_hf_to_gguf.py"), run_name="__main__")


def quantize(source: Path, out: Path, file_type: int, threads: int) -> None:
    """`llama_model_quantize`, which is what the tool llama-quantize calls."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = threads, file_type
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params)):
        raise SystemExit("llama_model_quantize failed")


if __name__ == "__main__":
    step, *rest = sys.argv[1:]
    if step == "convert":
        convert(Path(rest[0]), Path(rest[1]), Path(rest[2]))
    else:
        quantize(Path(rest[0]), Path(rest[1]), int(rest[2]), int(rest[3]))
