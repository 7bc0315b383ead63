"""Architectures on whose layers no surgery is done, each with the reason."""

from __future__ import annotations

from surgery.architectures.base import Architecture
from surgery.architectures.rows.parts import (
    arch,
)

T5 = "its layers are named enc.blk.N.… and dec.blk.N.…, and those without attn_rel_b use that of the first"
DRAFT = "it drafts for another model, whose layers it reads by their index"
HRM = "its two stacks of layers run several times over, and block_count counts the runs"

ROWS: tuple[Architecture, ...] = (
    arch("clip", "", closed="a projector of images or sounds has no layers of a language model"),
    arch("t5", "", closed=T5),
    arch("t5encoder", "", closed=T5),
    arch("wavtokenizer-dec", "", closed="its blocks are not named blk.N.…, and differ by their index"),
    arch("gemma4-assistant", "", closed=DRAFT),
    arch("eagle3", "", closed=DRAFT),
    arch(
        "dflash",
        "",
        closed=DRAFT,
    ),
    arch("hrm_text", "", source="hrm-text.cpp", closed=HRM),
)
