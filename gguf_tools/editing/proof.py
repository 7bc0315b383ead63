"""Whether llama.cpp loads a model after an edit, found out before any file is changed.

llama.cpp is given stand-ins of the files, beside the output: the new headers, and holes instead of the tensors' data. It checks
vocabulary, hyperparameters, and each tensor's name, type and shape as for a model that is run, and loads no weights (`no_alloc`);
so this takes as long for a model of 100 GB as for a small one. Of a file without tensors the vocabulary is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gguf_tools.editing.copies import CopiedFile, copied_file, held_tensors
from gguf_tools.editing.plan import EditPlan
from gguf_tools.errors import LlamaError, OutputError, UnsupportedError
from gguf_tools.formats.gguf.header import pack_header
from gguf_tools.formats.gguf.split import part_path
from gguf_tools.formats.temporary import scratch_folder
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.text import shortened
from quant.installed import require_llama_cpp

NAME = "model.gguf"
CHECKED = RuntimeOptions(no_alloc=True, threads=1)


def prove_loads(plan: EditPlan, beside: Path, *, demanded: bool = False) -> str:
    """What was found, in a sentence; the stand-ins lie in the folder of the output `beside`, and are removed.

    Raises UnsupportedError if llama.cpp loads the files as they are, but not after the edit. What keeps that from being tried is
    in the sentence, but with `demanded` an error: LlamaError without llama-cpp-python, OutputError if no stand-ins can be
    made, UnsupportedError for a file that llama.cpp does not load.
    """
    if plan.loads_alike:
        return "llama.cpp reads none of what changes when it loads the model"
    try:
        require_llama_cpp("prove that the file still loads")
        problem = load_problem(plan.files, beside)
    except (LlamaError, OutputError) as error:
        if demanded:
            raise
        return f"not tried: {error}"
    if problem is None:
        return "llama.cpp loads it after the edit (vocabulary, hyperparameters, all tensors' names and shapes)"
    before = load_problem(
        [copied_file(dict(part.metadata), held_tensors([part]), part.alignment) for part in plan.parts], beside
    )
    if before is None:
        raise UnsupportedError(
            f"{plan.path}: llama.cpp loads it as it is, but not after this edit ({problem}); nothing was written; correct the "
            "edit, or write it all the same with --no-prove"
        )
    if demanded:
        raise UnsupportedError(f"{plan.path}: llama.cpp does not load it as it is ({before}); give --no-prove")
    return f"llama.cpp does not load it, neither before nor after the edit ({problem})"


def load_problem(files: Sequence[CopiedFile], beside: Path) -> str | None:
    """Why llama.cpp does not load files with these headers, or None if it does.

    Raises OutputError if no stand-ins can be made in the folder of `beside`.
    """
    with scratch_folder(beside) as folder:
        count = len(files)
        paths = [folder / NAME] if count == 1 else [part_path(folder / NAME, n, count) for n in range(count)]
        for path, file in zip(paths, files, strict=True):
            _write_stand_in(path, file, beside)
        try:
            with Runtime(paths[0], replace(CHECKED, vocab_only=not any(file.tensors for file in files))):
                return None
        except LlamaError as error:
            return shortened(str(error).replace(f"{paths[0]}: ", "").replace(str(paths[0]), NAME), 300)


def _write_stand_in(path: Path, file: CopiedFile, beside: Path) -> None:
    """A file with this header and a hole for its data. Raises OutputError, which names the output `beside`."""
    header = pack_header(file.metadata, file.layout.entries, file.layout.alignment)
    try:
        with path.open("wb") as stream:
            stream.write(header)
            stream.truncate(len(header) + file.layout.data_bytes)
    except OSError as error:
        raise OutputError(
            f"{beside}: the edit cannot be tried in llama.cpp: no file can be made beside it ({error.strerror}); "
            "free some space, or give --no-prove"
        ) from error
