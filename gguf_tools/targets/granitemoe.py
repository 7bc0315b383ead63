"""llama.cpp's `granitemoe`: Granite's graph with experts in every layer, and perhaps an ungated shared one
(`src/models/granite-moe.cpp`, whose graph is that of `granite.cpp`)."""

from __future__ import annotations

from gguf_tools.model.spec import ModelSpec
from gguf_tools.targets import granite, llama
from gguf_tools.targets.base import Target
from gguf_tools.targets.limits import NO_SHARED_GATE, SHARED_EXPERT, attentions, moes, same

NAME = "granitemoe"

EXPRESSES = granite.EXPRESSES | SHARED_EXPERT | NO_SHARED_GATE


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    found = [] if moes(spec) else ["a model without experts"]
    if any(mixer.rope is None for mixer in attentions(spec)):
        found.append("layers without rope")
    if len({moe.shared is None for moe in moes(spec)}) > 1:
        found.append("layers without a shared expert among layers that have one")
    found += same((moe.shared.width for moe in moes(spec) if moe.shared), "width of the shared expert")
    return found + granite.limits(spec)


TARGET = Target(
    name=NAME,
    rewrites=llama.REWRITES,
    expresses=EXPRESSES,
    limits=limits,
    lower=granite.lower_as(NAME),
    lift=granite.lift,
)
