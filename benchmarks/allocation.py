"""KL divergence at equal size: types chosen by measuring (`--target-bpw`) against the fixed recipes.

Both bundled models, at the sizes of q4_k_m and q3_k_m, with and without an importance matrix, which both sides then use. Types
are chosen by a calibration text, which has other stories than those that the divergence is measured on (another seed of the
same grammar), or by the model's own text. The importance matrix is of that calibration text.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gguf_tools.allocation.choose import FileOverhead, allocated, free_to_choose, measure
from gguf_tools.allocation.target import SizeTarget
from gguf_tools.bundled import MODELS, bundled_model
from gguf_tools.conversion.plan import prepare as prepare_convert
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute as convert
from gguf_tools.evaluation.imatrix import CollectRequest, collect
from gguf_tools.evaluation.metrics import kl_divergence
from gguf_tools.formats.gguf.imatrix import write_imatrix
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.quantization.plan import Quantization, QuantizeRequest, prepare
from gguf_tools.quantization.write import execute
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.tables import text_table
from quant.encode import FloatArray
from quant.options import TypeOptions

CALIBRATION_STORIES, HELD_OUT_STORIES = 12, 40
ONE = RuntimeOptions(threads=1)
HEAD = ("model", "matrix", "size of", "bits/weight", "calibration", "fixed KL", "chosen KL", "ratio", "predicted")


def stories(held_out: bool, count: int) -> list[str]:
    """Stories of the grammar that the bundled models learned: unseen ones, or others for calibration."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
    corpus = importlib.import_module("corpus")
    return list(corpus.stories(corpus.HELD_OUT_SEED if held_out else corpus.TRAIN_SEED, count))


class HeldOut:
    """Texts, and the F32 file's logits on them."""

    def __init__(self, path: Path, texts: Sequence[str]) -> None:
        with Runtime(path, ONE) as runtime:
            self.chunks = [runtime.tokenize(text, add_special=True) for text in texts]
            self.logits: list[FloatArray] = runtime.logits(self.chunks)

    def divergence(self, path: Path) -> float:
        """Mean KL divergence of a file from the F32 file, nats a token."""
        with Runtime(path, ONE) as runtime:
            pairs = zip(self.logits, runtime.iter_logits(self.chunks), strict=True)
            return float(np.concatenate([kl_divergence(ours, theirs) for ours, theirs in pairs]).mean())


def written(plan: Quantization, folder: Path) -> Path:
    """The plan's file."""
    return execute(plan, folder / "out.gguf", force=True, threads=1).paths[0]


def compare(model: str, folder: Path) -> list[tuple[str, ...]]:
    """Rows of the table for one bundled model."""
    source, scratch, matrix, text = (folder / name for name in ("f32.gguf", "scratch.gguf", "imatrix.gguf", "text.txt"))
    text.write_text("\n\n".join(stories(False, CALIBRATION_STORIES)), "utf-8")
    convert(prepare_convert(Request(source=bundled_model(model), type="f32")), source, force=True)
    write_imatrix(collect(CollectRequest(model=source, text=text, chunk=256), ONE), matrix, force=True)
    held_out = HeldOut(source, stories(True, HELD_OUT_STORIES))
    scratch.write_bytes(source.read_bytes())
    sources = open_gguf(source).tensors
    rows: list[tuple[str, ...]] = []
    for imatrix in (None, matrix):
        fixed = {
            kind: prepare(QuantizeRequest(source=source, type=kind, imatrix=imatrix)) for kind in ("q4_k_m", "q3_k_m")
        }
        divergences = {kind: held_out.divergence(written(plan, folder)) for kind, plan in fixed.items()}
        for name, calibration in (("stories", text), ("own text", None)):
            some = fixed["q4_k_m"]
            free = free_to_choose(some.choices, sources)
            measured = measure(scratch, sources, free, some.importance, calibration, threads=1)
            for kind, plan in fixed.items():
                target = SizeTarget(plan.report.bits_per_weight)
                chosen = allocated(target, measured, plan.choices, sources, FileOverhead(0, 1))
                request = QuantizeRequest(
                    source=source, type=kind, options=TypeOptions(types=chosen.types), imatrix=imatrix
                )
                made = prepare(request)
                assert made.report.bytes <= plan.report.bytes
                found = held_out.divergence(written(made, folder))
                size = f"{made.report.bits_per_weight:.3f}/{plan.report.bits_per_weight:.3f}"
                told = (f"{divergences[kind]:.2e}", f"{found:.2e}", f"{found / divergences[kind]:.2f}")
                rows.append(
                    (model, "yes" if imatrix else "no", kind, size, name, *told, f"{chosen.allocation.loss:.1e}")
                )
                print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for model in MODELS for row in compare(model, Path(folder))]
    print(text_table(HEAD, rows, "<<<><>"))


if __name__ == "__main__":
    main()
