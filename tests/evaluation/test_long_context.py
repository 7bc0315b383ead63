"""Sequences of any length: compared block by block they give what the whole gives, in memory that their length does not bound."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gguf_tools.evaluation import logit_pairs
from gguf_tools.evaluation.fidelity import evaluate_fidelity
from gguf_tools.evaluation.prompts import Prompt
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.reference import Reference
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.targets.registry import lift
from tests.conftest import Ran
from tests.tiny_gguf import EMBED, dense_tensors, write_dense, write_hybrid

PROMPTS = [Prompt(text=text) for text in ("Once upon", "The sea", "x")]
TEXT = "The boats were tied to the wall, and the water was so flat that one saw the masts twice. " * 2


class InBlocks(Runtime):
    """A runtime whose blocks are parts of the whole, to the last bit, and that notes how many it gave."""

    given = 0

    def block_size(self, sequence: Sequence[int]) -> int:
        return 7

    def iter_blocks(self, sequence: Sequence[int]) -> Iterator[npt.NDArray[np.float32]]:
        (whole,) = self.logits([sequence])
        for start in range(0, len(whole), 7):
            self.given += 1
            yield whole[start : start + 7]


class WithoutBlocks:
    """A reference that gives whole sequences only."""

    def __init__(self, reference: Reference) -> None:
        self.logits = reference.logits


def reports(path: Path, monkeypatch: pytest.MonkeyPatch, *, blocks: bool) -> list[dict[str, Any]]:
    """The report as a whole, and in blocks; the reference has other weights, so that texts differ."""
    made = Reference(lift(open_gguf(path)), torch.float64)
    made.weights["embedding"] *= 1 + 0.02 * torch.randn(made.weights["embedding"].shape, generator=torch.manual_seed(0))
    found = []
    runtime = InBlocks(path, RuntimeOptions(threads=1))
    with runtime:
        for whole in (1024, 1):
            monkeypatch.setattr(logit_pairs, "_WHOLE", whole)
            reference = made if blocks else WithoutBlocks(made)
            found.append(
                evaluate_fidelity(runtime, reference, None, PROMPTS, 20, text=TEXT, piece_tokens=120).as_dict()
            )
            assert bool(runtime.given) == (whole == 1)
    return found


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("write", [write_dense, write_hybrid])
def test_blocks_give_the_report_of_the_whole(
    write: Any, blocks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = reports(write(tmp_path / "a.gguf"), monkeypatch, blocks=blocks)
    assert 0 < whole["greedy_mean_prefix"] < 20, "some texts differ"
    assert whole["n_tokens"] > 200
    assert parts.keys() == whole.keys()
    for name, value in whole.items():
        if isinstance(value, float):
            assert parts[name] == pytest.approx(value, rel=1e-12), name
        elif name != "first_differences":
            assert parts[name] == value, name
    for one, other in zip(whole["first_differences"], parts["first_differences"], strict=True):
        assert (one["prompt"], one["position"], one["verdict"]) == (
            other["prompt"],
            other["position"],
            other["verdict"],
        )
        assert one["margin"] == pytest.approx(other["margin"], rel=1e-9)


CHILD = """
import resource, sys
from pathlib import Path
from gguf_tools.evaluation.fidelity import evaluate_fidelity
from gguf_tools.evaluation.prompts import Prompt
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.reference import Reference
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.targets.registry import lift
path, length = Path(sys.argv[1]), int(sys.argv[2])
reference = Reference(lift(open_gguf(path)))
text = "".join(chr(97 + 7 * n * n % 26) for n in range(length))
with Runtime(path, RuntimeOptions(threads=1, context_length=length + 8)) as runtime:
    found = evaluate_fidelity(runtime, reference, None, [Prompt("x")], 1, text=text, piece_tokens=length)
assert found.metrics.n_tokens == length + 2, found.metrics
assert found.metrics.nmse < 1e-9, found.metrics
print(*(resource.getrusage(who).ru_maxrss << 10 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts kilobytes on Linux")
def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """Neither here nor in llama.cpp's process: 3600 tokens more have 236 MB of logits, and scores of 300 MB."""
    tensors = dense_tensors(layers=1)
    extra = np.random.default_rng(1).standard_normal((16384 - 260, EMBED)).astype(np.float32)
    tensors["token_embd.weight"] = np.concatenate([tensors["token_embd.weight"], extra])
    path = write_dense(tmp_path / "wide.gguf", tensors, layers=1)
    peaks = []
    for length in (1200, 4800):
        ran = subprocess.run(
            [sys.executable, "-c", CHILD, path, str(length)], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr[-2000:]
        peaks.append([int(peak) for peak in ran.stdout.split()])
    for short, long in zip(*peaks, strict=True):
        assert long - short < 80e6, peaks


def test_a_text_is_read_in_pieces_of_the_context(tinyq: Any, tmp_path: Path) -> None:
    """512 tokens without --context; a context beyond that of the training is no error."""
    path, text = write_dense(tmp_path / "a.gguf"), tmp_path / "text.txt"
    text.write_text("It rains on every day of the week but one. " * 40)
    counts = {}
    for context in (None, 100, 1500):
        options = ("--context", context) if context else ()
        ran: Ran = tinyq(
            *("eval", path, "--text", text, "--oracle", "none", "--no-speed", "--tokens", "1", "--json", "-", *options)
        )
        assert ran.code == 0, ran.err
        found = json.loads(ran.out)["fidelity"]
        counts[context] = found["n_prompts"] - 24
        assert not any("longest sequence" in note for note in found["notes"])
    assert counts == {None: 7, 100: 18, 1500: 2}


def test_a_text_too_short_for_the_context_is_noted(tinyq: Any, tmp_path: Path) -> None:
    ran: Ran = tinyq(
        *(
            "eval",
            write_dense(tmp_path / "a.gguf"),
            "--oracle",
            "none",
            "--no-speed",
            "--tokens",
            "1",
            "--context",
            "32768",
        )
    )
    assert "tokens; give a --text of 32,768 or more to compare at that length" in " ".join(ran.out.split())
