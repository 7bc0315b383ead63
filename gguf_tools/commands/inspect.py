"""`tinyq inspect`: what a checkpoint or a GGUF is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_tools.commands.common import json_option, write_json
from gguf_tools.text import human_bytes, human_count, shortened, table

if TYPE_CHECKING:
    from gguf_tools.inspection.report import Inspection

LINE = 96
"""Longest value shown of a provenance key."""


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def inspect_command(path: Path, json_path: str | None) -> None:
    """Show what PATH is, a checkpoint or a GGUF: layers, sizes, types, tokenizer, provenance, and how it would convert.

    No weights are read.
    """
    from gguf_tools.inspection.report import inspect

    found = inspect(path)
    write_json(found.as_dict(), json_path)
    if json_path != "-":
        click.echo(text_of(found))


def text_of(found: Inspection) -> str:
    """The report as aligned lines and a table of types."""
    lines = [("path", found.path)]
    if found.kind == "gguf":
        lines.append(("file", f"GGUF, architecture {found.architecture or 'unknown'}"))
    else:
        lines.append(("family", found.family or "unknown"))
    active = found.active_parameters
    routed = f", {human_count(active)} active" if active not in (None, found.parameters) else ""
    lines.append(("weights", f"{human_count(found.parameters)} parameters{routed}"))
    if found.layers is not None:
        lines.append(("layers", f"{found.layers}{_pattern(found.pattern)}"))
    sizes = {"hidden": found.hidden, "context": found.context}
    lines += [(key, str(value)) for key, value in sizes.items() if value is not None]
    lines += list(found.details.items())
    lines += [("tokenizer", text) for text in _vocabulary(found)]
    if found.target:
        lines += _target(found)
    lines += [(key, _short(value)) for key, value in found.provenance.items()]
    lines += [("note", note) for note in found.notes]
    lines += [("problem", problem) for problem in found.problems]
    width = max(len(key) for key, _ in lines)
    listed = "\n".join(f"{key.ljust(width)}  {value}" for key, value in lines)
    rows = [(share.type, str(share.tensors), f"{share.weights:,}", human_bytes(share.bytes)) for share in found.types]
    total = f"{found.bits_per_weight:.2f} bits per weight, {human_bytes(found.bytes)}"
    return f"{listed}\n\n{table(('type', 'tensors', 'weights', 'bytes'), rows)}\n{total}"


def _pattern(pattern: str | None) -> str:
    if not pattern:
        return ""
    kinds = {"a": "A attention", "d": "D Gated DeltaNet"}
    said = [text for letter, text in kinds.items() if letter in pattern.lower()]
    if pattern != pattern.upper():
        said.append("lower case dense" if pattern != pattern.lower() else "all dense")
    return f": {pattern} ({', '.join(said)})"


def _vocabulary(found: Inspection) -> list[str]:
    words = found.vocabulary
    if words is None:
        return []
    ends = ", ".join(
        f"{name} {number}" for name, number in (("BOS", words.bos), ("EOS", words.eos)) if number is not None
    )
    parts = [f"{words.size:,} tokens", words.model, *([f"pre-tokenizer {words.pre}"] if words.pre else []), ends]
    parts += ["BOS is prepended"] if words.add_bos else []
    parts.append("chat template" if words.chat_template else "no chat template")
    return [", ".join(part for part in parts if part)]


def _target(found: Inspection) -> list[tuple[str, str]]:
    target = found.target or {}
    lines = [("target", str(target["name"]))]
    lines += [("rewrite", name) for name in target["rewrites"]]
    if target["extra_parameters"]:
        cache = f", {target['extra_cache']} numbers a token more in the cache" if target["extra_cache"] else ""
        lines.append(("cost", f"{human_count(target['extra_parameters'])} parameters more{cache}"))
    return lines


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return shortened(text, LINE)
