"""`tinyq convert` as its users see it: what it prints, and one line with exit code 2 for each thing that is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gguf_tools.formats.gguf.header import read_header
from gguf_tools.sources.checkpoint import INDEX
from tests.conftest import Ran
from tests.tiny_models import Tensors, change_config, change_tensors, checkpoint, hybrid, moe

Copy = Callable[[Path], Path]
Tinyq = Callable[..., Ran]
TRACES = ("Traceback", "Error:", 'File "')


def left(folder: Path) -> list[str]:
    """Everything in the output's folder but sources."""
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def refused(ran: Ran, out: Path) -> str:
    """The one line of a refusal: exit code 2, nothing on stdout, no output and no temporary file."""
    assert ran.code == 2, ran
    assert ran.out == ""
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err.startswith("tinyq: ")
    assert not any(trace in ran.err for trace in TRACES)
    assert left(out.parent) == []
    return ran.err


# What it prints


def test_a_conversion_says_what_it_did(tinyq: Tinyq, qwen3_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    ran = tinyq("convert", qwen3_folder, out)
    assert (ran.code, ran.err) == (0, "")
    lines = dict(line.split(None, 1) for line in ran.out.splitlines())
    assert lines["source"].startswith(f"{qwen3_folder} (qwen3, layers aaa, ")
    assert lines["target"] == "qwen3"
    assert lines["type"].startswith("f16: f16 holds the BF16 weights")
    assert "bits per weight" in lines["tensors"]
    assert lines["note"] == "vocabulary padded from 267 to 288"
    assert lines["wrote"].startswith(f"{out} (")
    assert lines["wrote"].endswith("llama.cpp and the source tokenize the probe text alike")
    assert left(tmp_path) == ["out.gguf"]
    assert read_header(out).get("tinyq.type") == "f16"


def test_narrowed_weights_are_counted(tinyq: Tinyq, sharded_folder: Path, tmp_path: Path) -> None:
    ran = tinyq("convert", sharded_folder, tmp_path / "a.gguf", "--type", "f16")
    changed = next(line for line in ran.out.splitlines() if line.startswith("changed"))
    assert "sampled weights change when stored as f16, by " in changed
    ran = tinyq("convert", sharded_folder, tmp_path / "b.gguf", "--type", "Q8_0")
    assert any(line.startswith("rounded") and "relative RMS error" in line for line in ran.out.splitlines())


def test_rewrites_fall_backs_and_notes_are_said(
    tinyq: Tinyq, hybrid_folder: Path, copied: Copy, tmp_path: Path
) -> None:
    def ungate(found: Tensors) -> None:
        for name in [name for name in found if "shared_expert_gate" in name]:
            del found[name]

    folder = change_config(change_tensors(copied(hybrid_folder), ungate), {"num_attention_heads": 9})
    ran = tinyq("convert", folder, tmp_path / "out.gguf", "--type", "q4_k_m")
    assert ran.code == 0
    assert "rewrite   zero shared-expert gate: the sigmoid of a gate of zeros is 0.5" in ran.out
    assert "fallback  " in ran.out
    assert "note      config.json says num_attention_heads 9, but the tensors have 4" in ran.out


def test_quiet_is_silent(tinyq: Tinyq, qwen3_folder: Path, tmp_path: Path) -> None:
    assert tinyq("convert", qwen3_folder, tmp_path / "out.gguf", "--quiet") == Ran(0, "", "")
    assert left(tmp_path) == ["out.gguf"]


def test_json_on_stdout_is_the_only_thing_there(tinyq: Tinyq, qwen3_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    ran = tinyq("convert", qwen3_folder, out, "--type", "q8_0", "--json", "-")
    report = json.loads(ran.out)
    assert report.items() >= {"family": "qwen3", "target": "qwen3", "rewrites": [], "type": "q8_0"}.items()
    assert report["path"] == str(out)
    assert report["bytes"] == out.stat().st_size
    assert report["narrowing"]["q8_0"]["changed"] > 0
    entries = {entry.name: entry for entry in read_header(out).tensors}
    assert [tensor["name"] for tensor in report["tensors"]] == list(entries)
    for tensor in report["tensors"]:
        entry = entries[tensor["name"]]
        assert (tuple(tensor["shape"]), tensor["type"], tensor["bytes"]) == (entry.shape, entry.type.name, entry.nbytes)
        assert tensor["sources"]


def test_json_in_a_file(tinyq: Tinyq, qwen3_folder: Path, tmp_path: Path) -> None:
    ran = tinyq("convert", qwen3_folder, tmp_path / "out.gguf", "--json", tmp_path / "report.json")
    assert ran.code == 0
    assert ran.out
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["type"] == "f16"
    ran = tinyq("convert", qwen3_folder, tmp_path / "out.gguf", "--force", "--json", tmp_path / "gone" / "report.json")
    assert ran.code == 2
    assert (
        f"{tmp_path / 'gone' / 'report.json'}: the folder {tmp_path / 'gone'} does not exist; create it first"
        in ran.err
    )


def test_dry_run_shows_the_plan_and_writes_nothing(tinyq: Tinyq, hybrid_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    ran = tinyq("convert", hybrid_folder, out, "--dry-run", "--wide")
    assert (ran.code, ran.err) == (0, "")
    assert left(tmp_path) == []
    rows = {line.split()[0]: line.split() for line in ran.out.splitlines() if ".weight" in line}
    assert rows["token_embd.weight"] == [
        "token_embd.weight",
        "288×48",
        "f16",
        *rows["token_embd.weight"][3:5],
        "model.embed_tokens.weight",
    ]
    assert rows["blk.0.ffn_gate_exps.weight"][-3:] == ["model.layers.0.mlp.experts.0.gate_proj.weight", "+", "3"]
    assert ran.out.endswith("nothing was written (--dry-run)\n")


def test_dry_run_as_json_needs_no_output_that_could_be_written(
    tinyq: Tinyq, hybrid_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.gguf").write_bytes(b"older")
    ran = tinyq("convert", hybrid_folder, tmp_path / "out.gguf", "--dry-run", "--json", "-", "--type", "q4_k_m")
    report = json.loads(ran.out)
    assert report["fallen_back"] > 0
    assert "path" not in report
    assert (tmp_path / "out.gguf").read_bytes() == b"older"


def test_the_size_of_the_plan_is_the_size_of_the_file(tinyq: Tinyq, hybrid_folder: Path, tmp_path: Path) -> None:
    plan = json.loads(tinyq("convert", hybrid_folder, tmp_path / "out.gguf", "--dry-run", "--json", "-").out)
    assert tinyq("convert", hybrid_folder, tmp_path / "out.gguf").code == 0
    size = (tmp_path / "out.gguf").stat().st_size
    assert 0 <= size - plan["bytes"] < 1000  # the source's digest and place are known at the end


def test_an_output_that_exists_needs_force(tinyq: Tinyq, qwen3_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"older")
    ran = tinyq("convert", qwen3_folder, out)
    assert ran.code == 2
    assert ran.err == f"tinyq: {out}: exists already; choose another name or overwrite it with --force\n"
    assert out.read_bytes() == b"older"
    assert tinyq("convert", qwen3_folder, out, "--force").code == 0
    assert read_header(out).architecture == "qwen3"


def test_another_tokenizer_and_target(tinyq: Tinyq, hybrid_folder: Path, copied: Copy, tmp_path: Path) -> None:
    folder = copied(hybrid_folder)
    (tmp_path / "elsewhere").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).rename(tmp_path / "elsewhere" / name)
    out = tmp_path / "out.gguf"
    assert "tokenizer.json" in refused(tinyq("convert", folder, out), out)
    ran = tinyq("convert", folder, out, "--tokenizer", tmp_path / "elsewhere", "--target", "qwen3next", "--add-bos")
    assert ran.code == 0
    assert read_header(out).get("tokenizer.ggml.add_bos_token") is True


# What is wrong with a source


def delete(name: str) -> Callable[[Tensors], Tensors]:
    return lambda found: {key: tensor for key, tensor in found.items() if key != name}


def add(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda found: {**found, name: torch.ones(shape)}


def poke(name: str, value: float) -> Callable[[Tensors], None]:
    def change(found: Tensors) -> None:
        found[name].view(-1)[17] = value

    return change


def reshape(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda found: {**found, name: found[name].reshape(shape)}


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:count])


def no_file(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


QUERY = "model.layers.1.self_attn.q_proj.weight"
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a missing tensor": (lambda f: change_tensors(f, delete(QUERY)), f"tensor {QUERY} is missing"),
    "a missing norm": (lambda f: change_tensors(f, delete("model.norm.weight")), "tensor model.norm.weight is missing"),
    "an extra tensor": (
        lambda f: change_tensors(f, add("model.layers.1.extra", 2)),
        "tensor model.layers.1.extra is not part of the model",
    ),
    "a wrong shape": (
        lambda f: change_tensors(f, reshape(QUERY, 48, 64)),
        f"tensor {QUERY} has shape (48, 64); expected (64, 48), as",
    ),
    "a wrong rank": (
        lambda f: change_tensors(f, reshape(QUERY, 64, 48, 1)),
        f"tensor {QUERY} has shape (64, 48, 1); expected 2 dimensions",
    ),
    "a NaN": (lambda f: change_tensors(f, poke(QUERY, float("nan"))), f"{QUERY} holds nan at row 0, column 17"),
    "an infinity in a norm": (
        lambda f: change_tensors(f, poke("model.norm.weight", float("inf"))),
        "output_norm.weight holds inf at row 0, column 17",
    ),
    "weights of four bits": (
        lambda f: change_tensors(f, lambda found: {**found, QUERY: torch.ones(64, 48, dtype=torch.uint8)}),
        f"{QUERY}",
    ),
    "no config": (no_file("config.json"), "config.json: cannot be read (No such file or directory)"),
    "no weights": (no_file("model.safetensors"), "holds no safetensors weights"),
    "no tokenizer": (no_file("tokenizer.json"), "has no tokenizer.json"),
    "a broken config": (lambda f: cut(f / "config.json", 40), "config.json: not valid JSON"),
    "a broken tokenizer": (lambda f: cut(f / "tokenizer.json", 400), "tokenizer.json: not valid JSON (line"),
    "a broken generation config": (
        lambda f: (f / "generation_config.json").write_text("[", "utf-8"),
        "generation_config.json: ",
    ),
    "cut weights": (lambda f: cut(f / "model.safetensors", 9000), "model.safetensors: tensor "),
    "weights cut in the header": (lambda f: cut(f / "model.safetensors", 200), "model.safetensors: the header claims "),
    "empty weights": (lambda f: cut(f / "model.safetensors", 0), "model.safetensors: 0 bytes are too few"),
    "a config value of another kind": (
        lambda f: change_config(f, {"rms_norm_eps": "small"}),
        "config.json: rms_norm_eps is 'small'; expected a number of at least 0",
    ),
    "an activation that nobody computes": (
        lambda f: change_config(f, {"hidden_act": "relu"}),
        "config.json: hidden_act is 'relu'; expected silu",
    ),
    "a vocabulary smaller than the tokenizer's": (
        lambda f: change_tensors(
            f,
            lambda found: {
                **found,
                **{name: found[name][:260] for name in ("model.embed_tokens.weight", "lm_head.weight")},
            },
        ),
        "tokenizer.json",
    ),
    "YaRN that llama.cpp lacks": (
        lambda f: change_config(
            f, {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "beta_fast": 9.0}}
        ),
        "YaRN with beta_fast 9",
    ),
}


@pytest.mark.parametrize(("break_it", "expected"), FAULTS.values(), ids=list(FAULTS))
def test_a_fault_is_one_line_that_names_it(
    tinyq: Tinyq, qwen3_folder: Path, copied: Copy, tmp_path: Path, break_it: Callable[[Path], Any], expected: str
) -> None:
    folder = copied(qwen3_folder)
    break_it(folder)
    assert expected in refused(tinyq("convert", folder, tmp_path / "out.gguf"), tmp_path / "out.gguf")


def test_a_nan_is_named_when_no_type_is_searched_for(
    tinyq: Tinyq, qwen3_folder: Path, copied: Copy, tmp_path: Path
) -> None:
    folder = change_tensors(copied(qwen3_folder), poke(QUERY, float("nan")))
    message = refused(tinyq("convert", folder, tmp_path / "out.gguf", "--type", "f32"), tmp_path / "out.gguf")
    assert "blk.1.attn_q.weight holds nan" in message


SHARD_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a missing shard": (lambda f: sorted(f.glob("model-*"))[1].unlink(), "model-00002-of-"),
    "a cut shard": (lambda f: cut(sorted(f.glob("model-*"))[1], 5000), "model-00002-of-"),
    "no index": (no_file(INDEX), f"safetensors files without {INDEX}"),
    "a broken index": (lambda f: cut(f / INDEX, 100), f"{INDEX}: not valid JSON"),
}


@pytest.mark.parametrize(("break_it", "expected"), SHARD_FAULTS.values(), ids=list(SHARD_FAULTS))
def test_a_fault_of_a_shard_is_one_line_that_names_it(
    tinyq: Tinyq, sharded_folder: Path, copied: Copy, tmp_path: Path, break_it: Callable[[Path], Any], expected: str
) -> None:
    folder = copied(sharded_folder)
    break_it(folder)
    assert expected in refused(tinyq("convert", folder, tmp_path / "out.gguf"), tmp_path / "out.gguf")


@pytest.mark.parametrize("source", ["gone", "gone/" + "x" * 300, ""])
def test_a_source_that_is_not_there_is_one_line(tinyq: Tinyq, tmp_path: Path, source: str) -> None:
    ran = tinyq("convert", f"{tmp_path}/{source}" if source else tmp_path, tmp_path / "out.gguf")
    refused(ran, tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("config", "target", "expected"),
    [
        (moe(mlp_only_layers=[1]), "qwen3moe", "qwen3moe does not support layers without experts"),
        (hybrid(rms_norm_eps=1e-5), None, "layers that differ in norm epsilon (1e-05, 1e-06)"),
        (moe(), "nonsense", "target nonsense is not known; the known targets are "),
    ],
)
def test_what_no_target_expresses_is_one_line(
    tinyq: Tinyq, tmp_path: Path, config: Any, target: str | None, expected: str
) -> None:
    folder = checkpoint(tmp_path / "source", config)
    out = tmp_path / "out.gguf"
    assert expected in refused(tinyq("convert", folder, out, *(["--target", target] if target else [])), out)


# What is wrong with the command


@pytest.mark.parametrize(
    ("name", "near"), [("q4", "q4_"), ("f15", "f16"), ("Q4_X", "q4_"), ("int8", ""), ("", ""), ("q8_0 ", "q8_0")]
)
def test_an_unknown_type_suggests_names(tinyq: Tinyq, qwen3_folder: Path, tmp_path: Path, name: str, near: str) -> None:
    message = refused(tinyq("convert", qwen3_folder, tmp_path / "out.gguf", "--type", name), tmp_path / "out.gguf")
    assert f"type {name.lower().strip()}".strip() in message
    assert near in message.partition("similar types are ")[2]


@pytest.mark.parametrize(
    ("out", "expected"),
    [("gone/out.gguf", "gone does not exist; create it first"), (".", "is a folder"), ("/dev/null", "exists already")],
)
def test_an_output_that_cannot_be_is_said_before_anything_is_read(
    tinyq: Tinyq, tmp_path: Path, out: str, expected: str
) -> None:
    ran = tinyq("convert", tmp_path / "no source", tmp_path / out)
    assert ran.code == 2
    assert expected in ran.err
    assert ran.err.count("\n") == 1


def test_a_device_is_not_replaced_by_force(tinyq: Tinyq, qwen3_folder: Path) -> None:
    ran = tinyq("convert", qwen3_folder, "/dev/null", "--force")
    assert ran.code == 2
    assert "/dev/null: is not a regular file" in ran.err
    assert Path("/dev/null").is_char_device()


def test_an_output_name_that_is_too_long_is_one_line(tinyq: Tinyq, qwen3_folder: Path, tmp_path: Path) -> None:
    for name in ("x" * 300, "x" * 256):
        ran = tinyq("convert", qwen3_folder, tmp_path / name)
        assert "the name has more than 255 bytes" in refused(ran, tmp_path / name)
    assert tinyq("convert", qwen3_folder, tmp_path / ("x" * 255)).code == 0


def test_a_source_is_not_overwritten_by_force(tinyq: Tinyq, qwen3_folder: Path, copied: Copy) -> None:
    weights = copied(qwen3_folder) / "model.safetensors"
    before = weights.read_bytes()
    ran = tinyq("convert", weights.parent, weights, "--force")
    assert ran.code == 2
    assert "is also an input of this command" in ran.err
    assert weights.read_bytes() == before


# By itself, in a process of its own


def call(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gguf_tools", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_faults_are_one_line_in_a_process_too(qwen3_folder: Path, copied: Copy, tmp_path: Path) -> None:
    folder = change_tensors(copied(qwen3_folder), delete(QUERY))
    done = call("convert", folder, tmp_path / "out.gguf")
    assert f"{QUERY} is missing" in refused(Ran(done.returncode, done.stdout, done.stderr), tmp_path / "out.gguf")


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict", "latin-1:strict"])
def test_a_terminal_need_not_know_every_character(qwen3_folder: Path, tmp_path: Path, encoding: str) -> None:
    """Rules of tables, and a name whose bytes are no UTF-8, must not end a conversion that is done."""
    out, report = tmp_path / os.fsdecode("ö─\udcff.gguf".encode("utf-8", "surrogateescape")), tmp_path / "report.json"
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = call("convert", qwen3_folder, out, "--json", report, env=env, errors="surrogateescape")
    assert (done.returncode, done.stderr) == (0, "")
    assert out.exists()
    assert json.loads(report.read_text("utf-8"))["path"] == str(out)
    done = call("convert", qwen3_folder, out, "--dry-run", env=env, errors="surrogateescape")
    assert (done.returncode, done.stderr) == (0, "")
