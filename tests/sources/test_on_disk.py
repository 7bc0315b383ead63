"""One model saved in the ways that trainers and libraries save it: read in each as transformers computes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import AutoModelForCausalLM, PreTrainedModel

from gguf_tools.errors import CheckpointError, InputError, UnsupportedError
from gguf_tools.families.registry import build_model, load_model
from gguf_tools.sources.checkpoint import INDEX, SINGLE, TORCH_INDEX, TORCH_SINGLE, open_checkpoint
from gguf_tools.sources.names import plain_names
from tests.conftest import Ran
from tests.oracle import PROMPTS, Logits, convert, llama, nmse, reference
from tests.tiny_models import change_config, dense, in_float64, logits, network, save

SAME_ARITHMETIC = 1e-24
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Trained:
    """A model of transformers, its weights, and its logits in float64."""

    model: PreTrainedModel
    state: State
    expected: Logits


def _trained(**changes: Any) -> Trained:
    with in_float64():
        model = network(dense(**changes))
        expected = [part.numpy() for part in logits(model, PROMPTS)]
    # A copy each: transformers' own loading and torch.compile leave marks on a model.
    return Trained(model, {name: tensor.float().clone() for name, tensor in model.state_dict().items()}, expected)


@pytest.fixture(scope="module")
def untied() -> Trained:
    return _trained()


@pytest.fixture(scope="module")
def tied() -> Trained:
    return _trained(tie_word_embeddings=True)


def folder_of(trained: Trained, folder: Path) -> Path:
    """The config alone, without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    trained.model.config.architectures = ["Qwen3ForCausalLM"]
    trained.model.config.save_pretrained(folder)
    return folder


def agrees(path: Path, trained: Trained, *notes: str) -> None:
    """The reference computes from `path` what transformers does, and each of `notes` is said."""
    model = load_model(path)
    assert nmse(reference(model), trained.expected) <= SAME_ARITHMETIC
    for note in notes:
        assert any(note in said for said in model.notes), (note, model.notes)


def refused(path: Path, kind: type[InputError] = CheckpointError) -> str:
    with pytest.raises(kind) as raised:
        load_model(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def renamed(state: State, rename: Callable[[str], str]) -> State:
    return {rename(name): tensor for name, tensor in state.items()}


def write_shards(folder: Path, state: State, index: str) -> dict[str, str]:
    """Two shards and their index, torch's or safetensors' by the index's name."""
    torch_files = index == TORCH_INDEX
    names = list(state)
    where: dict[str, str] = {}
    for n, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        stem, suffix = ("pytorch_model", "bin") if torch_files else ("model", "safetensors")
        file = f"{stem}-{n:05d}-of-00002.{suffix}"
        held = {name: state[name] for name in part}
        torch.save(held, folder / file) if torch_files else save_file(held, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": where}), "utf-8")
    return where


WRAPPED: dict[str, Callable[[str], str]] = {
    "every layer compiled": lambda name: name.replace("layers.1.", "layers.1._orig_mod."),
    "compiled whole, in DDP": lambda name: f"module._orig_mod.{name}",
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name.replace('.mlp.', '.mlp._fsdp_wrapped_module.')}",
    "Lightning Fabric": lambda name: f"_forward_module.{name}",
    "PEFT, merged": lambda name: f"base_model.model.{name}",
    "Lightning": lambda name: f"model.{name}",
    "Lightning, compiled": lambda name: f"model._orig_mod.{name}",
    "an attribute of another name": lambda name: f"student.net.{name}",
}


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_wrappers_are_taken_off_names(untied: Trained, tmp_path: Path, how: str, form: str) -> None:
    folder, state = folder_of(untied, tmp_path), renamed(untied.state, WRAPPED[how])
    torch.save(state, folder / "model.pt") if form == "pt" else save_file(state, folder / SINGLE)
    agrees(folder, untied, "wrapper prefixes in tensor names")


def test_wrappers_of_torch_itself(untied: Trained, tmp_path: Path) -> None:
    folder = folder_of(untied, tmp_path)
    model = type(untied.model)(untied.model.config)
    model.load_state_dict(untied.state)
    for n, layer in enumerate(model.model.layers):
        layer.mlp = checkpoint_wrapper(layer.mlp)
        model.model.layers[n] = torch.compile(layer)
    # The checkpoint wrapper takes its name out of the state dict by itself, FSDP's sharded ones do not.
    assert any("_orig_mod" in name for name in model.state_dict())
    torch.save(model.state_dict(), folder / "model.pt")
    agrees(folder, untied)


def test_a_tied_model_under_a_prefix(tied: Trained, tmp_path: Path) -> None:
    """All names begin with model. in both: the published one keeps it."""
    state = {name: tensor for name, tensor in tied.state.items() if name != "lm_head.weight"}
    for n, prefix in enumerate(("", "model.", "net.")):
        folder = folder_of(tied, tmp_path / str(n))
        save_file(renamed(state, lambda name, prefix=prefix: prefix + name), folder / SINGLE)  # type: ignore[misc]
        agrees(folder, tied)


def test_two_tensors_of_one_name(untied: Trained, tmp_path: Path) -> None:
    folder = folder_of(untied, tmp_path)
    save_file(untied.state | {"model._orig_mod.norm.weight": torch.ones(48)}, folder / SINGLE)
    assert "model._orig_mod.norm.weight and model.norm.weight both become model.norm.weight" in refused(folder)


@pytest.mark.parametrize(
    "names",
    [
        ("w.weight",),
        ("model.embed_tokens.weight", "model.layers.0.x"),
        ("model.embed_tokens.weight", "mtp.embed_tokens.weight", "lm_head.weight"),
        ("model.language_model.embed_tokens.weight", "model.visual.x"),
        ("a.embed_tokens.weight", "b.embed_tokens.weight"),
        ("thinker.model.embed_tokens.weight", "talker.x"),
        ("blocks.0.x", "embed.weight"),
    ],
)
def test_names_that_have_no_wrapper(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert plain_names(tmp_path, names) == ({name: name for name in names}, ())


def test_a_decoder_by_itself(untied: Trained, tied: Trained, tmp_path: Path) -> None:
    folder = folder_of(tied, tmp_path / "tied")
    inner = {name.removeprefix("model."): tensor for name, tensor in tied.state.items() if name != "lm_head.weight"}
    save_file(inner, folder / SINGLE, {"format": "pt"})
    agrees(folder, tied, "lack the prefix `model.`")
    folder = folder_of(untied, tmp_path / "untied")
    save_file(renamed(untied.state, lambda name: name.removeprefix("model.")), folder / SINGLE, {"format": "pt"})
    agrees(folder, untied, "lack the prefix `model.`")
    save_file(inner, folder / SINGLE, {"format": "pt"})
    assert "lm_head.weight is missing, and config.json says that it is not tied" in refused(folder)


@pytest.mark.parametrize("index", [INDEX, TORCH_INDEX])
def test_shards(untied: Trained, tmp_path: Path, index: str) -> None:
    folder = folder_of(untied, tmp_path)
    write_shards(folder, untied.state, index)
    torch.save({"lr": 1}, folder / "training_args.bin")
    agrees(folder, untied)
    assert [path.name.split("-")[1] for path in open_checkpoint(folder).weight_files] == ["00001", "00002"]


def test_torch_shards_become_a_gguf(untied: Trained, tmp_path: Path) -> None:
    folder = save(untied.model, tmp_path / "source")
    (folder / SINGLE).unlink()
    write_shards(folder, untied.state, TORCH_INDEX)
    assert nmse(llama(convert(folder, tmp_path / "out.gguf"))[0], untied.expected) <= 1e-9


def test_a_token_added_without_a_row(tmp_path: Path, tinyq: Callable[..., Ran]) -> None:
    """As many rows as tokens, and one token more in the tokenizer: a padding token added without resizing."""
    rows = 267
    prompts = [[n % rows for n in prompt] for prompt in PROMPTS]
    with in_float64():
        model = network(dense(vocab_size=rows))
        expected = [part.numpy() for part in logits(model, prompts)]
    folder, out = save(model, tmp_path / "source"), tmp_path / "out.gguf"
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": rows, "content": "<|PAD|>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    ran = tinyq("convert", folder, out, "--type", "f32")
    assert ran.code == 2
    assert "none for '<|PAD|>' (267); leave these out with --drop-tokens" in ran.err
    assert not out.exists()
    ran = tinyq("convert", folder, out, "--type", "f32", "--drop-tokens")
    assert ran.code == 0, ran.err
    assert "tokens beyond the 267 rows of the embeddings are left out: '<|PAD|>' (267)" in ran.out
    assert nmse(llama(out, prompts)[0], expected) <= 1e-9


def test_a_shard_that_leads_out_of_the_folder(untied: Trained, tmp_path: Path) -> None:
    folder = folder_of(untied, tmp_path)
    where = write_shards(folder, untied.state, TORCH_INDEX)
    (folder / TORCH_INDEX).write_text(json.dumps({"weight_map": where | {"lm_head.weight": "../x.bin"}}), "utf-8")
    assert "'../x.bin'; expected a plain file name" in refused(folder)


def test_of_several_places_the_one_that_transformers_reads(untied: Trained, tmp_path: Path) -> None:
    """Each place is filled with other weights; the note names what is not read."""
    places = (SINGLE, INDEX, TORCH_SINGLE, TORCH_INDEX)
    folder = folder_of(untied, tmp_path)
    for n, place in reversed(list(enumerate(places))):
        state = {name: tensor + n for name, tensor in untied.state.items()}
        if place in (INDEX, TORCH_INDEX):
            write_shards(folder, state, place)
        elif place == SINGLE:
            save_file(state, folder / place, {"format": "pt"})
        else:
            torch.save(state, folder / place)
        theirs = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        opened = open_checkpoint(folder)
        name = "model.norm.weight"
        np.testing.assert_array_equal(opened.tensors[name].array(), theirs[name].float().numpy())
        np.testing.assert_array_equal(opened.tensors[name].array(), state[name].numpy())
    assert opened.notes == (
        f"{SINGLE} is read, as transformers does; other weights in the folder are ignored ({INDEX}, {TORCH_SINGLE})",
    )


def test_what_accelerate_writes(tied: Trained, tmp_path: Path) -> None:
    folder = folder_of(tied, tmp_path)
    torch.save(tied.state, folder / TORCH_SINGLE)
    for name in ("optimizer", "scheduler", "sampler", "sampler_1", "dl_state_dict", "random_states_0"):
        torch.save({"state": {}}, folder / f"{name}.{'pkl' if name.startswith('random') else 'bin'}")
    agrees(folder, tied)
    (folder / TORCH_SINGLE).rename(folder / "weights.bin")
    agrees(folder, tied)


def test_a_tied_pair_under_its_second_name(tied: Trained, tmp_path: Path) -> None:
    folder = folder_of(tied, tmp_path)
    model = type(tied.model)(tied.model.config)
    model.load_state_dict(tied.state)
    model.tie_weights()
    save_model(model, str(folder / SINGLE))
    opened = open_checkpoint(folder)
    assert "lm_head.weight" in opened.tensors
    assert "model.embed_tokens.weight" not in opened.tensors
    agrees(folder, tied, "by the file's metadata, model.embed_tokens.weight is the same tensor as lm_head.weight")
    assert load_model(folder).spec.tied


@pytest.mark.parametrize("gone", ["lm_head.weight", "model.embed_tokens.weight"])
@pytest.mark.parametrize("said", [True, False, None])
def test_either_of_a_tied_pair_is_enough_unless_the_config_says_no(
    tied: Trained, tmp_path: Path, gone: str, said: bool | None
) -> None:
    folder = folder_of(tied, tmp_path)
    save_file({name: tensor for name, tensor in tied.state.items() if name != gone}, folder / SINGLE, {"format": "pt"})
    change_config(folder, {"tie_word_embeddings": said}, ["tie_word_embeddings"] if said is None else [])
    if said is False:
        assert f"tensor {gone} is missing" in refused(folder)
    else:
        change_config(folder, {"tie_word_embeddings": said})  # null is as good as nothing
        agrees(folder, tied, *(["does not give tie_word_embeddings"] if said is None else []))


def test_a_pair_that_differs_is_not_tied_whatever_the_config_says(untied: Trained, tmp_path: Path) -> None:
    folder = folder_of(untied, tmp_path)
    save_file(untied.state, folder / SINGLE, {"format": "pt"})
    change_config(folder, {"tie_word_embeddings": True})
    agrees(folder, untied, "config.json says tie_word_embeddings True, but by the tensors it is False")


@pytest.mark.parametrize(("outer", "inner"), [(True, False), (False, True), (True, None), (None, True)])
def test_tying_on_two_levels(tied: Trained, tmp_path: Path, outer: bool | None, inner: bool | None) -> None:
    folder = folder_of(tied, tmp_path)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config.pop("tie_word_embeddings")
    stated = {key: value for key, value in (("outer", outer), ("inner", inner)) if value is not None}
    text = config | ({"tie_word_embeddings": stated["inner"]} if "inner" in stated else {})
    whole = {"text_config": text} | ({"tie_word_embeddings": stated["outer"]} if "outer" in stated else {})
    (folder / "config.json").write_text(json.dumps(whole), "utf-8")
    state = {
        name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in tied.state.items()
        if name != "lm_head.weight"
    }
    save_file(state, folder / SINGLE, {"format": "pt"})
    agrees(folder, tied)


def test_an_index_that_lists_a_tied_head(untied: Trained, tied: Trained, tmp_path: Path) -> None:
    for trained, folder in ((tied, tmp_path / "tied"), (untied, tmp_path / "untied")):
        folder_of(trained, folder)
        state = {name: tensor for name, tensor in trained.state.items() if name != "lm_head.weight"}
        where = write_shards(folder, state, INDEX)
        where["lm_head.weight"] = where["model.norm.weight"]
        (folder / INDEX).write_text(json.dumps({"weight_map": where}), "utf-8")
    agrees(tmp_path / "tied", tied, "lists lm_head.weight, but no shard holds it: it is tied")
    assert "tensor lm_head.weight is missing, though" in refused(tmp_path / "untied")


@pytest.mark.parametrize("head", ["v_head.summary.weight", "score.weight", "reward_head.weight"])
def test_a_head_beside_the_output_projection(untied: Trained, tied: Trained, tmp_path: Path, head: str) -> None:
    extra = {head: torch.randn(1, 48)}
    folder = folder_of(untied, tmp_path / "untied")
    save_file(untied.state | extra, folder / SINGLE, {"format": "pt"})
    agrees(folder, untied, f"{head} (a value or classification head) is left out")
    folder = folder_of(tied, tmp_path / "tied")
    save_file({n: t for n, t in tied.state.items() if n != "lm_head.weight"} | extra, folder / SINGLE)
    agrees(folder, tied, f"{head} (a value or classification head) is left out")


def test_the_value_head_of_a_wrapped_model(untied: Trained, tmp_path: Path) -> None:
    folder = folder_of(untied, tmp_path)
    state = renamed(untied.state, lambda name: f"pretrained_model.{name}")
    torch.save(state | {"v_head.summary.weight": torch.randn(1, 48)}, folder / TORCH_SINGLE)
    agrees(folder, untied, "pretrained_model", "v_head.summary.weight")


def test_a_classification_model_is_refused_by_name(untied: Trained, tmp_path: Path) -> None:
    folder = folder_of(untied, tmp_path)
    state = {name: tensor for name, tensor in untied.state.items() if name != "lm_head.weight"}
    save_file(state | {"score.weight": torch.randn(2, 48)}, folder / SINGLE, {"format": "pt"})
    assert "is a classification model (score.weight exists" in refused(folder, UnsupportedError)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "belongs to a LoRA adapter"),
        ("model.layers.0._fsdp_wrapped_module._flat_param", "is a flattened parameter of FSDP"),
    ],
)
def test_what_is_refused_still(untied: Trained, tmp_path: Path, name: str, what: str) -> None:
    folder = folder_of(untied, tmp_path)
    save_file(untied.state | {name: torch.randn(4)}, folder / SINGLE, {"format": "pt"})
    assert what in refused(folder, UnsupportedError)


def test_a_distributed_checkpoint_of_torch(untied: Trained, tmp_path: Path) -> None:
    folder = folder_of(untied, tmp_path)
    (folder / "__0_0.distcp").write_bytes(b"x")
    assert "dcp_to_torch" in refused(folder)


def test_restoring_twice_is_restoring_once(untied: Trained, tmp_path: Path) -> None:
    from gguf_tools.sources.restore import restore

    folder = folder_of(untied, tmp_path)
    extra = {"v_head.x": torch.randn(1), "model.rotary_emb.inv_freq": torch.randn(8)}
    save_file(renamed(untied.state, lambda name: name.removeprefix("model.")) | extra, folder / SINGLE)
    once = restore(open_checkpoint(folder))
    assert restore(once) == once
    assert build_model(once).spec == build_model(open_checkpoint(folder)).spec
