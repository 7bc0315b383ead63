"""`tinyq quantize` against llama_model_quantize: data, types, order and metadata of whole files."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from gguf_tools.formats.gguf.header import read_header
from gguf_tools.formats.gguf.source import gguf_tensors
from gguf_tools.formats.gguf.split import read_parts
from gguf_tools.quantization.plan import QuantizeRequest, prepare
from gguf_tools.quantization.write import execute
from quant.options import Override, TypeOptions, writable_type
from quant.recipes import RECIPES, recipe
from tests.quant.quant_models import FAMILIES, write
from tests.quant.quant_oracle import llama

OURS = "tinyq."


def assert_same(ours: Path, theirs: Path) -> None:
    """The same tensors in the same order with the same bytes, and the same metadata but for tinyq's own."""
    mine, other = read_header(ours), read_header(theirs)
    said, told = (
        [item for item in header.metadata.items() if not item[0].startswith(OURS)] for header in (mine, other)
    )
    assert said == told
    assert mine.tensors == other.tensors
    for a, b in zip(gguf_tensors(mine), gguf_tensors(other), strict=True):
        assert a.read(0, a.entry.nbytes).tobytes() == b.read(0, b.entry.nbytes).tobytes(), a.entry.name


def quantized(request: QuantizeRequest, out: Path) -> tuple[Path, ...]:
    plan = prepare(request)
    result = execute(plan, out, force=True, threads=1)
    assert result.paths == plan.paths(out)
    assert result.bytes == plan.size == sum(path.stat().st_size for path in result.paths)
    return result.paths


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for files that several tests read."""
    return tmp_path_factory.mktemp("quantize")


def model(folder: Path, name: str, bf16: bool) -> Path:
    path = folder / f"{name}-{bf16}.gguf"
    if not path.exists():
        write(FAMILIES[name](), path, bf16)
    return path


@pytest.mark.parametrize(
    ("name", "bf16"),
    [("llama-tied", True), ("qwen3-128", True), ("mixtral", False), ("qwen3next", True), ("glm4moe", False)],
)
def test_whole_files(source: Path, tmp_path: Path, name: str, bf16: bool) -> None:
    given = model(source, name, bf16)
    few = ("f16", "q8_0", "q4_k_m", "q2_k")
    many = [kind for kind, one in RECIPES.items() if not one.base.on_grid and kind != "q2_k_s"]
    for kind in many if name == "llama-tied" else few:
        llama().quantize(given, tmp_path / "theirs.gguf", recipe(kind).file_type)
        quantized(QuantizeRequest(source=given, type=kind), tmp_path / "ours.gguf")
        assert_same(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


def test_options(source: Path, tmp_path: Path) -> None:
    given = model(source, "llama-tied", False)
    overrides = tuple(map(Override.parse, ("ffn_down=q8_0", r"blk\.[0-3]\.attn=q5_1", "attn_v=Q6_K")))
    options = TypeOptions(
        pure=True, output_type=writable_type("f16"), embedding_type=writable_type("q4_0"), overrides=overrides
    )
    llama().quantize(
        given,
        tmp_path / "theirs.gguf",
        recipe("q4_k_m").file_type,
        pure=True,
        output_tensor_type=1,
        token_embedding_type=2,
        overrides=[(o.pattern.pattern, o.type.ggml_id) for o in reversed(overrides)],
    )
    quantized(QuantizeRequest(source=given, type="q4_k_m", options=options), tmp_path / "ours.gguf")
    assert_same(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


def test_from_a_quantized_file(source: Path, tmp_path: Path) -> None:
    given = model(source, "qwen3-128", True)
    quantized(QuantizeRequest(source=given, type="q8_0"), tmp_path / "middle.gguf")
    for kind in ("q8_0", "q4_k_m", "f16"):
        llama().quantize(
            tmp_path / "middle.gguf", tmp_path / "theirs.gguf", recipe(kind).file_type, allow_requantize=True
        )
        request = QuantizeRequest(source=tmp_path / "middle.gguf", type=kind, allow_requantize=True)
        quantized(request, tmp_path / "ours.gguf")
        assert_same(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


@pytest.fixture(scope="module")
def parts(source: Path) -> tuple[Path, ...]:
    """A model in four parts, written by the gguf package."""
    whole = gguf.GGUFReader(model(source, "llama-tied", False))
    writer = gguf.GGUFWriter(source / "parts.gguf", "llama", split_max_tensors=len(whole.tensors) // 4 + 1)
    for key, field in whole.fields.items():
        if key.startswith("llama."):
            value = field.contents()
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    for tensor in whole.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data).reshape(tuple(reversed(tensor.shape.tolist()))))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = tuple(sorted(source.glob("parts-*.gguf")))
    assert len(found) == 4
    return found


def test_a_split_source(parts: tuple[Path, ...], tmp_path: Path) -> None:
    llama().quantize(parts[0], tmp_path / "theirs.gguf", recipe("q4_k_m").file_type)
    for part in (parts[0], parts[2]):
        quantized(QuantizeRequest(source=part, type="q4_k_m"), tmp_path / "ours.gguf")
        assert_same(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


def test_keep_split(parts: tuple[Path, ...], tmp_path: Path) -> None:
    llama().quantize(parts[0], tmp_path / "theirs", recipe("q4_k_m").file_type, keep_split=True)
    for path in quantized(QuantizeRequest(source=parts[0], type="q4_k_m", keep_split=True), tmp_path / "ours.gguf"):
        assert_same(path, tmp_path / path.name.replace("ours", "theirs"))


def test_split_max_size(source: Path, tmp_path: Path) -> None:
    """llama.cpp reads our parts as it reads the whole file."""
    given = model(source, "llama-tied", False)
    made = quantized(QuantizeRequest(source=given, type="q8_0", split_max_size=20_000), tmp_path / "ours.gguf")
    assert made[0].name == f"ours-00001-of-{len(made):05d}.gguf"
    assert len(made) > 2
    for header in read_parts(made[0]):
        assert sum(entry.nbytes for entry in header.tensors) <= 20_000 or len(header.tensors) == 1
    llama().quantize(given, tmp_path / "whole.gguf", recipe("q8_0").file_type)
    llama().quantize(made[0], tmp_path / "theirs.gguf", recipe("q8_0").file_type)
    merged, whole = read_header(tmp_path / "theirs.gguf"), read_header(tmp_path / "whole.gguf")
    assert merged.tensors == whole.tensors
    for a, b in zip(gguf_tensors(merged), gguf_tensors(whole), strict=True):
        assert (a.read(0, a.entry.nbytes) == b.read(0, b.entry.nbytes)).all()


def projector(path: Path) -> Path:
    """A vision projector as llama.cpp's converter writes it with --mmproj: architecture clip, no clip.block_count."""
    numbers = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_string("general.type", "mmproj")
    writer.add_string("clip.projector_type", "mlp")
    writer.add_uint32("clip.vision.block_count", 2)
    shapes: dict[str, tuple[int, ...]] = {"v.patch_embd.weight": (256, 3, 14, 14), "v.position_embd.weight": (5, 256)}
    shapes |= {"mm.0.weight": (256, 256), "mm.2.weight": (256, 256)}
    for n in range(2):
        for name, rows, columns in (("attn_v", 256, 256), ("ffn_up", 512, 256), ("ffn_down", 256, 512)):
            shapes |= {f"v.blk.{n}.{name}.weight": (rows, columns), f"v.blk.{n}.{name}.bias": (rows,)}
        shapes[f"v.blk.{n}.ln1.weight"] = (256,)
    for name, shape in shapes.items():
        writer.add_tensor(name, numbers.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_a_projector_has_no_layers(tmp_path: Path, kind: str) -> None:
    given = projector(tmp_path / "mmproj.gguf")
    llama().quantize(given, tmp_path / "theirs.gguf", recipe(kind).file_type)
    quantized(QuantizeRequest(source=given, type=kind), tmp_path / "ours.gguf")
    assert_same(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
