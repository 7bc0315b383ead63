"""The README's table of what can be converted: the families by group. Tests check that it is current."""

from __future__ import annotations

import tempfile
from pathlib import Path

from gguf_tools.families.base import Family
from gguf_tools.families.registry import load_model, own_families
from gguf_tools.model.spec import DeltaNet, Mamba2, MoE, ShortConv

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- families: written by make docs -->\n", "<!-- end of families -->\n"
SCRATCH = "trained from scratch, in the files of their own code"
RECURRENT = {DeltaNet, Mamba2, ShortConv}
GROUPS = ("dense", "mixture of experts", "other mixers than attention", SCRATCH)


def group(family: Family) -> str:
    """The group of a family: its layout if it is not Hugging Face's, else the parts of the models that it reads."""
    if ".scratch." in family.build.__module__:
        return SCRATCH
    found: set[str] = set()
    for variant, expected in family.variants.items():
        if expected.text_only or not expected.target or family.tiny is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            family.tiny(Path(folder), variant, 0)
            layers = load_model(Path(folder)).spec.layers
        parts = {type(part) for layer in layers for part in (layer.mixer, layer.beside, layer.feed_forward)}
        found |= {GROUPS[2]} if parts & RECURRENT else set()
        found |= {GROUPS[1]} if MoE in parts else set()
    return max(found, key=GROUPS.index, default=GROUPS[0])


def table() -> str:
    """The families' titles by group, one group a line."""
    titles: dict[str, list[str]] = {name: [] for name in GROUPS}
    for family in own_families():
        titles[group(family)].append(family.title)
    rows = "".join(f"| {name} | {'; '.join(sorted(found))} |\n" for name, found in titles.items())
    return f"| | families |\n|---|---|\n{rows}"


def readme() -> str:
    """The README with the table of now in place of the one between the two marks."""
    before, _, rest = README.read_text("utf-8").partition(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}"
