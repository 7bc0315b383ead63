"""Type facts against the loaded library and the gguf package."""

from __future__ import annotations

import gguf
import pytest

from gguf_tools.errors import InputError
from quant import ggml, recipes, types
from quant.types import F16, Q4_K, TYPES, TensorType, row_bytes, tensor_type, type_of_id


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_type_facts_are_the_librarys(kind: TensorType) -> None:
    found = ggml.traits(kind)
    assert (found.type_name.decode(), found.block, found.block_bytes) == (kind.name, kind.block, kind.block_bytes)
    assert found.is_quantized == (not kind.plain)


def test_type_facts_are_those_of_the_gguf_package() -> None:
    known = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    ours = {kind.ggml_id: (kind.block, kind.block_bytes) for kind in TYPES}
    # The package leaves out q2_0; q8_1 and q8_K are types of activations, which no file holds.
    assert ours.items() - known.items() == {(42, (64, 18))}
    assert known.keys() - ours.keys() == {gguf.GGMLQuantizationType.Q8_1, gguf.GGMLQuantizationType.Q8_K}


def test_file_types_are_those_of_the_gguf_package() -> None:
    for name, recipe in recipes.RECIPES.items():
        if name == "q2_0":
            continue  # which the package leaves out too
        prefix = "ALL" if name == "f32" else "MOSTLY"
        assert recipe.file_type == gguf.LlamaFileType[f"{prefix}_{name.upper()}"]


def test_lookup() -> None:
    assert tensor_type("Q4_k") is Q4_K is type_of_id(12)
    assert recipes.recipe("Q4_K_M").base is Q4_K
    with pytest.raises(InputError, match=r"tensor type q4_x does not exist; similar types are q4_0, q4_1, q4_k"):
        tensor_type("q4_x")
    with pytest.raises(InputError, match=r"type q4_x does not exist; similar types are q4_0, q4_1, q4_k_m, q4_k_s"):
        recipes.recipe("q4_x")
    with pytest.raises(InputError, match=r"type zzz does not exist; similar types are .*q8_0"):
        recipes.recipe("zzz")
    with pytest.raises(InputError, match="number 4 is unknown"):
        type_of_id(4)


def test_row_bytes() -> None:
    assert row_bytes(Q4_K, 512) == 288
    assert row_bytes(F16, 3) == 6
    assert Q4_K.bits == 4.5
    with pytest.raises(InputError, match="row of 640 weights is not a multiple of 256, the block of q4_K"):
        row_bytes(Q4_K, 640)


def test_names_are_unique_in_either_case() -> None:
    assert len({kind.name.lower() for kind in types.TYPES}) == len(types.TYPES)
