"""Surgery on checkpoints: folders that follow in every file, whole or not at all."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gguf_tools.errors import CheckpointError, InputError, OutputError, UnsupportedError
from gguf_tools.families.registry import load_model
from gguf_tools.formats.data_file import DataFile
from gguf_tools.model.spec import GatedMLP, MoE
from gguf_tools.sources.checkpoint import open_checkpoint
from surgery.arithmetic import rounded_to
from surgery.checkpoint.config import followed
from surgery.checkpoint.rewrite import plan_checkpoint, write_checkpoint
from surgery.model import operate
from surgery.recipe import parse_text, read_file
from tests.oracle import convert, nmse, reference
from tests.surgery.surgery_files import operation, raw_tensors
from tests.tiny_models import (
    change_config,
    change_tensors,
    checkpoint,
    dense,
    fuse_experts,
    hybrid,
    logits,
    moe,
    tensors,
)

PROMPTS = ((3, 1, 4, 1, 5, 9, 2, 6), (7, 200, 11))


def operated(source: Path, out: Path, recipe: str, *, force: bool = False) -> Path:
    write_checkpoint(plan_checkpoint(source, parse_text(recipe)), out, force=force)
    return out


def test_a_lone_surrogate_of_the_config_stays_an_escape(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", dense())
    config = json.loads((source / "config.json").read_text("utf-8"))
    (source / "config.json").write_text(json.dumps({**config, "_note\ud800": "\udfff é"}), "utf-8")
    out = operated(source, tmp_path / "out", "swap(0:1)")
    assert '"_note\\ud800": "\\udfff é"' in (out / "config.json").read_text("utf-8")
    assert config_of(out)["_note\ud800"] == "\udfff é"


def config_of(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "config.json").read_text("utf-8"))
    return found


def agrees(folder: Path, source: Path, recipe: str) -> bool:
    """Whether transformers computes what the reference says of the operated model."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    want = reference(operate(load_model(source), parse_text(recipe)), PROMPTS)
    return nmse([part.numpy() for part in logits(network, PROMPTS)], want) <= 1e-9


def test_a_file_beside_that_cannot_be_read_is_named(
    qwen3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the output, which could have been written."""
    read = DataFile.read

    def fail(file: DataFile, offset: int, count: int) -> bytearray:
        if file.path.name == "tokenizer_config.json":
            raise CheckpointError(f"{file.path}: cannot be read at byte {offset} (Input/output error); check the disk")
        return read(file, offset, count)

    monkeypatch.setattr(DataFile, "read", fail)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: cannot be read"):
        operated(qwen3_folder, tmp_path / "out", "swap(0:1)")
    assert list(tmp_path.iterdir()) == []


def test_shards_index_and_other_files_follow(sharded_folder: Path, tmp_path: Path) -> None:
    recipe = "duplicate(0) + swap(1:3)"
    (sharded_folder / "README.md").write_text("hello")
    out = operated(sharded_folder, tmp_path / "out", recipe)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 1
    assert files == {path.name for path in out.glob("*.safetensors")}
    held = {name: load_file(out / name) for name in files}
    assert {name: file for file, part in held.items() for name in part} == index["weight_map"]
    total = sum(t.numel() * t.element_size() for part in held.values() for t in part.values())
    assert index["metadata"]["total_size"] == total
    beside = {path.name for path in sharded_folder.iterdir() if "safetensors" not in path.name}
    assert beside | {"tinyq-recipe.toml"} == {path.name for path in out.iterdir() if "safetensors" not in path.name}
    assert (out / "README.md").read_text() == "hello"
    assert agrees(out, sharded_folder, recipe)


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "hf", dense(tie_word_embeddings=True))
    out = operated(source, tmp_path / "out", "bridge(0:2)")
    assert "lm_head.weight" not in tensors(out)
    assert load_model(out).spec.tied
    assert agrees(out, source, "bridge(0:2)")


def test_what_moves_keeps_its_bits_and_what_is_made_its_type(qwen3_folder: Path, tmp_path: Path) -> None:
    out = operated(qwen3_folder, tmp_path / "out", "interpolate(0:2, 0.3) + swap(0:3)")
    before, after = tensors(qwen3_folder), tensors(out)
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    for name, tensor in before.items():
        if name.startswith("model.layers."):
            _, _, number, rest = name.split(".", 3)
            place = {0: 3, 1: 2, 2: 0}[int(number)]
            assert torch.equal(after[f"model.layers.{place}.{rest}"].view(torch.int16), tensor.view(torch.int16))
            if number == "0":
                other = before[f"model.layers.2.{rest}"]
                exact = 0.7 * tensor.double() + 0.3 * other.double()
                # Not by torch, which rounds float64 to bfloat16 by way of float32.
                assert np.array_equal(
                    after[f"model.layers.1.{rest}"].float().numpy(), rounded_to(exact.numpy(), "BF16")
                )


def test_one_pass_gives_the_same_numbers_in_bfloat16_too(hybrid_folder: Path, tmp_path: Path) -> None:
    recipe = "interpolate(0:2, 0.3, method=slerp) + scale(1@0.7)"
    folder = operated(hybrid_folder, tmp_path / "out", recipe)
    for kind in ("f32", "bf16", "auto"):
        first = convert(folder, tmp_path / f"first-{kind}.gguf", kind)
        second = convert(hybrid_folder, tmp_path / f"second-{kind}.gguf", kind, operation=operation(recipe))
        assert raw_tensors(first) == raw_tensors(second)


def test_layer_types_follow(hybrid_folder: Path, tmp_path: Path) -> None:
    out = operated(hybrid_folder, tmp_path / "out", "swap(0:1) + duplicate(0)")
    linear, full = "linear_attention", "full_attention"
    assert config_of(out)["layer_types"] == [full, full, linear, linear]
    assert config_of(out)["num_hidden_layers"] == 4
    assert load_model(out).notes == load_model(hybrid_folder).notes


def test_implied_layer_types_are_written_out(tmp_path: Path, copied: Callable[[Path], Path]) -> None:
    kinds = ["linear_attention", "full_attention"] * 2
    source = checkpoint(tmp_path / "hf", hybrid(layer_types=kinds, full_attention_interval=2))
    change_config(source, {"full_attention_interval": 2}, remove=["layer_types"])
    out = operated(source, tmp_path / "out", "delete(0)")
    assert config_of(out)["layer_types"] == kinds[1:]
    assert agrees(out, source, "delete(0)")


def test_dense_layers_among_experts_follow(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "hf", moe(num_hidden_layers=4, mlp_only_layers=[0], decoder_sparse_step=2))
    kinds = [type(layer.feed_forward) for layer in load_model(source).spec.layers]
    assert kinds == [GatedMLP, MoE, GatedMLP, MoE]
    recipe = "swap(0:1) + duplicate(1)"
    out = operated(source, tmp_path / "out", recipe)
    assert config_of(out)["mlp_only_layers"] == [1, 2, 3]
    assert config_of(out)["decoder_sparse_step"] == 1
    assert agrees(out, source, recipe)


def test_fused_experts_are_sliced(tmp_path: Path) -> None:
    source = change_tensors(checkpoint(tmp_path / "hf", moe()), fuse_experts)
    recipe = "drop-experts(0..2:2) + swap-experts(1:0:2)"
    out = operated(source, tmp_path / "out", recipe)
    assert config_of(out)["num_local_experts"] == 3
    assert torch.equal(
        tensors(out)["model.layers.1.mlp.experts.gate_up_proj"],
        tensors(source)["model.layers.1.mlp.experts.gate_up_proj"][[3, 1, 0]],
    )
    model = load_model(out)
    assert nmse(reference(model, PROMPTS), reference(operate(load_model(source), parse_text(recipe)), PROMPTS)) == 0.0


def test_every_other_list_of_the_layers_follows(qwen3_folder: Path) -> None:
    model = load_model(qwen3_folder)
    stack = parse_text("swap(0:2) + bridge(1:2)").apply(3)
    new = operate(model, parse_text("swap(0:2) + bridge(1:2)"))
    config = {
        "num_hidden_layers": 3,
        "layer_types": ["a", "b", "c"],
        "mlp_layer_types": ["dense", "sparse", "other"],
        "no_rope_layers": [1, 1, 1],
        "num_attention_heads": 4,
        "eos_token_id": [5, 6, 7],
        "architectures": ["x", "y", "z"],
        "text_config": {"n_layer": 3, "windows": [7, 8, 9], "two": [1, 2]},
        "first_k_dense_replace": 0,
    }
    got = followed(config, model.spec, new.spec, stack)
    assert got == {
        **config,
        "num_hidden_layers": 4,
        "layer_types": ["c", "b", "a", "b"],
        "mlp_layer_types": ["other", "sparse", "dense", "sparse"],
        "no_rope_layers": [1, 1, 1, 1],
        "text_config": {"n_layer": 4, "windows": [9, 8, 7, 8], "two": [1, 2]},
    }


def test_leading_dense_layers_must_stay_leading(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "hf", moe(num_hidden_layers=3, mlp_only_layers=[0]))
    model = load_model(source)

    def count(recipe: str) -> object:
        new = operate(model, parse_text(recipe)).spec
        return followed({"first_k_dense_replace": 1}, model.spec, new, parse_text(recipe).apply(3))[
            "first_k_dense_replace"
        ]

    assert count("duplicate(0)") == 2
    assert count("swap(1:2)") == 1
    with pytest.raises(UnsupportedError, match="layer 2 would be dense"):
        count("swap(0:2)")


def test_layers_with_experts_must_stay_consecutive_in_ernie(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "hf", moe(num_hidden_layers=3, mlp_only_layers=[0]))
    model = load_model(source)
    config = {"moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1}

    def span(recipe: str) -> tuple[object, object]:
        new = operate(model, parse_text(recipe)).spec
        got = followed(config, model.spec, new, parse_text(recipe).apply(3))
        return got["moe_layer_start_index"], got["moe_layer_end_index"]

    assert span("duplicate(0)") == (2, 3)
    assert span("swap(0:2)") == (0, 1)
    assert span("delete(1..2)") == (1, 1)
    with pytest.raises(UnsupportedError, match="layer 1 would be dense between"):
        span("swap(0:1)")


def test_the_recipe_lies_beside_and_grows(qwen3_folder: Path, tmp_path: Path) -> None:
    once = operated(qwen3_folder, tmp_path / "once", "duplicate(0)")
    twice = operated(once, tmp_path / "twice", "swap(0:3)")
    recipe = read_file(twice / "tinyq-recipe.toml")
    assert str(recipe) == "duplicate(0) + swap(0:3)"
    assert recipe.layers == 3
    again = operated(qwen3_folder, tmp_path / "again", str(recipe))
    assert (again / "model.safetensors").read_bytes() == (twice / "model.safetensors").read_bytes()
    from gguf_tools.formats.gguf.header import read_header

    made = read_header(convert(twice, tmp_path / "twice.gguf"))
    assert made.get("tinyq.surgery") is None
    assert "swap(0:3)" in made.get("tinyq.source.recipe")


def test_a_state_dict_becomes_a_folder(qwen3_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "plain"
    source.mkdir()
    named = {f"_orig_mod.{name}": tensor for name, tensor in tensors(qwen3_folder).items()}
    torch.save(named, source / "model.pt")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (source / name).write_bytes((qwen3_folder / name).read_bytes())
    (source / "holiday.txt").write_text("not the model's")
    out = operated(source / "model.pt", tmp_path / "out", "merge(0:2)")
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json", "model.safetensors", "tinyq-recipe.toml", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert agrees(out, qwen3_folder, "merge(0:2)")


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("swap(0:7)", "no layer 7; the model has 3 layers at this point, 0 to 2"),
        ("drop-experts(0:1)", "layer 0 has no experts"),
        ("delete(0..2)", "all 3 layers would be deleted"),
    ],
)
def test_what_cannot_be_done_leaves_nothing(qwen3_folder: Path, tmp_path: Path, recipe: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        operated(qwen3_folder, tmp_path / "out", recipe)
    assert list(tmp_path.iterdir()) == []


def test_experts_must_be_as_many_in_every_layer(sharded_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layer 1 would have 3 experts and layer 0 4"):
        operated(sharded_folder, tmp_path / "out", "drop-experts(1:0)")
    with pytest.raises(InputError, match="1 of 4 experts would remain, but 2 are selected"):
        operated(sharded_folder, tmp_path / "out", "drop-experts(0..2:0, 1, 2)")
    assert list(tmp_path.iterdir()) == []


def test_outputs_do_not_touch_sources_or_strangers(
    qwen3_folder: Path, tmp_path: Path, copied: Callable[[Path], Path]
) -> None:
    source = copied(qwen3_folder)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    refused = {
        source: "is also an input",
        source / "inside": "lies in the source",
        source.parent: "is a folder without",
    }
    for out, why in refused.items():
        with pytest.raises(OutputError, match=why):
            operated(source, out, "swap(0:1)", force=True)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "letters.txt").write_text("dear all")
    for force in (False, True):
        with pytest.raises(OutputError):
            operated(source, stranger, "swap(0:1)", force=force)
    with pytest.raises(OutputError, match="does not exist"):
        operated(source, tmp_path / "none" / "out", "swap(0:1)")
    out = operated(source, tmp_path / "out", "swap(0:1)")
    with pytest.raises(OutputError, match="exists already"):
        operated(source, out, "swap(0:1)")
    operated(source, out, "duplicate(0)", force=True)
    assert config_of(out)["num_hidden_layers"] == 4


def test_a_full_disk_leaves_nothing(qwen3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_checkpoint(qwen3_folder, parse_text("swap(0:1)"))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="the disk is full"):
        write_checkpoint(plan, tmp_path / "out", progress=full)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_no_folder_and_the_next_one_tidies(qwen3_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = plan_checkpoint(qwen3_folder, parse_text("swap(0:1)"))
    child = os.fork()
    if not child:
        write_checkpoint(plan, out, progress=lambda _: os.kill(os.getpid(), signal.SIGKILL))
        os._exit(0)
    os.waitpid(child, 0)
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == 1
    operated(qwen3_folder, out, "swap(0:1)")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_unknown_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        plan_checkpoint(tmp_path / "none", parse_text("swap(0:1)"))


def test_memory_is_bounded_by_pieces(qwen3_folder: Path, tmp_path: Path) -> None:
    plan = plan_checkpoint(qwen3_folder, parse_text("interpolate(0:2, 0.5)"))
    sizes: list[int] = []
    write_checkpoint(plan, tmp_path / "out", progress=sizes.append)
    assert max(sizes) <= 4 << 20
    assert sum(sizes) == plan.size
    assert np.isclose(plan.size, (tmp_path / "out" / "model.safetensors").stat().st_size, rtol=0.1)
    assert open_checkpoint(tmp_path / "out").metadata == {"format": "pt"}


def test_torch_shards_with_wrapped_names_become_a_plain_folder(tmp_path: Path) -> None:
    source, recipe = checkpoint(tmp_path / "source", dense()), "swap(0:2)"
    state = {f"module.{name.replace('.mlp.', '._orig_mod.mlp.')}": tensor for name, tensor in tensors(source).items()}
    (source / "model.safetensors").unlink()
    where: dict[str, str] = {}
    for n, part in enumerate((list(state)[::2], list(state)[1::2]), 1):
        file = f"pytorch_model-{n:05d}-of-00002.bin"
        torch.save({name: state[name] for name in part}, source / file)
        where |= dict.fromkeys(part, file)
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}), "utf-8")
    out = operated(source, tmp_path / "out", recipe)
    assert not list(out.glob("pytorch_model*"))
    assert agrees(out, source, recipe)
