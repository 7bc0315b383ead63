"""Stand-ins for objects that training programs pickle beside the weights, so that their code is never run.

`torch.load(weights_only=True)` refuses a file because of one numpy number among its metrics. The classes here replace the
classes often pickled there: they accept any arguments and state, keep nothing and call nothing, so that the weights can be
read while the classes named in the file are never imported. A class without a stand-in is refused as before.
"""

from __future__ import annotations

from typing import Any


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
