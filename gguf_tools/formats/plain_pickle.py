"""Reads pickles of plain values: texts, bytes, numbers, lists, tuples and dicts, and objects of named classes as data.

Nothing is imported and nothing is called: the opcodes that call functions (REDUCE, INST, OBJ …) are not among those read, and
a class is an `inert.PlainState`, which keeps the state of the object. Source: CPython, `Lib/pickletools.py` (opcodes).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, ClassVar

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.inert import PlainState, plain_class
from gguf_tools.text import shortened

MOST_BYTES = 16 << 20
"""Bytes of a file, of which known ones have 2 million."""
_OPCODES = (
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1",
    "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "EMPTY_LIST", "LIST",
    "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS",
    "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "NEWOBJ", "BUILD",
)  # fmt: skip
ALLOWED = frozenset(getattr(pickle, name)[0] for name in _OPCODES)


class _Reader(pickle._Unpickler):
    """Python's own unpickler with the opcodes of plain values alone. (The one in C allocates what a memo index claims.)"""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code: function for code, function in pickle._Unpickler.dispatch.items() if code in ALLOWED
    }

    def __init__(self, data: bytes, classes: Collection[str]) -> None:
        super().__init__(io.BytesIO(data))
        self.classes = classes

    def find_class(self, module: str, name: str) -> type[PlainState]:
        """A stand-in for a class that may occur. Raises UnpicklingError for any other."""
        full = f"{module}.{name}"
        found = plain_class(full) if full in self.classes else None
        if found is None:
            raise pickle.UnpicklingError(f"it refers to {full}")
        return found


def read_plain_pickle(data: bytes, path: Path, classes: Collection[str] = ()) -> Any:
    """The value that `data` describes, where an object of one of the `classes` (full names) is a `PlainState`.

    Raises CheckpointError for a file that is broken, larger than MOST_BYTES, or that refers to anything else.
    """
    if len(data) > MOST_BYTES:
        raise CheckpointError(
            f"{path}: has {len(data):,} bytes; expected {MOST_BYTES:,} at most for a tokenizer's pickle"
        )
    try:
        return _Reader(data, classes).load()
    except MemoryError:
        raise
    except Exception as error:
        # Broken pickles raise errors of many classes: KeyError for an opcode, IndexError for an empty stack …
        why = f"opcode {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise CheckpointError(
            f"{path}: is not a pickle of plain values ({shortened(' '.join(why.split()), 120)}); tinyq does not run pickles, "
            "write the tokenizer as tokenizer.json"
        ) from error
