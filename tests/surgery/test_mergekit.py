"""What mergekit makes of two models is what these ops make: its formulas here, and the package itself where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gguf_tools.errors import UnsupportedError
from surgery.checkpoint.rewrite import plan_checkpoint, write_checkpoint
from tests.oracle import convert
from tests.surgery.surgery_files import operated, raw_tensors, with_donors
from tests.tiny_models import checkpoint, dense, hybrid

Pair = tuple[Path, Path]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two tiny Qwen3 of one config in bfloat16."""
    folder = tmp_path_factory.mktemp("mergekit")
    a, b = (checkpoint(folder / str(seed), dense(), seed=seed, dtype=torch.bfloat16) for seed in (0, 1))
    return a, b


def made(pair: Pair, out: Path, recipe: str) -> Tensors:
    """The tensors of the folder after the recipe."""
    write_checkpoint(plan_checkpoint(pair[0], with_donors(recipe, {"B": pair[1]})), out)
    return dict(load_file(out / "model.safetensors"))


def blended(alpha: float, method: str) -> str:
    """The recipe that blends every layer with the other model's."""
    return " + ".join(f"interpolate({n}:B:{n}@{alpha}={n},{method})" for n in range(3))


def by_formula(pair: Pair, alpha: float, method: str) -> Tensors:
    """Each tensor of the layers by mergekit's documented formulas (linear: a weighted mean; slerp: one angle a tensor)."""
    a, b = (load_file(path / "model.safetensors") for path in pair)
    found = {}
    for name, tensor in a.items():
        x, y = tensor.double(), b[name].double()
        left, right = 1 - alpha, alpha
        if method == "slerp-tensor":
            angle = torch.arccos((x * y).sum() / (x.norm() * y.norm()))
            left, right = (float(torch.sin(share * angle) / torch.sin(angle)) for share in (left, right))
        found[name] = left * x + right * y
    return found


def units(found: torch.Tensor, wanted: torch.Tensor, *inputs: torch.Tensor) -> float:
    """The largest difference in units of bfloat16's last place (8 bits), of the largest of what is wanted and the inputs."""
    sizes = torch.stack([part.double().abs() for part in (wanted, *inputs)])
    _, exponent = torch.frexp(sizes.amax(0))
    unit = torch.ldexp(torch.ones_like(wanted, dtype=torch.float64), exponent - 8)
    return float(((found.double() - wanted.double()).abs() / unit).max())


@pytest.mark.parametrize("method", ["linear", "slerp-tensor"])
@pytest.mark.parametrize("alpha", [0.3, 0.5])
def test_blends_are_those_of_the_formula_to_half_a_unit(pair: Pair, tmp_path: Path, method: str, alpha: float) -> None:
    found, wanted = made(pair, tmp_path / "out", blended(alpha, method)), by_formula(pair, alpha, method)
    for name, tensor in found.items():
        if ".layers." in name:
            assert tensor.dtype == torch.bfloat16
            assert units(tensor, wanted[name]) <= 0.5 + 1e-6, name


def test_passthrough_is_a_graft(pair: Pair, tmp_path: Path) -> None:
    """Slices 0..1 of the first and 1..2 of the second model, one after the other."""
    found = made(pair, tmp_path / "out", "path(0..1) + graft(B:1..2@2)")
    a, b = (load_file(path / "model.safetensors") for path in pair)
    layers = [(a, 0), (a, 1), (b, 1), (b, 2)]
    for n, (source, index) in enumerate(layers):
        names = [name for name in source if name.startswith(f"model.layers.{index}.")]
        assert len(names) == 11
        for name in names:
            assert torch.equal(found[name.replace(f".layers.{index}.", f".layers.{n}.")], source[name])
    assert not any(name.startswith("model.layers.4.") for name in found)


def test_a_folder_and_its_file_blend_alike(pair: Pair, tmp_path: Path) -> None:
    recipe = blended(0.3, "slerp-tensor")
    folder = tmp_path / "out"
    made(pair, folder, recipe)
    first = convert(folder, tmp_path / "first.gguf", "bf16")
    a, b = (convert(path, tmp_path / f"{path.name}.gguf", "bf16") for path in pair)
    second = operated(a, tmp_path / "second.gguf", recipe, {"B": b})
    # Norms are F32 in a GGUF, where their blend is not rounded to bfloat16.
    wanted = {name: tensor for name, tensor in raw_tensors(first).items() if tensor[0].upper() == "BF16"}
    found = raw_tensors(second)
    assert len(wanted) >= 3 * 7
    assert {name: found[name] for name in wanted} == wanted


def test_tensors_of_several_matrices_have_no_one_angle(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "hf", hybrid())
    with pytest.raises(
        UnsupportedError, match="holds several matrices, between which slerp-tensor would have one angle"
    ):
        plan_checkpoint(source, with_donors("merge(0:2, method=slerp-tensor)", {}))
    whole = convert(source, tmp_path / "whole.gguf")
    with pytest.raises(UnsupportedError, match="slerp-tensor has one angle for each tensor of a checkpoint"):
        operated(whole, tmp_path / "no.gguf", "merge(0:2, method=slerp-tensor)")


CONFIGS: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear"},
    "slerp-tensor": {"merge_method": "slerp", "parameters": {"t": 0.3}},
}


@pytest.mark.parametrize("method", CONFIGS)
def test_the_package_makes_the_same_to_a_unit(pair: Pair, tmp_path: Path, method: str) -> None:
    pytest.importorskip("mergekit", reason="mergekit is not installed")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    a, b = map(str, pair)
    config = {**CONFIGS[method], "dtype": "bfloat16"}
    if method == "linear":
        config["models"] = [{"model": a, "parameters": {"weight": 0.7}}, {"model": b, "parameters": {"weight": 0.3}}]
        recipe = blended(0.3, "linear")
    else:
        config |= {"models": [{"model": a}, {"model": b}], "base_model": a}
        recipe = blended(0.3, "slerp-tensor")
    run_merge(MergeConfiguration.model_validate(config), str(tmp_path / "theirs"), MergeOptions(copy_tokenizer=False))
    theirs = dict(load_file(tmp_path / "theirs" / "model.safetensors"))
    ours = made(pair, tmp_path / "ours", recipe)
    first, second = (load_file(path / "model.safetensors") for path in pair)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if ".layers." in name:
            # Its products are rounded before they are added, so that a unit of the terms is left where they cancel.
            assert units(tensor, theirs[name], first[name], second[name]) <= 1.0, name
