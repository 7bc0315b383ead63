"""Changes of inputs: of bytes, of text, and of JSON values, which keep the structure that a reader looks at first."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from random import Random
from typing import Any

Json = Any

NUMBERS: Sequence[Json] = (
    *(0, 1, -1, 2, 3, 4, 7, 8, 16, 31, 32, 63, 64, 127, 128, 255, 256, 1000, 65535, 65536),
    *(
        (1 << 31) - 1,
        1 << 31,
        -(1 << 31),
        (1 << 32) - 1,
        1 << 32,
        (1 << 53) + 1,
        (1 << 63) - 1,
        1 << 63,
        1 << 64,
        10**30,
        10**400,
    ),
    *(
        0.0,
        -0.0,
        0.5,
        1.0,
        1.5,
        -0.5,
        1e-5,
        1e-45,
        5e-324,
        1e38,
        3.5e38,
        1e308,
        float("nan"),
        float("inf"),
        float("-inf"),
    ),
)
TEXTS = (
    "",
    " ",
    "0",
    "1",
    "-1",
    "null",
    "a",
    "ab",
    "\0",
    "\n",
    "\ud800",
    "é",
    "▁",
    "💥",
    "../x",
    "/",
    ".",
    "a" * 70,
    "x" * 3000,
)
VALUES: Sequence[Json] = (
    None,
    True,
    False,
    *NUMBERS,
    *TEXTS,
    [],
    {},
    [[]],
    [None],
    [0],
    [""],
    {"": None},
    {"a": {}},
    [{}],
)
INTERESTING = (0, 1, 2, 3, 4, 7, 8, 16, 32, 64, 127, 128, 255, 256, 1023, 1 << 15, 1 << 16, 1 << 31, 1 << 32, 1 << 63)
MOST_NODES = 400


def mutate_bytes(data: bytes, rng: Random, words: Sequence[bytes] = ()) -> bytes:
    """`data` with one to four changes: bits, bytes, little-endian numbers, pieces removed, repeated, moved, and `words`."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        choice = rng.randrange(8)
        if choice == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif choice == 1 and at < len(out):
            out[at] = rng.randrange(256)
        elif choice == 2:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(INTERESTING) * rng.choice((1, 1, -1)) + rng.choice((0, 0, 1, -1))
            out[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
        elif choice == 3:
            del out[at : at + rng.choice((1, 2, 4, 8, 30, len(out)))]
        elif choice == 4:
            size = rng.choice((1, 4, 8, 30))
            other = rng.randrange(len(out) + 1)
            out[at:at] = out[other : other + size]
        elif choice == 5 and words:
            out[at:at] = rng.choice(words)
        elif choice == 6 and words:
            word = rng.choice(words)
            out[at : at + len(word)] = word
        else:
            out[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 1, 2, 8))))
    return bytes(out)


def json_mutator(keys: Sequence[str] = (), values: Sequence[Json] = ()) -> Callable[[bytes, Random], bytes]:
    """A mutator of JSON documents that knows names of keys and values that a reader asks for.

    What is not JSON is changed as bytes.
    """

    every = (*VALUES, *values)

    def mutate(data: bytes, rng: Random) -> bytes:
        try:
            document = json.loads(data)
            for _ in range(rng.choice((1, 1, 1, 2, 4))):
                document = mutate_json(document, rng, keys, every, values)
            return json.dumps(document).encode()
        except (ValueError, RecursionError):
            return mutate_bytes(data, rng)

    return mutate


def mutate_json(
    document: Json, rng: Random, keys: Sequence[str], values: Sequence[Json] = VALUES, own: Sequence[Json] = ()
) -> Json:
    """`document` with one value or key changed in place; the document itself where that is the one chosen.

    Half of the values are taken from `own`, if there are any.
    """
    nodes = _nodes(document)
    holder, key = rng.choice(nodes) if nodes else (None, None)
    pool = own if own and rng.random() < 0.5 else values

    def drawn() -> Json:
        value = rng.choice(pool)
        return deepcopy(value) if isinstance(value, dict | list) else value

    if holder is None:
        return drawn()
    choice = rng.randrange(10)
    if choice < 4:
        holder[key] = drawn()
    elif choice == 4:
        del holder[key]
    elif choice == 5:
        holder[key] = _tweaked(holder[key], rng)
    elif choice == 6:
        other, source = rng.choice(nodes)
        holder[key] = deepcopy(other[source])
    elif choice == 7:
        holder[key] = rng.choice(
            ([holder[key]], {"a": holder[key]}, [holder[key], deepcopy(holder[key])], str(holder[key]))
        )
    elif isinstance(holder, dict):
        name = rng.choice(keys) if keys and rng.random() < 0.8 else rng.choice(TEXTS)
        holder[name] = holder.pop(key) if choice == 8 else drawn()
    else:
        holder.insert(rng.randrange(len(holder) + 1), drawn() if choice == 8 else deepcopy(holder[key]))
    return document


def _nodes(document: Json) -> list[tuple[Any, Any]]:
    """(holder, key or index) of the values in a document, of at most MOST_NODES."""
    found: list[tuple[Any, Any]] = []
    left = [document]
    while left and len(found) < MOST_NODES:
        holder = left.pop()
        items = holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()
        for key, value in items:
            found.append((holder, key))
            if isinstance(value, dict | list):
                left.append(value)
    return found


def _tweaked(value: Json, rng: Random) -> Json:
    """A value that is near `value`."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return rng.choice(
            (
                value + 1,
                value - 1,
                value * 2,
                value // 2,
                -value,
                value * 1000,
                float(value) if abs(value) < 1e300 else 0,
            )
        )
    if isinstance(value, float):
        return rng.choice((value * 2, value / 2, -value, value + 1, 0.0))
    if isinstance(value, str):
        at = rng.randrange(len(value) + 1)
        return rng.choice(
            (value[:at], value[at:], value[:at] + rng.choice(TEXTS) + value[at:], value * 2, value.upper())
        )
    if isinstance(value, list):
        return rng.choice((value[::-1], [*value, *deepcopy(value)], value[1:], value[:-1]))
    return {str(key): other for key, other in reversed(value.items())}
