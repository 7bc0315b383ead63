"""Stand-ins for objects that training programs pickle beside the weights, so that their code is never run.

`torch.load(weights_only=True)` refuses a file because of one numpy number among its metrics. The classes here replace the
classes often pickled there: they accept any arguments and state, keep nothing and call nothing, so that the weights can be
read while the classes named in the file are never imported.

Configs are often objects of a class of the program's own, such as a dataclass. `plain_class` makes a stand-in for one, which
keeps the state that was pickled, as data. Classes and functions of the standard library, torch and numpy have those listed here
alone; others are refused.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from typing import Any

KNOWN = sys.stdlib_module_names | {"torch", "numpy"}
"""Packages whose classes have no other stand-in than those of `STAND_INS`."""


class NotLoaded:
    """Replaces an object whose class is not imported; its arguments and state are dropped."""

    def __new__(cls, *_args: Any, **_named: Any) -> NotLoaded:
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_named: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


class PlainDict:
    """Replaces subclasses of dict by a plain dict with the same entries."""

    def __new__(cls, *_args: Any, **_named: Any) -> dict[Any, Any]:  # type: ignore[misc]
        return {}


class PlainState:
    """Replaces an object whose class is not imported; `values` are its attributes as they were pickled.

    Raises UnpicklingError for an object that is made by a call with arguments, which it does not know the meaning of.
    """

    pickled_as = ""

    def __new__(cls, *args: Any, **named: Any) -> PlainState:
        if args or named:
            raise pickle.UnpicklingError(f"GLOBAL {cls.pickled_as} is called with arguments")
        return super().__new__(cls)

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)  # a class with slots has a pair
        self.values = {key: value for part in parts if isinstance(part, Mapping) for key, value in part.items()}


def plain_class(name: str) -> type[PlainState] | None:
    """A stand-in for the class that a pickle refers to by this full name, or None if its package is one of `KNOWN`."""
    module, _, attribute = name.rpartition(".")
    if not module or module.partition(".")[0] in KNOWN:
        return None
    return type(attribute, (PlainState,), {"pickled_as": name})


_NUMBERS = (
    *("bool_", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "longdouble", "complex64", "complex128", "str_", "bytes_"),
)
_NUMPY = ("ndarray", "dtype", *_NUMBERS)
_NUMPY_FUNCTIONS = ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
_OTHERS = (
    *("argparse.Namespace", "types.SimpleNamespace", "decimal.Decimal", "uuid.UUID", "_io.BytesIO", "_io.StringIO"),
    *("datetime.datetime", "datetime.date", "datetime.time", "datetime.timedelta", "datetime.timezone"),
    *(f"builtins.{name}" for name in ("int", "float", "bool", "str", "list", "tuple", "dict", "slice", "range")),
)
_DICTS = (
    "collections.defaultdict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
STAND_INS: tuple[tuple[type, str], ...] = (
    *((NotLoaded, f"numpy.{name}") for name in _NUMPY),
    *((NotLoaded, f"numpy.{core}.{name}") for core in ("core", "_core") for name in _NUMPY_FUNCTIONS),
    *((NotLoaded, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in _PATHS),
    *((NotLoaded, name) for name in _OTHERS),
    *((PlainDict, name) for name in _DICTS),
)
"""Pairs (replacement class, full name in the pickle), as `torch.serialization.safe_globals` takes them."""
