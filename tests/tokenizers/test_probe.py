"""The comparison of two tokenizers by itself: what is compared, what is left out, and how a difference is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from gguf_tools.errors import TokenizerError
from gguf_tools.tokenizers.pretokenizers import Limit
from gguf_tools.tokenizers.probe import MAX_SPECIAL, MAX_TRIES, probe, probe_pieces
from gguf_tools.tokenizers.vocabulary import Tokenizer

SMALL = [chr(code) for code in range(128)]


@dataclass
class Characters:
    """A tokenizer whose tokens are the characters; `asked` are the texts that it was given."""

    nfc: bool = False
    limits: tuple[Limit, ...] = ()
    bytes_known: frozenset[int] = frozenset(range(256))
    probe_tokens: tuple[str, ...] = ()
    tokens: Sequence[str] = tuple(SMALL)
    path: Path = Path("file")
    pre: str = "default"
    asked: list[tuple[str, bool]] = field(default_factory=list)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        self.asked.append((text, special))
        return [*map(ord, text), *([1] if special else [])]


Encode = Callable[[str, bool], list[int]]


def alike(text: str, special: bool) -> list[int]:
    return [*map(ord, text), *([1] if special else [])]


def run(tokenizer: Characters, encode: Encode = alike, text: str | None = None) -> list[tuple[str, bool]]:
    probe(cast(Tokenizer, tokenizer), encode, text)
    return tokenizer.asked


def message(tokenizer: Characters, encode: Encode, text: str) -> str:
    with pytest.raises(TokenizerError) as error:
        run(tokenizer, encode, text)
    return str(error.value)


def test_what_is_compared() -> None:
    lines = [("ab\n", False), ("\n", False), ("c", False), ("ab", False), ("", False), ("ab\n\nc", False)]
    assert run(Characters(), text="ab\n\nc") == lines
    asked = run(Characters())
    pieces = probe_pieces()
    assert [text for text, _ in asked[: len(pieces)]] == pieces
    assert asked[-1] == ("".join(pieces), False)
    assert len(pieces) > 30


def test_what_is_left_out() -> None:
    limit = Limit("", lambda text: "b" in text)
    assert run(Characters(limits=(limit,)), text="ab\nc\n") == [("c\n", False), ("c", False), ("c\n", False)]
    unknown = Characters(bytes_known=frozenset(range(256)) - {0xC3})
    assert run(unknown, text="é\nc\n") == [("c\n", False), ("c", False), ("c\n", False)]
    # Together, two pieces may be what each is not; and one without its line end.
    across = Limit("", lambda text: "\nc" in text)
    assert run(Characters(limits=(across,)), text="ab\nc\n") == [
        ("ab\n", False),
        ("c\n", False),
        ("ab", False),
        ("c", False),
    ]
    ends = Limit("", lambda text: text == "ab")
    assert ("ab", False) not in run(Characters(limits=(ends,)), text="ab\nc\n")


def test_text_is_normalized_first() -> None:
    assert run(Characters(nfc=True), text="e\u0301")[0] == ("é", False)
    assert run(Characters(), text="e\u0301")[0] == ("e\u0301", False)
    # An added token that is not in NFC is plain text in a form that llama.cpp keeps.
    for nfc, marks in ((True, "xéy"), (False, "xe\u0301yxéy")):
        assert run(Characters(nfc=nfc, probe_tokens=("e\u0301", "é")), text="c")[2] == (marks, True)


def test_added_tokens_are_compared_both_ways() -> None:
    marks = ["x<a>yx<b>y", "\n<a>\n\n<b>\n"]
    asked = run(Characters(probe_tokens=("<a>", "<b>")), text="c")
    assert asked[2:] == [(text, special) for text in marks for special in (True, False)]
    limit = Limit("", lambda text: "<a>" in text)
    assert run(Characters(probe_tokens=("<a>", "<b>"), limits=(limit,)), text="c")[2:] == [
        (text, special) for text in ("x<b>y", "\n<b>\n") for special in (True, False)
    ]
    assert len(run(Characters(probe_tokens=("<a>",), limits=(limit,)), text="c")) == 2


def test_added_tokens_that_cannot_stand_together_are_compared_one_by_one() -> None:
    limit = Limit("", lambda text: "yx" in text or "\n<b>" in text)
    asked = run(Characters(probe_tokens=("<a>", "<b>"), limits=(limit,)), text="c")[2:]
    assert asked == [(text, special) for text in ("x<a>y", "x<b>y", "\n<a>\n") for special in (True, False)]


def test_how_many_added_tokens_are_compared() -> None:
    tokens = tuple(f"<{n}>" for n in range(MAX_SPECIAL + 1))
    text = run(Characters(probe_tokens=tokens), text="c")[2][0]
    assert MAX_SPECIAL == 256
    assert text.endswith("x<255>y")


def test_a_difference_in_control_tokens() -> None:
    said = message(
        Characters(probe_tokens=("<a>",)), lambda text, special: alike(text, special and "<a>" not in text), "c"
    )
    assert "llama.cpp tokenizes '<a>' (control tokens parsed) differently from token 3 on" in said


def other(rule: Callable[[str], bool]) -> Encode:
    """One token more where the rule holds."""
    return lambda text, special: [*map(ord, text), *([2] if rule(text) else [])]


@pytest.mark.parametrize(
    ("text", "rule", "shown"),
    [
        ("a harmless line and then 12 of them", "12", "12"),
        ("12", "1", "1"),
        ("12", "2", "2"),
        ("x" * 50 + "abc", "abc", "abc"),
        ("abc" + "x" * 50, "abc", "abc"),
        ("x" * 33 + "a" + "y" * 62, "a", "a"),
        ("q", "q", "q"),
        ("1234567", "234", "234"),
        ("12345678901", "3456789", "3456789"),
    ],
)
def test_the_shortest_text_that_differs_is_shown(text: str, rule: str, shown: str) -> None:
    said = message(Characters(), other(lambda given: rule in given), text)
    assert f"llama.cpp tokenizes {shown!r} differently from token {len(shown)} on" in said


def test_a_shorter_text_that_is_left_out_is_not_shown() -> None:
    limit = Limit("", lambda text: text in ("b", "ab", "bc"))
    assert "tokenizes 'abc' differently" in message(Characters(limits=(limit,)), other(lambda text: "b" in text), "abc")


def test_shortening_ends() -> None:
    """Where only one character can be cut off at a time, which is tried as often as is allowed."""
    lengths: list[int] = []
    shortest = [4096]

    def encode(text: str, special: bool) -> list[int]:
        lengths.append(len(text))
        shortest[0] = min(shortest[0], len(text)) if len(text) >= shortest[0] - 1 else shortest[0]
        return [*map(ord, text), *([2] if len(text) == shortest[0] else [])]

    message(Characters(), encode, "a" * 4096)
    assert MAX_TRIES == 200
    # The first finds the difference, the last explains it.
    assert len(lengths) - 2 == MAX_TRIES
    assert shortest[0] > 4096 - MAX_TRIES


@pytest.mark.parametrize(
    ("ours", "theirs", "shown"),
    [
        (
            [97, 98, 99],
            [97, 98, 100],
            "from token 2 on: it gives [… 98 'b', 100 'd'], the tokenizer [… 98 'b', 99 'c']",
        ),
        ([97], [98], "from token 0 on: it gives [98 'b'], the tokenizer [97 'a']"),
        ([97], [97, 98], "from token 1 on: it gives [97 'a', 98 'b'], the tokenizer [97 'a']"),
        ([97, 98], [97], "from token 1 on: it gives [97 'a'], the tokenizer [97 'a', 98 'b']"),
        ([97], [128], "it gives [128 (no token)], the tokenizer [97 'a']"),
        ([97], [-1], "it gives [-1 (no token)], the tokenizer [97 'a']"),
        ([97], [0], r"it gives [0 '\x00'], the tokenizer [97 'a']"),
        (
            [97] * 7,
            [98] * 6,
            "it gives [98 'b', 98 'b', 98 'b', 98 'b', 98 'b', 98 'b'], the tokenizer [97 'a', 97 'a', 97 'a', 97 'a', 97 'a', "
            "97 'a' …]",
        ),
    ],
)
def test_how_tokens_are_listed(ours: list[int], theirs: list[int], shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Characters()

    def encode(text: str, *, special: bool = False) -> Any:
        return ours

    monkeypatch.setattr(tokenizer, "encode", encode)
    said = message(tokenizer, lambda text, special: theirs, "z")
    assert said.startswith("file: with pre-tokenizer 'default', llama.cpp tokenizes 'z' differently ")
    assert said.endswith(shown)
