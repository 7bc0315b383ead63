"""Types and bytes against the files that llama_model_quantize writes, for every family and recipe."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_tools.errors import InputError
from quant import recipes
from quant.encode import Block, encode_block, row_ranges
from quant.options import Override, TypeOptions, writable_type
from quant.recipes import ModelFacts, TensorFacts, TypeChoice
from quant.types import F32, TYPES, TensorType, row_bytes, type_of_id
from tests.quant.quant_models import FAMILIES, SEVENTY_B, TinyModel, deep, write
from tests.quant.quant_oracle import llama


@cache
def family(name: str) -> TinyModel:
    return FAMILIES[name]()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quant")


def source_file(folder: Path, name: str, bf16: bool) -> Path:
    path = folder / f"{name}-{'bf16' if bf16 else 'f32'}.gguf"
    if not path.exists():
        write(family(name), path, bf16)
    return path


@cache
def read(path: Path) -> gguf.GGUFReader:
    """A source file, read once."""
    return gguf.GGUFReader(path)


def facts_of(reader: gguf.GGUFReader) -> list[TensorFacts]:
    return [
        TensorFacts(t.name, tuple(int(n) for n in reversed(t.shape)), type_of_id(int(t.tensor_type)))
        for t in reader.tensors
    ]


def rows_of(data: NDArray[Any], source: TensorType, shape: tuple[int, ...]) -> NDArray[Any]:
    raw = np.ascontiguousarray(data).view(np.uint8).reshape(-1, row_bytes(source, shape[-1]))
    return raw.view(np.float32) if source is F32 else raw


def encoded(tensor: TensorFacts, choice: TypeChoice, data: NDArray[Any], imatrix: NDArray[np.float32] | None) -> bytes:
    """The tensor's bytes as a writer would make them: in blocks of a few rows, an importance for each expert."""
    rows = rows_of(data, tensor.source, tensor.shape)
    parts = []
    for part in row_ranges(tensor.shape, by_matrix=imatrix is not None, weights=2000):
        mine = None if imatrix is None else imatrix.reshape(-1, tensor.shape[-1])[part.matrix]
        block = Block(
            name=tensor.name, type=choice.type, rows=rows[part.start : part.stop], source=tensor.source, imatrix=mine
        )
        parts.append(encode_block(block).raw.tobytes())
    return b"".join(parts)


def compare(
    source: Path,
    output: Path,
    model: ModelFacts,
    recipe: recipes.TypeRecipe,
    options: TypeOptions | None = None,
    imatrix: dict[str, NDArray[np.float32]] | None = None,
) -> tuple[TypeChoice, ...]:
    """Asserts that our choices and bytes are those of llama.cpp's output."""
    ours, theirs = read(source), gguf.GGUFReader(output)
    tensors = facts_of(ours)
    choices = recipes.assign(recipe, model, tensors, options)
    written = {t.name: t for t in theirs.tensors}
    assert set(written) == {t.name for t in tensors}
    assert {c.name: c.type.name for c in choices} == {
        name: type_of_id(int(t.tensor_type)).name for name, t in written.items()
    }
    for tensor, choice, found in zip(tensors, choices, ours.tensors, strict=True):
        mine = encoded(tensor, choice, found.data, (imatrix or {}).get(tensor.name))
        assert mine == written[tensor.name].data.tobytes(), f"{tensor.name} as {choice.type.name}"
    assert theirs.fields["general.file_type"].contents() == recipe.file_type
    assert theirs.fields["general.quantization_version"].contents() == 2
    return choices


@pytest.mark.parametrize("bf16", [False, True], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_types_and_bytes_are_llama_cpps(folder: Path, name: str, bf16: bool) -> None:
    source, output = source_file(folder, name, bf16), folder / "out.gguf"
    model = ModelFacts.from_metadata(family(name).keys)
    # Widths that do not fit change what F32 and BF16 sources have in common; a few recipes tell.
    few = bf16 and name.rpartition("-")[2].isdigit()
    tensors = facts_of(read(source))
    for recipe in map(recipes.recipe, ("f32", "bf16", "q8_0", "q4_k_m") if few else readable(tensors)):
        if name not in BY_ALL and recipe.name in RARE:
            continue
        if refused(recipe, tensors, model):
            answer = llama().ask(op="quantize", input=str(source), output=str(output), ftype=recipe.file_type)
            assert answer["rc"] != 0, recipe.name
        else:
            llama().quantize(source, output, recipe.file_type)
            compare(source, output, model, recipe)


RARE = {recipe.name for recipe in recipes.RECIPES.values() if recipe.base.on_grid} | {
    "tq1_0",
    "tq2_0",
    "q1_0",
    "mxfp4_moe",
}
BY_ALL = ("llama-gqa8", "mixtral")
"""The families that are written by the rare recipes too, some of whose tables take ggml seconds to set up."""


def readable(tensors: list[TensorFacts]) -> list[str]:
    """The recipes whose files can be compared: the gguf package cannot read q2_0, and llama.cpp refuses some rows for q1_0."""
    odd = any(tensor.shape[-1] % 128 for tensor in tensors)
    return [name for name in recipes.RECIPES if name != "q2_0" and not (name == "q1_0" and odd)]


def refused(recipe: recipes.TypeRecipe, tensors: list[TensorFacts], model: ModelFacts) -> bool:
    """Whether we refuse to write the file without an importance matrix."""
    try:
        recipes.require_importance(recipe, tensors, recipes.assign(recipe, model, tensors), ())
    except InputError:
        return True
    return False


@pytest.mark.parametrize("name", SEVENTY_B)
def test_values_of_a_70b_model(folder: Path, name: str) -> None:
    source, output, made = folder / f"70b-{name}.gguf", folder / "out.gguf", SEVENTY_B[name]()
    write(made, source, bf16=False)
    for recipe in map(recipes.recipe, ("q3_k_s", "q4_k_s", "q2_k")):
        llama().quantize(source, output, recipe.file_type)
        compare(source, output, ModelFacts.from_metadata(made.keys), recipe)


def importance(model: TinyModel, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """An importance for each column of each matrix (of each expert), some zero; none for the embedding."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in model.shapes.items():
        if len(shape) > 1 and not name.startswith("token_embd"):
            size = int(np.prod(shape[:-2])) * shape[-1]
            found[name] = (rng.exponential(1.0, size) * (rng.random(size) > 0.02)).astype(np.float32)
    return found


@pytest.mark.parametrize("name", ["llama-gqa8", "llama-640", "mixtral", "qwen3next", "qwen35moe"])
def test_with_an_importance_matrix(folder: Path, name: str) -> None:
    source, output, matrix = source_file(folder, name, True), folder / "out.gguf", folder / "matrix.npz"
    values = importance(family(name))
    np.savez(matrix, **values)  # type: ignore[arg-type]
    model = ModelFacts.from_metadata(family(name).keys, has_imatrix=True)
    tensors = facts_of(read(source))
    for recipe in map(recipes.recipe, readable(tensors)):
        if name not in BY_ALL and recipe.name in RARE:
            continue
        recipes.require_importance(recipe, tensors, recipes.assign(recipe, model, tensors), values)
        llama().quantize(source, output, recipe.file_type, imatrix=str(matrix))
        compare(source, output, model, recipe, imatrix=values)


@pytest.mark.parametrize("depth", [23, 56])
def test_the_first_layers_of_a_deep_model_with_an_importance_matrix(folder: Path, depth: int) -> None:
    """An eighth of 23 layers and of 56 is neither a seventh nor a ninth of them."""
    source, output, matrix = folder / f"deep-{depth}.gguf", folder / "out.gguf", folder / "matrix.npz"
    made = deep(depth)
    write(made, source, bf16=False)
    values = importance(made)
    np.savez(matrix, **values)  # type: ignore[arg-type]
    model = ModelFacts.from_metadata(made.keys, has_imatrix=True)
    for name in ("q4_0", "q5_0", "iq4_nl", "iq4_xs", "iq3_xxs", "iq3_m"):
        llama().quantize(source, output, recipes.recipe(name).file_type, imatrix=str(matrix))
        compare(source, output, model, recipes.recipe(name), imatrix=values)


OPTIONS = {
    "pure": TypeOptions(pure=True),
    "output": TypeOptions(output_type=writable_type("q8_0")),
    "embedding": TypeOptions(embedding_type=writable_type("Q5_K")),
    "overrides": TypeOptions(
        overrides=tuple(map(Override.parse, ("ffn_down=q8_0", r"blk\.[0-3]\..*=q5_1", "attn_v=Q6_K")))
    ),
    "all": TypeOptions(
        pure=True,
        output_type=writable_type("f16"),
        embedding_type=writable_type("q4_0"),
        overrides=(Override.parse("ffn_(up|gate)=iq4_xs"), Override.parse("token_embd=q8_0")),
    ),
    "keep-split": TypeOptions(file_order=True),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["llama-gqa8", "llama-tied", "qwen35moe"])
def test_options(folder: Path, name: str, option: str) -> None:
    source, options = source_file(folder, name, False), OPTIONS[option]
    output = folder / "out.gguf"
    # With keep_split llama.cpp makes a name of its own from the one given.
    told = folder / "split" if options.file_order else output
    written = folder / "split-00001-of-00001.gguf" if options.file_order else output
    model = ModelFacts.from_metadata(family(name).keys)
    for recipe in map(recipes.recipe, ("q4_k_m", "q3_k_m", "q2_k", "iq4_nl", "q8_0")):
        llama().quantize(
            source,
            told,
            recipe.file_type,
            pure=options.pure,
            keep_split=options.file_order,
            output_tensor_type=options.output_type and options.output_type.ggml_id,
            token_embedding_type=options.embedding_type and options.embedding_type.ggml_id,
            # llama.cpp takes the first override that matches, we the last.
            overrides=[(o.pattern.pattern, o.type.ggml_id) for o in reversed(options.overrides)],
        )
        compare(source, written, model, recipe, options)


@pytest.mark.parametrize("name", ["llama-640", "qwen3next"])
def test_from_a_quantized_file(folder: Path, name: str) -> None:
    source, middle, output = source_file(folder, name, True), folder / f"{name}-q8_0.gguf", folder / "out.gguf"
    model = ModelFacts.from_metadata(family(name).keys)
    llama().quantize(source, middle, recipes.recipe("q8_0").file_type)
    for recipe in map(recipes.recipe, ("q8_0", "q4_k_m", "q6_k", "f16", "f32")):
        llama().quantize(middle, output, recipe.file_type, allow_requantize=True)
        compare(middle, output, model, recipe)


def test_the_families_exercise_the_rules(folder: Path) -> None:
    """Guards the tests above: fall-backs of every kind, kept tensors and every written type do occur."""
    seen, fallen, reasons = set(), set(), set()
    for name in FAMILIES:
        facts = [TensorFacts(tensor, shape) for tensor, shape in family(name).shapes.items()]
        for recipe in recipes.RECIPES.values():
            for choice in recipes.assign(recipe, ModelFacts.from_metadata(family(name).keys), facts):
                seen.add(choice.type.name)
                fallen |= {(choice.wanted.name, choice.type.name)} if choice.fell_back else set()
                reasons |= {choice.reason} if choice.kept else set()
    assert {kind.name for kind in TYPES if kind.encodes} - {"nvfp4"} <= seen  # which no recipe has
    assert {("q4_K", "q5_0"), ("q6_K", "q8_0"), ("q5_K", "q5_1"), ("q3_K", "q4_0"), ("iq4_xs", "iq4_nl")} <= fallen
    assert {("q4_K", "f16"), ("q8_0", "f16"), ("q4_0", "f16")} <= fallen
    assert {"vector", "router", "convolution"} <= reasons
