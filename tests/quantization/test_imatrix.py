"""Importance matrices: collected as arithmetic says, both file formats, merged, and used as llama.cpp uses them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_tools.conversion.plan import prepare as prepare_convert
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute as convert
from gguf_tools.errors import InputError
from gguf_tools.evaluation.imatrix import CollectRequest, collect
from gguf_tools.formats.gguf.header import read_header
from gguf_tools.formats.gguf.imatrix import in_tokens, read_imatrix, write_imatrix
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.quantization.plan import QuantizeRequest, prepare
from gguf_tools.quantization.write import execute
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from quant.imatrix import ImportanceMatrix, Statistics, coverage, merge
from quant.recipes import TensorFacts, recipe
from tests.conftest import Ran
from tests.quant.quant_models import FAMILIES, TinyModel, write
from tests.quant.quant_oracle import llama

ONE = RuntimeOptions(threads=1)


def random_matrix(model: TinyModel, seed: int = 0) -> ImportanceMatrix:
    """Statistics of each matrix but the embedding; some experts unseen."""
    rng = np.random.default_rng(seed)
    entries = {}
    for name, shape in model.shapes.items():
        if len(shape) > 1 and not name.startswith("token_embd"):
            matrices = shape[0] if len(shape) > 2 else 1
            counts = rng.integers(0 if matrices > 1 else 1, 3, matrices)
            entries[name] = Statistics(rng.exponential(9.0, (matrices, shape[-1])).astype(np.float32), counts)
    return ImportanceMatrix(entries=entries, datasets=("a.txt", "b.txt"), chunks=7, chunk_size=512)


def importance(path: Path) -> Mapping[str, NDArray[np.float32]]:
    """What llama-quantize makes of a matrix file: means, and 1 for what was not seen."""
    tensors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
    found = {}
    for name in tensors:
        if name.endswith(".in_sum2"):
            counts = tensors[name.replace(".in_sum2", ".counts")].reshape(-1)
            rows = tensors[name].reshape(len(counts), -1)
            means = [row / count if count > 0 else np.ones_like(row) for row, count in zip(rows, counts, strict=True)]
            found[name.removesuffix(".in_sum2")] = np.concatenate(means)
    return found


@pytest.mark.parametrize("name", ["llama-640", "mixtral", "qwen3next"])
def test_bytes_are_llama_cpps_with_the_same_matrix(tmp_path: Path, name: str) -> None:
    model, source, file = FAMILIES[name](), tmp_path / "in.gguf", tmp_path / "m.gguf"
    write(model, source, bf16=True)
    write_imatrix(random_matrix(model), file)
    np.savez(tmp_path / "m.npz", **importance(file))  # type: ignore[arg-type]
    for kind in ("q4_k_m", "iq4_xs", "q4_0"):
        llama().quantize(source, tmp_path / "theirs.gguf", recipe(kind).file_type, imatrix=str(tmp_path / "m.npz"))
        execute(
            prepare(QuantizeRequest(source=source, type=kind, imatrix=file)),
            tmp_path / "ours.gguf",
            force=True,
            threads=1,
        )
        ours, theirs = open_gguf(tmp_path / "ours.gguf"), open_gguf(tmp_path / "theirs.gguf")
        assert list(ours.tensors) == list(theirs.tensors)
        for tensor, other in zip(ours.tensors.values(), theirs.tensors.values(), strict=True):
            assert tensor.dtype == other.dtype
            assert tensor.raw(0, tensor.size).tobytes() == other.raw(0, other.size).tobytes()
    said = read_header(tmp_path / "ours.gguf")
    assert said.get("quantize.imatrix.file") == "m.gguf"
    assert said.get("quantize.imatrix.dataset") == "a.txt"
    assert said.get("quantize.imatrix.entries_count") == len(importance(file))
    assert said.get("quantize.imatrix.chunks_count") == 7


def test_both_formats(tmp_path: Path) -> None:
    matrix = random_matrix(FAMILIES["mixtral"]())
    write_imatrix(matrix, tmp_path / "m.gguf")
    again = read_imatrix(tmp_path / "m.gguf")
    assert (again.datasets, again.chunks, again.chunk_size) == (matrix.datasets, 7, 512)
    for name, entry in matrix.entries.items():
        assert np.array_equal(again.entries[name].sums, entry.sums)
        assert np.array_equal(again.entries[name].counts, entry.counts)
    values = np.arange(6, dtype=np.float32)
    (tmp_path / "m.dat").write_bytes(old_file({"blk.0.attn_q.weight": (3, values)}, 3, "c.txt"))
    old = read_imatrix(tmp_path / "m.dat")
    assert (old.datasets, old.chunks) == (("c.txt",), 3)
    assert np.array_equal(old.entries["blk.0.attn_q.weight"].importance, (values / np.float32(3)).reshape(1, 6))
    rescaled = in_tokens(old).entries["blk.0.attn_q.weight"]
    assert rescaled.counts.tolist() == [3 * 512]
    assert np.allclose(rescaled.importance, old.entries["blk.0.attn_q.weight"].importance)


def old_file(entries: Mapping[str, tuple[int, NDArray[np.float32]]], chunks: int, dataset: str) -> bytes:
    out = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, values.size) + values.tobytes()
    return out + struct.pack("<ii", chunks, len(dataset)) + dataset.encode()


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    whole = old_file({"a": (1, np.ones(4, np.float32))}, 1, "text")
    for size in (0, 3, 6, 20):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"m\.dat: ends at byte"):
            read_imatrix(path)
    path.write_bytes(old_file({"a": (1, np.array([1, np.nan], np.float32))}, 1, ""))
    with pytest.raises(InputError, match="a has negative or non-finite sums of squares"):
        read_imatrix(path)
    path.write_bytes(old_file({}, 1, ""))
    with pytest.raises(InputError, match="holds no entries"):
        read_imatrix(path)
    write(FAMILIES["llama-96"](), tmp_path / "model.gguf", bf16=False)
    with pytest.raises(InputError, match="expected an importance matrix"):
        read_imatrix(tmp_path / "model.gguf")


def test_merging() -> None:
    a, b = random_matrix(FAMILIES["mixtral"](), 1), random_matrix(FAMILIES["mixtral"](), 2)
    both = merge([a, b])
    name = "blk.0.ffn_up_exps.weight"
    assert np.array_equal(both.entries[name].sums, a.entries[name].sums + b.entries[name].sums)
    assert np.array_equal(both.entries[name].counts, a.entries[name].counts + b.entries[name].counts)
    assert (both.chunks, both.datasets) == (14, ("a.txt", "b.txt"))
    one = ImportanceMatrix(entries={name: Statistics(np.ones((1, 8 * 256), np.float32), np.array([5]))})
    assert merge([a, one]).entries[name].counts.tolist() == (a.entries[name].counts + 5).tolist()
    with pytest.raises(InputError, match=f"has 3 values for {name}, but another matrix has 2048"):
        merge([a, ImportanceMatrix(entries={name: Statistics(np.ones((1, 3), np.float32), np.array([5]))})])


def test_coverage() -> None:
    entry = Statistics(np.ones((3, 2), np.float32), np.array([4, 0, 0]))
    other = Statistics(np.ones((1, 2), np.float32), np.array([3]))
    least, most = coverage(ImportanceMatrix(entries={"b": other, "a": entry}))
    assert (least.name, least.tokens, least.matrix, least.matrices, least.unseen) == ("a", 0, 1, 3, 2)
    assert (most.name, most.tokens, most.unseen) == ("b", 3, 0)


def test_a_matrix_of_another_model() -> None:
    matrix = ImportanceMatrix(entries={"blk.0.ffn_up.weight": Statistics(np.ones((1, 8), np.float32), np.array([1]))})
    with pytest.raises(InputError, match=r"8 values for blk\.0\.ffn_up\.weight, whose shape \(4, 16\) needs 16"):
        matrix.importance([TensorFacts("blk.0.ffn_up.weight", (4, 16))])
    with pytest.raises(
        InputError, match=r"has statistics of blk\.0\.ffn_up\.weight and other tensors, none of which the model has"
    ):
        matrix.importance([TensorFacts("blk.0.ffn_down.weight", (4, 16))])


def test_statistics_of_tensors_that_the_model_lacks_are_a_note() -> None:
    entry = Statistics(np.ones((1, 16), np.float32), np.array([1]))
    matrix = ImportanceMatrix(entries={f"blk.{n}.ffn_up.weight": entry for n in range(3)})
    facts = [TensorFacts("blk.0.ffn_up.weight", (4, 16))]
    assert list(matrix.importance(facts)) == ["blk.0.ffn_up.weight"]
    (note,) = matrix.unused(facts)
    assert note == (
        "the importance matrix has statistics of blk.1.ffn_up.weight and 1 more, which the model lacks: they are not used"
    )
    assert matrix.unused([TensorFacts(name, (4, 16)) for name in matrix.entries]) == ()


TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 4


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def converted(folder: Path, out: Path) -> Path:
    convert(prepare_convert(Request(source=folder, type="f32")), out)
    return out


def test_what_enters_the_first_layer(qwen3_folder: Path, tmp_path: Path, text: Path) -> None:
    """The queries of layer 0 see the normalized embeddings, which are easily computed."""
    path = converted(qwen3_folder, tmp_path / "m.gguf")
    matrix = collect(CollectRequest(model=path, text=text, chunk=40), ONE)
    with Runtime(path, ONE) as runtime:
        tokens = runtime.tokenize(TEXT, add_special=True)
    source = open_gguf(path)
    rows = source.tensor("token_embd.weight").array()[tokens].astype(np.float64)
    rows /= np.sqrt((rows**2).mean(axis=1, keepdims=True) + source.key("attention.layer_norm_rms_epsilon"))
    rows *= source.tensor("blk.0.attn_norm.weight").array()
    found = matrix.entries["blk.0.attn_q.weight"]
    assert found.counts.tolist() == [len(tokens)]
    assert np.allclose(found.sums[0], (rows**2).sum(axis=0), rtol=1e-4)
    assert matrix.chunks == -(-len(tokens) // 40)
    assert set(matrix.entries) == {
        name for name, t in source.tensors.items() if name.startswith("blk.") and len(t.shape) > 1
    }
    more = collect(CollectRequest(model=path, text=text, chunk=40, chunks=2, process_output=True), ONE)
    assert more.entries["output.weight"].counts.tolist() == [80]


@pytest.mark.parametrize("fixture", ["sharded_folder", "hybrid_folder"])
def test_experts_are_counted_separately(
    request: pytest.FixtureRequest, fixture: str, tmp_path: Path, text: Path
) -> None:
    """Each token goes to as many experts as the model says, with the input that the router saw."""
    path = converted(request.getfixturevalue(fixture), tmp_path / "m.gguf")
    entries = collect(CollectRequest(model=path, text=text, chunk=64), ONE).entries
    used = open_gguf(path).key("expert_used_count")
    router, gate = entries["blk.1.ffn_gate_inp.weight"], entries["blk.1.ffn_gate_exps.weight"]
    assert len(gate.counts) == open_gguf(path).key("expert_count") > 1
    assert gate.counts.sum() == used * router.counts[0]
    assert np.allclose(gate.sums.sum(axis=0), used * router.sums[0], rtol=1e-5)
    assert np.array_equal(entries["blk.1.ffn_down_exps.weight"].counts, gate.counts)
    assert entries["blk.1.ffn_down_exps.weight"].sums.all()


def test_command(qwen3_folder: Path, tmp_path: Path, text: Path, tinyq: Callable[..., Ran]) -> None:
    path, out, report = converted(qwen3_folder, tmp_path / "m.gguf"), tmp_path / "a.gguf", tmp_path / "r.json"
    assert tinyq("imatrix", path, text, "-o", out, "--threads", 1, "--chunk", 64).code == 0
    ran = tinyq("imatrix", path, text, "-o", tmp_path / "b.gguf", "--threads", 1, "--merge", out, "--json", report)
    assert ran.code == 0, ran.err
    found = json.loads(report.read_text())
    assert found["tokens"] == 2 * read_imatrix(out).entries["blk.0.attn_q.weight"].counts[0]
    assert found["coverage"][0]["tokens"] == found["tokens"]
    shown = tinyq("imatrix", "--merge", out, "--merge", tmp_path / "b.gguf").out
    assert "fewest tokens" in shown
    assert "expert" not in shown, "a dense model has none"
    for source, kind in ((path, "quantize"), (qwen3_folder, "convert")):
        typed = ("q4_0",) if kind == "quantize" else ("--type", "q4_0")
        ran = tinyq(kind, source, tmp_path / f"{kind}.gguf", *typed, "--imatrix", out, "--threads", 1)
        assert ran.code == 0, ran.err
    ours, theirs = open_gguf(tmp_path / "quantize.gguf").tensors, open_gguf(tmp_path / "convert.gguf").tensors
    assert all(np.array_equal(ours[name].raw(0, t.size), t.raw(0, t.size)) for name, t in theirs.items())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "there is no model and no matrix"),
        (["m.gguf"], "given without a TEXT"),
        (["m.gguf", "t.txt"], "the output file is missing"),
        (["m.gguf", "t.txt", "-o", "out.gguf"], "t.txt: cannot be read"),
        (["--merge", "none.gguf"], "none.gguf: no such file"),
    ],
)
def test_bad_arguments(tinyq: Callable[..., Ran], arguments: list[str], says: str) -> None:
    ran = tinyq("imatrix", *arguments)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    if "t.txt:" not in says:
        assert says in ran.err
