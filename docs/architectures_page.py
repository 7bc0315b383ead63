"""The page of llama.cpp's architectures and what layer surgery does on each, from the table in `surgery/architectures`."""

from __future__ import annotations

from surgery.architectures.judge import ASPECTS, followed, judge
from surgery.architectures.registry import architectures

HEAD = """# Surgery on a GGUF, architecture by architecture

llama.cpp derives some of what a layer computes from its place, from the number of layers, and from tensors outside of the
layers. `tinyq surgery` knows where, for every architecture of llama-cpp-python 0.3.36, from a table that was read against its
`src/models/*.cpp` ([surgery/architectures](../surgery/architectures/base.py)). What the table says is done exactly, or refused
with the reason; an architecture that it lacks is refused, unless `--assume-independent-layers` says that you have checked it.
This page is generated from the table by `make docs`.

What "done" rests on: tensors of a layer and its entries in metadata arrays follow it; a pattern that llama.cpp would derive from
a layer's place is written out as an array, or as the number of leading layers, where the architecture reads one ("follows").
"if kept" and "in part": done where the notes at the number hold in the file at hand, else refused; every file is examined.
Architectures in italics have layers on which no surgery is done.

Refused everywhere: experts into other groups (`expert_group_count`) than they were in; `scale`, `--only` and ops on experts
where a layer has a tensor that its architecture does not; the last sliding-window layer, or the last layer of either kind of a
hybrid, left out, since llama.cpp stops at such files. `--in-place` is refused where a tensor outside holds a part for each layer.

The table is held against llama.cpp itself: `--prove`, by default below 1 GB, runs source and result. What enters and
leaves each layer of the source, on random tokens, is read through llama.cpp's evaluation callback; the same is put into
the layer that took its place in the result, and its output, and the logits behind the last layer, must be the same. That
needs no reference and names the layer that is wrong. Layers that are scaled, or whose halves come from two layers, are
held half by half in the same way, times their factors. Other layers that are computed (blends, fewer experts) are held as
a whole against the torch reference where tinyq has the architecture as a target. `--json` has the result under `proof`:
`method` ("layers", "reference", both, "none"), `layers`, `worst_layer_nmse`, `logits_nmse`, `reference_nmse`, `n_tokens`,
`unproved` (sentences).

To add an architecture, add its row to `surgery/architectures/rows/`: the tensors of its layers, its properties by place and
count, and what is refused. `tests/surgery/test_architecture_table.py` holds every row against llama.cpp's source.

"""


def architectures_page() -> str:
    """The page as text."""
    notes: dict[str, int] = {}

    def cite(reasons: tuple[str, ...]) -> str:
        numbers = sorted({notes.setdefault(reason, len(notes) + 1) for reason in reasons})
        return f" [{', '.join(map(str, numbers))}]" if numbers else ""

    lines = [f"| architecture | {' | '.join(ASPECTS.values())} | follows |", f"|---|{'---|' * (len(ASPECTS) + 1)}"]
    for name, row in architectures().items():
        if row.closed:
            lines.append(f"| *{name}* | refused{cite((row.closed,))} |{' |' * len(ASPECTS)}")
            continue
        verdicts = [judge(row, aspect) for aspect in ASPECTS]
        cells = [verdict.word + cite(verdict.reasons) for verdict in verdicts]
        lines.append(f"| {name} | {' | '.join(cells)} | {', '.join(followed(row))} |")
    lines += ["", "## Notes", "", *(f"{number}. {reason}" for reason, number in notes.items()), ""]
    return HEAD + "\n".join(lines)
