"""Pickles of plain values: read as Python's own pickle module reads them, and nothing in them runs."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.inert import PlainState
from gguf_tools.formats.plain_pickle import MOST_BYTES, read_plain_pickle

PATH = Path("meta.pkl")
ATOM = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=9)
VALUE = st.recursive(
    ATOM, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner)
)


@given(value=VALUE, protocol=st.integers(3, 5))
def test_reads_what_was_written(value: Any, protocol: int) -> None:
    assert read_plain_pickle(pickle.dumps(value, protocol), PATH) == value


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_old_protocols(protocol: int) -> None:
    value = {"itos": {0: "a", 1: "é", 70000: "中"}, "stoi": {"a": -1}, "more": [1.5, True, None, (1, 2)]}
    assert read_plain_pickle(pickle.dumps(value, protocol), PATH) == value


class Own:
    def __init__(self) -> None:
        self.ranks = {b"a": 1}


class Calling:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def test_an_object_of_a_named_class_is_its_state() -> None:
    read = read_plain_pickle(pickle.dumps(Own()), PATH, {f"{__name__}.Own"})
    assert isinstance(read, PlainState)
    assert read.values == {"ranks": {b"a": 1}}


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_runs(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "ran"
    for value in (Calling(mark), {"itos": Calling(mark)}, [Own()], OrderedDict(a=1), Path("x")):
        with pytest.raises(CheckpointError, match=r"meta\.pkl: is not a pickle of plain values") as error:
            read_plain_pickle(pickle.dumps(value, protocol), PATH)
        assert "\n" not in str(error.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x80\x04", b"not a pickle", b"(.", b"}b.", b"N\x8c\x01aNsb.", b"]N\x81.", b"P0\n.", b"\x82\x01.", b"h\x05.",
        b"\x80\x04\x96" + b"\xff" * 8 + b".", b"Nr\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8, b"}]Ns.",
        b"\x8c\x02os\x8c\x06system\x93.", b"\x8c\x01aN\x81.",
    ],
)  # fmt: skip
def test_broken_ones(data: bytes) -> None:
    with pytest.raises(CheckpointError) as error:
        read_plain_pickle(data, PATH)
    assert "\n" not in str(error.value)


def test_a_large_index_of_the_memo_allocates_nothing() -> None:
    assert read_plain_pickle(b"Nr\xff\xff\xff\xff.", PATH) is None


def test_a_large_file() -> None:
    with pytest.raises(CheckpointError, match="16,777,216 at most"):
        read_plain_pickle(b"N" * (MOST_BYTES + 1), PATH)
