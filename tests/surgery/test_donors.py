"""Layers of a second model: what is written, what both models must have in common, and what is recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer as HFTokenizer
from transformers import AutoModelForCausalLM

from gguf_tools.errors import CheckpointError, InputError, OutputError
from gguf_tools.evaluation.reference_source import find_reference
from gguf_tools.formats.gguf.header import Field, ValueType, read_header
from gguf_tools.formats.gguf.values import array, f32, string
from gguf_tools.verification.run import verify
from surgery.checkpoint.rewrite import plan_checkpoint, write_checkpoint
from surgery.conversion import operation_of
from surgery.donors import operate_recorded
from surgery.gguf.layers import open_layered
from surgery.gguf.rewrite import plan_gguf, write_plan
from surgery.recipe import parse_text, read_file
from surgery.sources import Donor, parse_donor, source_digest
from tests.conftest import Ran
from tests.oracle import PROMPTS, Logits, convert, llama, nmse, reference
from tests.surgery.surgery_files import operated, raw_tensors, split, with_donors, with_metadata
from tests.tiny_models import change_config, checkpoint, dense, hybrid, in_float64, logits, moe, network

LIMIT = 1e-9
Tinyq = Callable[..., Ran]
Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two dense checkpoints of one config in float32."""
    folder = tmp_path_factory.mktemp("pair")
    return checkpoint(folder / "a", dense()), checkpoint(folder / "b", dense(), seed=1)


@pytest.fixture(scope="module")
def files(folders: Pair) -> Pair:
    """Their conversions to F32."""
    a, b = (convert(path, path.parent / f"{path.name}.gguf") for path in folders)
    return a, b


@pytest.fixture
def pair(folders: Pair, tmp_path: Path) -> Pair:
    """Copies of the checkpoints, to change."""
    for path in folders:
        shutil.copytree(path, tmp_path / path.name)
    return tmp_path / "a", tmp_path / "b"


def grafted_by_torch() -> Logits:
    """transformers' logits of layers 0, B:1, B:2, 1, 2 under the embeddings, norm and head of the first model."""
    with in_float64():
        first, second = network(dense()), network(dense(), seed=1)
        blocks = [first.model.layers[0], *second.model.layers[1:3], *first.model.layers[1:3]]
        for n, block in enumerate(blocks):
            block.self_attn.layer_idx = n
        first.model.layers = torch.nn.ModuleList(blocks)
        first.config.num_hidden_layers = len(blocks)
        first.config.layer_types = ["full_attention"] * len(blocks)
        return [part.numpy() for part in logits(first, PROMPTS)]


def test_a_graft_computes_what_transformers_computes(folders: Pair, files: Pair, tmp_path: Path) -> None:
    want = grafted_by_torch()
    out = tmp_path / "out"
    write_checkpoint(plan_checkpoint(folders[0], with_donors("graft(B:1..2@1)", {"B": folders[1]})), out)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float64, attn_implementation="eager")
    assert nmse([part.numpy() for part in logits(loaded, PROMPTS)], want) <= LIMIT
    file = operated(files[0], tmp_path / "out.gguf", "graft(B:1..2@1)", {"B": files[1]})
    assert nmse(llama(file)[0], want) <= LIMIT


def test_the_folder_holds_the_bytes_of_both(folders: Pair, tmp_path: Path) -> None:
    a, b = (load_file(path / "model.safetensors") for path in folders)
    recipe = "graft(B:2@0) + interpolate(2:B:0@0.25=2, only=ffn)"
    write_checkpoint(plan_checkpoint(folders[0], with_donors(recipe, {"B": folders[1]})), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert len(found) == len(a) + sum(name.startswith("model.layers.0.") for name in a)
    for name, tensor in found.items():
        _, _, number, rest = (*name.split(".", 3), "")[:4] if name.startswith("model.layers.") else ("", "", "", name)
        if not number:
            want = a[name]
        elif number == "0":
            want = b[f"model.layers.2.{rest}"]
        else:
            want = a[f"model.layers.{int(number) - 1}.{rest}"]
            if number == "2" and (rest.startswith("mlp.") or rest == "post_attention_layernorm.weight"):
                mean = 0.75 * want.double() + 0.25 * b[f"model.layers.0.{rest}"].double()
                assert torch.equal(tensor, mean.float())
                continue
        assert torch.equal(tensor, want), name


def test_grafted_layers_keep_their_own_types(tmp_path: Path) -> None:
    config = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 64}
    types = {"a": "q8_0", "b": "q4_k_m"}
    paths = []
    for seed, (name, type_name) in enumerate(types.items()):
        folder = checkpoint(tmp_path / name, dense(**config), seed=seed)
        paths.append(convert(folder, tmp_path / f"{name}.gguf", type_name))
    before = [raw_tensors(path) for path in paths]
    out = operated(paths[0], tmp_path / "out.gguf", "graft(B:0..1@1) + merge(4:B:2)", {"B": paths[1]})
    after = raw_tensors(out)
    for n, (source, index) in enumerate([(0, 0), (1, 0), (1, 1), (0, 1)]):
        for name, tensor in before[source].items():
            if name.startswith(f"blk.{index}."):
                assert after[f"blk.{n}.{name.split('.', 2)[2]}"] == tensor
    assert after["blk.1.attn_q.weight"][0] != after["blk.3.attn_q.weight"][0]
    # A blend gets the type with more bits of the two.
    assert after["blk.4.attn_q.weight"][0] == before[0]["blk.2.attn_q.weight"][0]
    assert all(after[name] == tensor for name, tensor in before[0].items() if not name.startswith("blk."))
    assert llama(out)[0][0].shape == (len(PROMPTS[0]), 288)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_theta": 20000.0, "rope_parameters": None}, "mixer.rope.theta is 10000.0, and 20000.0 in layer 1 of B"),
        (
            {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8},
            "mixer.heads is 4, and 8 in layer 1 of B",
        ),
        ({"rms_norm_eps": 1e-6}, "mixer_norm.eps is 1e-05, and 1e-06 in layer 1 of B"),
        ({"vocab_size": 300}, "vocab_size is 288, and 300 in B"),
        ({"hidden_size": 64}, "hidden is 48, and 64 in B"),
        ({"intermediate_size": 64}, "feed_forward.width is 56, and 64 in layer 1 of B"),
        (
            {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 0},
            "mixer.window is None, and 32 in layer 1 of B",
        ),
    ],
)
def test_other_hyperparameters_are_named(folders: Pair, tmp_path: Path, changes: dict[str, object], said: str) -> None:
    config = dense(**{key: value for key, value in changes.items() if value is not None})
    other = checkpoint(tmp_path / "other", config, seed=1)
    with pytest.raises(InputError) as error:
        plan_checkpoint(folders[0], with_donors("graft(B:1@1)", {"B": other}))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    mine, theirs = (convert(path, tmp_path / f"{n}.gguf") for n, path in enumerate((folders[0], other)))
    with pytest.raises(
        InputError, match=r"layers of B cannot be taken: (its architecture is step35|.*, and .* in (layer 1 of )?B)"
    ):
        operated(mine, tmp_path / "no.gguf", "graft(B:1@1)", {"B": theirs})
    assert not (tmp_path / "no.gguf").exists()


def test_a_layer_of_another_kind_is_refused(tmp_path: Path) -> None:
    a = checkpoint(tmp_path / "a", moe(mlp_only_layers=[1]))
    b = checkpoint(tmp_path / "b", moe(mlp_only_layers=[1], num_experts_per_tok=3), seed=1)
    out = tmp_path / "out"
    write_checkpoint(plan_checkpoint(a, with_donors("graft(B:1@0)", {"B": b})), out)
    assert json.loads((out / "config.json").read_text())["mlp_only_layers"] == [0, 2]
    with pytest.raises(InputError, match=r"feed_forward.router.top_k is 2, and 3 in layer 0 of B"):
        plan_checkpoint(a, with_donors("graft(B:0..1@0)", {"B": b}))


def test_another_vocabulary_is_refused_and_other_ids_are_noted(pair: Pair, files: Pair, tmp_path: Path) -> None:
    a, b = pair
    change_config(b, {"max_position_embeddings": 64})
    made = HFTokenizer.from_file(str(b / "tokenizer.json"))
    text = json.loads((b / "tokenizer_config.json").read_text())
    (b / "tokenizer_config.json").write_text(json.dumps({**text, "add_bos_token": True, "chat_template": "hello"}))
    plan = plan_checkpoint(a, with_donors("graft(B:0@0)", {"B": b}))
    assert plan.notes == (
        "context_length is 96, and 64 in B; the result has the former",
        "tokenizer.chat_template is missing, and 'hello' in B; the result has the former",
        "tokenizer.ggml.add_bos_token is False, and True in B; the result has the former",
    )
    model = json.loads(made.to_str())
    model["model"]["merges"] = model["model"]["merges"][:-1]
    (b / "tokenizer.json").write_text(json.dumps(model))
    with pytest.raises(InputError, match=r"tokenizer.ggml.merges is of 8 entries, and of 7 entries in B"):
        plan_checkpoint(a, with_donors("graft(B:0@0)", {"B": b}))
    with pytest.raises(InputError, match=r"tokenizer.ggml.merges is of 8 entries"):
        convert(
            a,
            tmp_path / "no.gguf",
            operation=operation_of(with_donors("graft(B:0@0)", {"B": b}), a, None, digests=False),
        )
    tokens = list(read_header(files[1]).get("tokenizer.ggml.tokens"))
    tokens[7] = "seven"
    other = with_metadata(
        files[1], tmp_path / "tokens.gguf", {"tokenizer.ggml.tokens": array(ValueType.STRING, tokens)}
    )
    with pytest.raises(InputError, match=r"tokenizer.ggml.tokens is '.*' at 7, and 'seven' at 7 in B"):
        operated(files[0], tmp_path / "no.gguf", "graft(B:0@0)", {"B": other})
    (b / "tokenizer.json").unlink()
    assert "were not compared" in plan_checkpoint(a, with_donors("graft(B:0@0)", {"B": b})).notes[-1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"qwen3.rope.freq_base": f32(5.0)}, "qwen3.rope.freq_base is 10000.0, and 5.0 in B"),
        ({"qwen3.rope.scaling.type": string("linear")}, "qwen3.rope.scaling.type is None, and linear in B"),
        ({"tinyq.rewrites": array(ValueType.STRING, ["x"])}, r"tinyq.rewrites is None, and \('x',\) in B"),
        (
            {"general.architecture": string("qwen2"), "qwen2.block_count": Field(ValueType.UINT32, 3)},
            "its architecture is qwen2",
        ),
    ],
)
def test_other_metadata_are_named(files: Pair, tmp_path: Path, changes: dict[str, Field | None], said: str) -> None:
    other = with_metadata(files[1], tmp_path / "other.gguf", changes)
    with pytest.raises(InputError, match=said):
        operated(files[0], tmp_path / "no.gguf", "merge(0:B:0)", {"B": other})


def test_arrays_and_periods_say_the_same(tmp_path: Path) -> None:
    a, b = (
        convert(checkpoint(tmp_path / f"{seed}", hybrid(), seed=seed), tmp_path / f"{seed}.gguf") for seed in (0, 1)
    )
    first = operated(a, tmp_path / "first.gguf", "graft(B:0@1)", {"B": b})
    # This file has an array where the other, and the first donor, may have a period.
    second = operated(first, tmp_path / "second.gguf", "graft(C:1@0)", {"C": b})
    assert open_layered(second).header.get("qwen3next.attention.recurrent_layers") == (False, True, True, False, True)
    llama(second)


def test_a_folder_and_a_file_do_not_mix(folders: Pair, files: Pair, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a GGUF file; a checkpoint takes layers of checkpoints alone"):
        plan_checkpoint(folders[0], with_donors("graft(B:0@0)", {"B": files[1]}))
    with pytest.raises(InputError, match=r"is no GGUF file, but .* is; convert B first"):
        operated(files[0], tmp_path / "no.gguf", "graft(B:0@0)", {"B": folders[1]})


def test_the_reference_is_grafted_too(folders: Pair, files: Pair, tmp_path: Path) -> None:
    want = grafted_by_torch()
    made = operated(files[0], tmp_path / "made.gguf", "graft(B:1..2@1)", {"B": files[1]})
    recipe = with_donors("graft(B:1..2@1)", {"B": folders[1]})
    whole = convert(folders[0], tmp_path / "one.gguf", operation=operation_of(recipe, folders[0], None, digests=True))
    for path, donor in ((made, files[1]), (whole, folders[1])):
        header = read_header(path)
        assert header.get("tinyq.surgery.sources") == ("B",)
        assert header.get("tinyq.surgery.sources.digests") == (source_digest(donor),)
        found = find_reference(path, operate=operate_recorded)
        assert found.origin == "recorded"
        assert found.model is not None
        assert nmse(reference(found.model), want) <= 1e-20
        checked = verify(path, folders[0], operate=operate_recorded, threads=1)
        assert {tensor.verdict for tensor in checked.tensors} == {"identical"}
    # What it was done on is recorded where no checkpoint is.
    bare = with_metadata(files[0], tmp_path / "bare.gguf", {"tinyq.source.digest": None, "tinyq.source.path": None})
    made = operated(bare, tmp_path / "from-bare.gguf", "graft(B:1..2@1)", {"B": files[1]})
    assert read_header(made).get("tinyq.surgery.sources.digests") == (source_digest(bare), source_digest(files[1]))
    found = find_reference(made, operate=operate_recorded)
    assert (found.origin, found.path) == ("recorded", bare)
    assert found.model is not None
    assert nmse(reference(found.model), want) <= 1e-20


def test_a_donor_that_is_another_by_now_is_no_reference(folders: Pair, tmp_path: Path) -> None:
    a, b = (convert(path, tmp_path / f"{path.name}.gguf") for path in folders)
    made = operated(a, tmp_path / "sub.gguf", "graft(B:0@1)", {"B": b})
    data = bytearray(b.read_bytes())
    data[-1] ^= 1
    b.write_bytes(data)
    found = find_reference(made, operate=operate_recorded)
    assert found.origin == "rebuilt"
    assert "b.gguf: is not, or no longer, what the recipe calls B" in found.note
    b.unlink()
    assert "the source B of the recipe is no longer there" in find_reference(made, operate=operate_recorded).note


def test_sources_are_found_from_wherever_the_file_lies(files: Pair, tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    first = operated(files[0], tmp_path / "deep" / "first.gguf", "graft(B:0@1)", {"B": files[1]})
    second = operated(first, tmp_path / "deep" / "er" / "second.gguf", "swap(0:1)")
    recorded = read_header(second).get("tinyq.surgery.sources.paths")
    assert [(second.parent / path).resolve() for path in recorded] == [files[1]]
    assert find_reference(second, operate=operate_recorded).origin == "recorded"
    with pytest.raises(
        InputError, match=r"B is .*b.gguf in the recipe before, and .*a.gguf now; give this one another name"
    ):
        operated(second, tmp_path / "no.gguf", "graft(B:0@1)", {"B": files[0]})
    third = operated(second, tmp_path / "third.gguf", "graft(B:2@0) + merge(0:C:1)", {"B": files[1], "C": files[0]})
    assert read_header(third).get("tinyq.surgery.sources") == ("B", "C")
    assert find_reference(third, operate=operate_recorded).origin == "recorded"


def test_the_folder_records_both_and_its_recipe_can_be_done_again(pair: Pair, tmp_path: Path) -> None:
    a, b = pair
    write_checkpoint(plan_checkpoint(a, with_donors("graft(B:0@1)", {"B": b})), tmp_path / "out")
    history = tmp_path / "out" / "tinyq-recipe.toml"
    assert f'[base]\npath = "../a"\ndigest = "{source_digest(a)}"' in history.read_text()
    recipe = read_file(history)
    assert [donor.checked().digest for donor in recipe.donors] == [source_digest(b)]
    write_checkpoint(plan_checkpoint(a, recipe), tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()
    write_checkpoint(plan_checkpoint(tmp_path / "out", with_donors("merge(0:B:1)", {"B": b})), tmp_path / "more")
    assert str(read_file(tmp_path / "more" / "tinyq-recipe.toml")) == "graft(B:0@1) + merge(0:B:1)"
    change_config(b, {"max_position_embeddings": 64})
    with pytest.raises(InputError, match=r"what the recipe calls B \(SHA-256 .*accept this one with --with B="):
        recipe.donors[0].checked()


def test_the_command_takes_a_second_model(tinyq: Tinyq, folders: Pair, files: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    ran = tinyq(
        "surgery",
        files[0],
        out,
        "--with",
        files[1],
        "--graft",
        "B:1..2@1",
        "--json",
        "-",
        "--save-recipe",
        tmp_path / "r.toml",
    )
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["donors"] == {"B": {"path": str(files[1]), "digest": source_digest(files[1])}}
    assert [layer["from"] for layer in report["layers"]] == ["0", "B:1", "B:2", "1", "2"]
    assert [layer["change"] for layer in report["layers"]] == ["kept", "grafted", "grafted", "moved", "moved"]
    again = tinyq("surgery", files[0], tmp_path / "again.gguf", "--recipe", tmp_path / "r.toml", "-q")
    assert again.code == 0, again.err
    assert (tmp_path / "again.gguf").read_bytes() == out.read_bytes()
    ran = tinyq("eval", out, "--tokens", "8", "--no-speed", "--json", "-")
    assert json.loads(ran.out)["fidelity"]["nmse"] < LIMIT
    ran = tinyq(
        "convert",
        folders[0],
        tmp_path / "one.gguf",
        "--type",
        "f32",
        "--with",
        f"other={folders[1]}",
        "--graft",
        "other:1..2@1",
    )
    assert ran.code == 0, ran.err
    assert raw_tensors(tmp_path / "one.gguf") == raw_tensors(out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--graft", "B:0@1"], "the recipe takes layers of B; say with --with B=PATH which model that is"),
        (["--with", "FILE", "--swap", "0:1"], "no op takes a layer of B; name one as B:N"),
        (["--with", "A=FILE", "--graft", "A:0@1"], "A is the model that is operated on; name the other one B"),
        (["--with", "B=", "--graft", "B:0@1"], "the path is missing; write it as B=PATH"),
        (["--with", "FILE", "--with", "FILE", "--graft", "B:0@1"], "--with names two models B"),
        (["--with", "none.gguf", "--graft", "B:0@1"], "none.gguf: is no GGUF file"),
        (
            ["--with", "FILE", "--graft", "B:0@1", "--in-place"],
            "graft(B:0@1): --in-place can only reorder whole layers",
        ),
        (["OUT", "--with", "OUT", "--graft", "B:0@1", "--force"], "is also an input of this command"),
    ],
)
def test_what_is_wrong_with_a_second_model_is_one_line(
    tinyq: Tinyq, files: Pair, tmp_path: Path, arguments: list[str], said: str
) -> None:
    out = shutil.copy(files[1], tmp_path / "out.gguf")
    given = [argument.replace("FILE", str(files[1])).replace("OUT", str(out)) for argument in arguments]
    place = [] if "--in-place" in given or "OUT" in arguments else [str(tmp_path / "new.gguf")]
    ran = tinyq("surgery", files[0], *place, *given)
    assert ran.code == 2
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "new.gguf").exists()


def test_a_name_stands_before_the_first_equals_sign() -> None:
    assert parse_donor("x/b.gguf") == Donor("B", Path("x/b.gguf"))
    assert parse_donor("mine=x/b=c.gguf") == Donor("mine", Path("x/b=c.gguf"))
    assert parse_donor(r"C:\models\b=c.gguf") == Donor("B", Path(r"C:\models\b=c.gguf"))
    assert parse_donor(r"B=C:\models\b.gguf") == Donor("B", Path(r"C:\models\b.gguf"))
    assert parse_donor("./x=y.gguf") == Donor("B", Path("./x=y.gguf"))


@pytest.mark.parametrize(
    "text",
    [
        "donors = 3",
        "[donors.B]\ndigest = 'x'",
        "[donors.B]\npath = 3",
        "[donors.'9']\npath = 'x'",
        "[donors.B]\npath='x'\nsize='y'",
    ],
)
def test_a_recipe_with_broken_donors_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(f"steps = ['graft(B:0@0)']\n{text}\n")
    with pytest.raises(InputError, match="a path, and perhaps a digest, are expected"):
        read_file(path)


def test_a_donor_that_is_gone_is_said(folders: Pair, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        plan_checkpoint(folders[0], with_donors("graft(B:0@0)", {"B": tmp_path / "none"}))
    with pytest.raises(InputError, match="say with --with B=PATH"):
        parse_text("graft(B:0@0)").with_donors(())


def test_a_split_donor_is_read_whole(files: Pair, tmp_path: Path) -> None:
    parts = split(files[1], tmp_path / "b", 2)
    want = operated(files[0], tmp_path / "want.gguf", "graft(B:0..2@1)", {"B": files[1]})
    got = operated(files[0], tmp_path / "got.gguf", "graft(B:0..2@1)", {"B": parts[0]})
    assert raw_tensors(got) == raw_tensors(want)
    with pytest.raises(OutputError, match="is also an input of this command"):
        write_plan(
            plan_gguf(open_layered(files[0]), with_donors("graft(B:0..2@1)", {"B": parts[0]})), parts[1], force=True
        )
