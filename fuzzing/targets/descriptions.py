"""Descriptions of decoders, and golden logits as evidence for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fuzzing.target import Prepared, Target
from gguf_tools.description.build import build, problems
from gguf_tools.description.describe import find, text_of
from gguf_tools.description.solver.moves import starts
from gguf_tools.description.toml import parse_description
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.base import InMemory

VOCAB, HIDDEN, WIDTH = 40, 16, 24
SHAPES = {
    "emb.w": (VOCAB, HIDDEN), "last.w": (HIDDEN,),
    **{
        f"b.{n}.{name}": shape
        for n in range(2)
        for name, shape in {
            "n1.w": (HIDDEN,), "n2.w": (HIDDEN,), "qkv.w": (32, HIDDEN), "qkv.b": (32,), "o.w": (HIDDEN, HIDDEN),
            "up.w": (2 * WIDTH, HIDDEN), "down.w": (HIDDEN, WIDTH),
        }.items()
    },
}  # fmt: skip


def _checkpoint() -> Checkpoint:
    tensors = {name: InMemory(np.ones(shape, np.float32), (name,)) for name, shape in SHAPES.items()}
    return Checkpoint(path=Path("made"), config={}, tensors=tensors, weight_files=(), metadata={})


def _prepare(folder: Path) -> Prepared:
    """A description of a small checkpoint, read and built."""
    checkpoint = _checkpoint()
    found = find(checkpoint, VOCAB, 64)
    text = text_of(checkpoint, found, starts(found.assignment)[0], solved=False)
    layered = (
        text
        + '\n[[layers]]\nonly = [1]\nmixer.window = 8\nmixer.rope = false\n[layers.feed_forward]\nactivation = "relu"\n'
    )
    scaled = text.replace(
        "[tensors]",
        '[layer.mixer.rope.scaling]\nkind = "YarnScaling"\nfactor = 4.0\noriginal_context = 16\n\n[tensors]',
        1,
    )

    def read(data: bytes) -> bool:
        described = parse_description(data.decode("utf-8", "surrogateescape"), folder / "model.toml")
        list(problems(described, checkpoint))
        return bool(build(described, checkpoint).parameters)

    return Prepared([text.encode(), layered.encode(), scaled.encode()], read)


WORDS = [
    b"[layer.mixer]", b"[[layers]]", b"only = [0]", b"blocks = 2", b"transposed = true", b"{n}", b"{e}", b" + ", b"= false",
    b"= true", b"= 0", b"= -1", b"= 1e39", b"= nan", b"= inf", b"= 2147483647", b'kind = "MoE"', b'kind = "ShortConv"',
    b'kind = "Llama3Scaling"', b'kind = "FactorScaling"', b'bias = ["q", "x"]', b"factors = [1.0]", b"heads = 3",
    b"moe.router", b"ffn.gate", b"attn.q_norm", b"unused = []", b"router.top_k = 9",
]  # fmt: skip
TARGETS = (
    Target(
        name="description",
        title="description of a decoder, TOML",
        prepare=_prepare,
        words=WORDS,
        executions=200_000,
        longest=2500,
        deep=True,
    ),
)
