"""`tinyq quantize` as a command: the report, the dry run, and bad input, which leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from gguf_tools.api.options import byte_count
from gguf_tools.errors import CheckpointError, InputError
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import read_header
from gguf_tools.formats.gguf.source import gguf_tensors, open_gguf
from tests.conftest import Ran
from tests.quant.quant_models import FAMILIES, write
from tests.surgery.surgery_files import with_metadata

Tinyq = Callable[..., Ran]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "source.gguf"
    write(FAMILIES["llama-96"](), path, bf16=False)
    return path


def with_tensor(path: Path, values: np.ndarray[tuple[int, ...], np.dtype[np.float32 | np.int32]]) -> Path:
    """A file of one layer, whose blk.0.ffn_up.weight has these values."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_tensor("token_embd.weight", np.ones((3, 64), np.float32))
    writer.add_tensor("blk.0.ffn_up.weight", values)
    writer.add_tensor("blk.0.ids", np.arange(6, dtype=np.int32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_report(source: Path, tmp_path: Path, tinyq: Tinyq) -> None:
    out, report = tmp_path / "out.gguf", tmp_path / "report.json"
    ran = tinyq("quantize", source, out, "Q4_K_M", "--threads", 1, "--json", report)
    assert ran.code == 0, ran.err
    assert "tensors wanted q4_K, got q5_0: rows of 96 are not a multiple of 256" in ran.out
    found = json.loads(report.read_text())
    assert found["size"] == out.stat().st_size
    assert found["paths"] == [str(out)]
    assert found["nominal_bits_per_weight"] == 4.5 < found["bits_per_weight"]
    assert sum(share["tensors"] for share in found["types"]) == len(found["tensors"])
    by_name = {tensor["name"]: tensor for tensor in found["tensors"]}
    rounded, kept = by_name["blk.0.attn_q.weight"], by_name["blk.0.attn_norm.weight"]
    assert 0.01 < rounded["relative_rms_error"] < 0.1
    assert rounded["measured_weights"] == 3 * 96
    assert kept["relative_rms_error"] == 0
    assert kept["reason"] == "vector"
    assert read_header(out).get("tinyq.type") == "q4_k_m"


def test_dry_run_knows_the_size(source: Path, tmp_path: Path, tinyq: Tinyq) -> None:
    out = tmp_path / "out.gguf"
    for more in ((), ("--tensor-type", "ffn=q8_0", "--pure"), ("--split-max-size", "3K")):
        ran = tinyq("quantize", source, out, "q4_0", *more, "--dry-run", "--json", "-")
        assert not list(tmp_path.glob("out*"))
        assert tinyq("quantize", source, out, "q4_0", *more, "--threads", 1, "-q").code == 0
        made = list(tmp_path.glob("out*"))
        assert json.loads(ran.out)["size"] == sum(path.stat().st_size for path in made)
        for path in made:
            path.unlink()
    assert "nothing was written" in tinyq("quantize", source, out, "q4_0", "--dry-run").out


def test_provenance_is_kept(qwen3_folder: Path, tmp_path: Path, tinyq: Tinyq) -> None:
    assert tinyq("convert", qwen3_folder, tmp_path / "a.gguf", "--type", "f32", "--threads", 1).code == 0
    assert tinyq("quantize", tmp_path / "a.gguf", tmp_path / "b.gguf", "q8_0", "--threads", 1).code == 0
    before, after = read_header(tmp_path / "a.gguf").metadata, read_header(tmp_path / "b.gguf").metadata
    changed = {key for key in {**before, **after} if before.get(key) != after.get(key)}
    made = {"tinyq.made_from.digest", "tinyq.made_from.type"}
    assert changed == {"general.file_type", "general.quantization_version", "tinyq.type"} | made
    assert after["tinyq.made_from.digest"].value == hashlib.sha256((tmp_path / "a.gguf").read_bytes()).hexdigest()
    assert after["tinyq.made_from.type"].value == "f32"


def test_a_requantization_is_recorded_and_said_where_it_grows_the_file(
    source: Path, tmp_path: Path, tinyq: Tinyq
) -> None:
    small, large, back = (tmp_path / name for name in ("small.gguf", "large.gguf", "back.gguf"))
    assert tinyq("quantize", source, small, "q4_1").code == 0
    assert keys.REQUANTIZED_FROM not in read_header(small).metadata
    ran = tinyq("quantize", small, large, "q8_0", "--allow-requantize")
    assert (ran.code, large.stat().st_size > small.stat().st_size) == (0, True)
    assert "the output is larger than the source (" in " ".join(ran.out.split())
    assert "what q4_1 lost does not come back; quantize the F32, F16 or BF16 file" in " ".join(ran.out.split())
    header = read_header(large)
    assert [header.get(key) for key in (keys.REQUANTIZED_FROM, keys.MADE_FROM_TYPE)] == ["q4_1", "q4_1"]
    assert header.get(keys.MADE_FROM_DIGEST) == hashlib.sha256(small.read_bytes()).hexdigest()
    ran = tinyq("quantize", large, back, "q4_0", "--allow-requantize")
    assert "larger" not in ran.out, "it is smaller"
    assert [read_header(back).get(key) for key in (keys.REQUANTIZED_FROM, keys.MADE_FROM_TYPE)] == ["q8_0", "q8_0"]


def test_a_file_without_a_recorded_type_is_called_by_most_of_its_weights(
    source: Path, tmp_path: Path, tinyq: Tinyq
) -> None:
    """As are the files of other converters; a dry run tells the growth too."""
    assert tinyq("quantize", source, tmp_path / "a.gguf", "q4_1").code == 0
    bare = with_metadata(tmp_path / "a.gguf", tmp_path / "bare.gguf", {keys.TYPE: None})
    ran = tinyq("quantize", bare, tmp_path / "b.gguf", "q8_0", "--allow-requantize", "--dry-run")
    assert "what q4_1 lost does not come back" in " ".join(ran.out.split())
    assert tinyq("quantize", bare, tmp_path / "b.gguf", "q8_0", "--allow-requantize").code == 0
    assert read_header(tmp_path / "b.gguf").get(keys.REQUANTIZED_FROM) == "q4_1"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["q4_x"], "type q4_x does not exist; similar types are q4_0, q4_1"),
        (["i8"], "type i8 exists in ggml but cannot be written by tinyq; choose one of f32"),
        (["q8_0", "--tensor-type", "ffn_dwn=q4_0"], "ffn_dwn=q4_0 matches none of the"),
        (["q8_0", "--tensor-type", "(=q4_0"], "is not a regular expression"),
        (["q8_0", "--output-type", "i32"], "i32 can be read but not written"),
        (["q8_0", "--split-max-size", "many"], "--split-max-size is 'many'; expected a size"),
        (["q8_0", "--split-max-size", "1K", "--keep-split"], "cannot be combined"),
        (["q8_0", "--imatrix", "none.gguf"], "none.gguf: no such file"),
    ],
)
def test_bad_options(source: Path, tmp_path: Path, tinyq: Tinyq, more: list[str], says: str) -> None:
    refused(tinyq("quantize", source, tmp_path / "out.gguf", *more), says, tmp_path)


def refused(ran: Ran, says: str, folder: Path) -> None:
    assert ran.code == 2
    assert says in ran.err
    assert ran.err.count("\n") == 1
    assert not [path for path in folder.iterdir() if "out" in path.name]


def test_bad_sources(source: Path, tmp_path: Path, tinyq: Tinyq) -> None:
    out = tmp_path / "out.gguf"
    whole = source.read_bytes()
    for size in (3, 20, 500, len(whole) - 1):
        source.write_bytes(whole[:size])
        refused(tinyq("quantize", source, out, "q8_0"), "source.gguf: ", tmp_path)
    source.write_bytes(b"PK" + whole)
    refused(tinyq("quantize", source, out, "q8_0"), "it is not a GGUF file", tmp_path)
    refused(tinyq("quantize", tmp_path / "none.gguf", out, "q8_0"), "none.gguf: cannot be read", tmp_path)


def test_quantized_already(source: Path, tmp_path: Path, tinyq: Tinyq) -> None:
    middle = tmp_path / "in" / "middle.gguf"
    assert tinyq("quantize", source, middle, "q8_0", "--threads", 1).code == 0
    says = "is already quantized (q8_0) and would be converted to q5_0; give the F32, F16 or BF16 file, or --allow-requantize"
    refused(tinyq("quantize", middle, tmp_path / "out.gguf", "q4_k_m"), says, tmp_path)
    assert tinyq("quantize", middle, tmp_path / "out.gguf", "q4_k_m", "--allow-requantize").code == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(tmp_path: Path, tinyq: Tinyq, value: float) -> None:
    values = np.ones((4, 64), np.float32)
    values[2, 5] = value
    given = with_tensor(tmp_path / "bad.gguf", values)
    for more in (["q8_0"], ["f32"], ["q8_0", "--split-max-size", "300"]):
        ran = tinyq("quantize", given, tmp_path / "out.gguf", *more)
        refused(ran, f"tensor blk.0.ffn_up.weight holds {value} at row 2, column 5", tmp_path)


def test_integers_are_copied(tmp_path: Path, tinyq: Tinyq) -> None:
    given = with_tensor(tmp_path / "in.gguf", np.ones((4, 64), np.float32))
    assert tinyq("quantize", given, tmp_path / "out.gguf", "q8_0").code == 0
    tensors = {tensor.entry.name: tensor for tensor in gguf_tensors(read_header(tmp_path / "out.gguf"))}
    assert tensors["blk.0.ids"].read(0, 24).tobytes() == np.arange(6, dtype=np.int32).tobytes()
    assert tensors["blk.0.ffn_up.weight"].dtype == "q8_0"


@pytest.mark.parametrize("kind", [np.int32, np.float64])
def test_a_matrix_of_integers_or_doubles_is_not_quantized(tmp_path: Path, tinyq: Tinyq, kind: type) -> None:
    """Nor compared by its values: equal bytes are equal, and all else differs."""
    values: Any = np.arange(256).reshape(4, 64).astype(kind)
    given = with_tensor(tmp_path / "in.gguf", values)
    name = "i32" if kind is np.int32 else "f64"
    for type_name in ("q8_0", "f16", "f32"):
        ran = tinyq("quantize", given, tmp_path / "out.gguf", type_name)
        refused(ran, f"{given}: tensor blk.0.ffn_up.weight is stored as {name}, from which llama.cpp cannot", tmp_path)
    assert tinyq("diff", given, given).code == 0
    values[1, 2] += 1
    for other in (values, values.astype(np.float32)):
        ran = tinyq("diff", given, with_tensor(tmp_path / "other.gguf", other))
        assert ran.code == 1
        assert "differs from" in ran.err
        assert "first in tensor blk.0.ffn_up.weight (values)" in ran.err
    source = open_gguf(given)
    with pytest.raises(
        CheckpointError, match=f"tensor blk.0.ffn_up.weight is stored as {name}, which llama.cpp does not"
    ):
        source.tensor("blk.0.ffn_up.weight").flat(0, 1)


def test_outputs_are_not_inputs(source: Path, tmp_path: Path, tinyq: Tinyq) -> None:
    before = source.read_bytes()
    ran = tinyq("quantize", source, source, "q8_0", "--force")
    assert (ran.code, source.read_bytes()) == (2, before)
    assert "is also an input of this command" in ran.err
    (tmp_path / "taken.gguf").write_bytes(b"x")
    assert "exists already" in tinyq("quantize", source, tmp_path / "taken.gguf", "q8_0").err
    assert tinyq("quantize", source, tmp_path / "taken.gguf", "q8_0", "--force", "-q") == Ran(0, "", "")


def test_parts_that_do_not_agree(source: Path, tmp_path: Path, tinyq: Tinyq) -> None:
    folder = source.parent
    assert tinyq("quantize", source, folder / "p.gguf", "q8_0", "--split-max-size", "3K").code == 0
    first, second, *_ = sorted(folder.glob("p-*.gguf"))
    again = ("quantize", first, tmp_path / "out.gguf", "q8_0")
    assert tinyq(*again, "--dry-run").code == 0
    kept = second.read_bytes()
    second.unlink()
    refused(tinyq(*again), f"{second.name}: missing; it is shard 2 of", tmp_path)
    second.write_bytes(first.read_bytes())
    refused(tinyq(*again), f"{second.name}: is named as shard 2", tmp_path)
    second.write_bytes(kept)
    first.rename(folder / "other.gguf")
    ran = tinyq("quantize", folder / "other.gguf", tmp_path / "out.gguf", "q8_0")
    refused(ran, "other.gguf: is a shard of a split model (split.no is 0, split.count is ", tmp_path)


def test_sizes() -> None:
    assert [byte_count(text, "--x") for text in ("500", "1.5K", "2 MB", "3G", "1gib")] == [
        *(500, 1500, 2_000_000, 3_000_000_000),
        1 << 30,
    ]
    for text in ("", "x", "1X", "-5", "0", "5i"):
        with pytest.raises(InputError, match=r"a size such as|at least one byte"):
            byte_count(text, "--x")
