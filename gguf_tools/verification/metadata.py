"""Compares a file's metadata with the metadata that its source implies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from gguf.constants import TokenType

from gguf_tools.formats.gguf.header import GGUFHeader, Metadata
from gguf_tools.text import one_line, shortened
from gguf_tools.tokenizers.pretokenizers import TABLE, canonical
from gguf_tools.tokenizers.special import FORCED_CONTROL, FORCED_TEXT

MetadataVerdict = Literal["identical", "different", "unknown"]
TOKENS, TYPES, SCORES, PRE = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "scores", "pre"))
ADD_EOS = "tokenizer.ggml.add_eos_token"
TEMPLATE = "tokenizer.chat_template"
OPTIONAL = ("eot", "eom", "unknown", "seperator", "padding", "mask")
"""Special tokens whose ids llama.cpp finds by their text or does not need."""
MAY_BE_ABSENT = frozenset(
    (
        *(f"tokenizer.ggml.{role}_token_id" for role in OPTIONAL),
        *(f"tokenizer.ggml.{key}" for key in ("add_bos_token", "add_eos_token", "add_space_prefix")),
        "tokenizer.chat_templates",
    )
)
SHOWN = 60


@dataclass(frozen=True, kw_only=True)
class MetadataFinding:
    """The verdict on one key, with the file's value and the expected one as text ("" if there is none)."""

    key: str
    verdict: MetadataVerdict
    found: str
    expected: str

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return {"key": self.key, "verdict": self.verdict, "found": self.found, "expected": self.expected}


def compare_metadata(header: GGUFHeader, expected: Metadata, stated: Metadata) -> list[MetadataFinding]:
    """Findings on every key that the source implies, then on the file's other architecture and tokenizer keys.

    `stated` has the file's values including llama.cpp's defaults, for keys that the file omits.
    """
    findings = []
    mine = {key: field.value for key, field in header.metadata.items()}
    for key, field in expected.items():
        there = mine.get(key)
        if there is None and key in stated:
            there = stated[key].value
        if there is None and not stated and key.startswith(f"{header.get('general.architecture')}."):
            # llama.cpp's default for this key is not known here, so it cannot be compared.
            findings.append(MetadataFinding(key=key, verdict="unknown", found="", expected=value_text(field.value)))
            continue
        findings.append(_finding(key, there, field.value, mine))
    findings = [_beyond(finding, mine, expected) for finding in findings]
    prefixes = (f"{header.get('general.architecture')}.", "tokenizer.")
    for key, value in mine.items():
        if key.startswith(prefixes) and key not in expected:
            # A chat template that the source does not have counts as different: it changes the model's prompts.
            brought = key.startswith(TEMPLATE) and any(other.startswith("tokenizer.") for other in expected)
            findings.append(
                MetadataFinding(
                    key=key, verdict="different" if brought else "unknown", found=value_text(value), expected=""
                )
            )
    return findings


def _finding(key: str, found: Any, expected: Any, mine: Mapping[str, Any]) -> MetadataFinding:
    """The verdict on one key with the value `found` in the file (None if absent); `mine` has all of the file's values."""
    if found is None and key == ADD_EOS and not expected:
        found = False  # llama.cpp's default
    if found is None:
        verdict: MetadataVerdict = "unknown" if key in MAY_BE_ABSENT else "different"
        return MetadataFinding(key=key, verdict=verdict, found="", expected=value_text(expected))
    if _agree(key, found, expected, mine):
        return MetadataFinding(key=key, verdict="identical", found=value_text(found), expected=value_text(expected))
    left, right = first_difference(found, expected)
    if key == PRE and found not in {row.name for row in TABLE}:
        return MetadataFinding(key=key, verdict="unknown", found=left, expected=right)
    return MetadataFinding(key=key, verdict="different", found=left, expected=right)


def _beyond(finding: MetadataFinding, mine: Mapping[str, Any], expected: Metadata) -> MetadataFinding:
    """The finding as "unknown" instead of "different" if only rows without a token in the source's tokenizer differ."""
    if finding.verdict != "different" or finding.key not in (TOKENS, TYPES) or TYPES not in expected:
        return finding
    kinds, found, wanted = expected[TYPES].value, mine.get(finding.key), expected[finding.key].value
    if not isinstance(found, tuple) or len(found) != len(kinds) or len(wanted) != len(kinds):
        return finding
    rows = [n for n, kind in enumerate(kinds) if kind != TokenType.UNUSED]
    tokens = {TOKENS: tuple(expected[TOKENS].value[n] for n in rows)}
    same = _agree(finding.key, tuple(found[n] for n in rows), tuple(wanted[n] for n in rows), tokens)
    return replace(finding, verdict="unknown") if same else finding


def _agree(key: str, found: Any, expected: Any, mine: Mapping[str, Any]) -> bool:
    if key == PRE:
        return found == expected or _splits_alike(found, expected)
    if key == TYPES:
        return _types_agree(found, expected, mine.get(TOKENS))
    if key == SCORES:
        return same_value(found, expected) or _same_order(found, expected)
    return same_value(found, expected)


def same_value(a: Any, b: Any) -> bool:
    """Whether two values are equal to llama.cpp: numbers as 32-bit floats, an array of equal numbers like one number."""
    if isinstance(a, tuple) != isinstance(b, tuple):
        many, one = (a, b) if isinstance(a, tuple) else (b, a)
        return bool(many) and all(same_value(item, one) for item in many)
    if isinstance(a, tuple):
        return a == b or (len(a) == len(b) and all(map(same_value, a, b)))
    if isinstance(a, float) or isinstance(b, float):
        numbers = all(isinstance(value, int | float) for value in (a, b))
        with np.errstate(over="ignore"):
            return numbers and bool(np.float32(a) == np.float32(b))
    return bool(a == b)


def _splits_alike(a: Any, b: Any) -> bool:
    """Whether two names of llama.cpp's pre-tokenizers mean the same pre-tokenizer."""
    ways = [
        {(tuple(map(canonical, row.steps)), row.ignore_merges) for row in TABLE if row.name == name} for name in (a, b)
    ]
    return bool(ways[0] & ways[1])


def _types_agree(found: Any, expected: Any, tokens: Any) -> bool:
    """Whether token types are equal, except for tokens whose type llama.cpp sets by their text."""
    if not isinstance(found, tuple) or len(found) != len(expected):
        return False
    if not isinstance(tokens, tuple) or len(tokens) != len(found):
        return bool(found == expected)
    decided = FORCED_CONTROL | FORCED_TEXT
    return all(a == b or token in decided for a, b, token in zip(found, expected, tokens, strict=True))


def _same_order(found: Any, expected: Any) -> bool:
    """Whether scores order the tokens alike; they only determine the order of merges."""
    if not isinstance(found, tuple) or len(found) != len(expected):
        return False
    mine, theirs = (np.unique(np.asarray(scores, np.float32), return_inverse=True)[1] for scores in (found, expected))
    return bool(np.array_equal(mine, theirs))


def first_difference(found: Any, expected: Any) -> tuple[str, str]:
    """Both values as text; for arrays the first item that differs, for long texts the part from the first difference on."""
    if isinstance(found, tuple) and isinstance(expected, tuple):
        return _items(found, expected)
    if isinstance(found, str) and isinstance(expected, str):
        at = next((n for n, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), None)
        at = min(len(found), len(expected)) if at is None else at
        start = max(0, at - 20) if max(len(found), len(expected)) > SHOWN else 0
        return _cut(found, start), _cut(expected, start)
    return value_text(found), value_text(expected)


def _items(found: Sequence[Any], expected: Sequence[Any]) -> tuple[str, str]:
    pairs = zip(found, expected, strict=False)
    at = next((n for n, (a, b) in enumerate(pairs) if not same_value(a, b)), None)
    if at is None or len(found) != len(expected):
        return f"{len(found)} items", f"{len(expected)} items"
    if len(found) <= 16:
        return value_text(found), value_text(expected)
    return f"item {at}: {value_text(found[at])}", f"item {at}: {value_text(expected[at])}"


def _cut(text: str, start: int) -> str:
    return value_text(("…" if start else "") + text[start : start + 2 * SHOWN])


def value_text(value: Any) -> str:
    """A metadata value for a report, shortened."""
    if isinstance(value, tuple):
        items = ", ".join(value_text(item) for item in value[:16])
        return shortened(f"[{items}]" if len(value) <= 16 else f"{len(value)} items", 2 * SHOWN)
    if isinstance(value, float):
        return f"{value:.7g}"
    if isinstance(value, bool):
        return str(value).lower()
    return shortened(one_line(str(value)), SHOWN)
