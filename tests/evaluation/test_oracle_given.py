"""Oracles that the user gives: a function of his own, and golden logits in a file."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from gguf_tools.families.registry import load_model
from gguf_tools.reference import Reference
from tests.conftest import Ran

Tinyq = Callable[..., Ran]
TOKENS = ((5, 70, 33, 101, 99, 7, 200, 14, 55, 81, 3, 9), (120, 44))
QUICK = ("--no-speed", "--tokens", 2, "--threads", 1)


# A function of the user's


@pytest.fixture
def oracle_module(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory with functions good and bad; its name is one of its own."""
    name = f"own_code_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        f"""
import numpy as np, torch
from pathlib import Path
from gguf_tools.families.registry import load_model
from gguf_tools.reference import Reference
model = Reference(load_model(Path({str(work / "source")!r})))
number = 3
def good(tokens):
    assert type(tokens) is list and type(tokens[0]) is int
    return torch.from_numpy(model.logits([tokens])[0]).requires_grad_()
def half(tokens):
    return model.logits([tokens])[0].astype(np.float16)
def listed(tokens):
    return model.logits([tokens])[0].tolist()
def wrong(tokens):
    return model.logits([tokens])[0] * 1.01
def last(tokens):
    return model.logits([tokens])[0][-1:]
def narrow(tokens):
    return model.logits([tokens])[0][:, :-1]
def nan(tokens):
    return np.full((len(tokens), 288), np.nan)
def text(tokens):
    return "logits"
def fails(tokens):
    raise KeyError("two\\nlines")
def leaves(tokens):
    raise SystemExit(5)
"""
    )
    monkeypatch.chdir(tmp_path)
    return name


def test_a_function(tinyq: Tinyq, work: Path, oracle_module: str) -> None:
    for name in ("good", "half", "listed"):
        ran = tinyq(
            "eval", work / "out.gguf", "--prompts", work / "prompts.txt", *QUICK, "--oracle", f"{oracle_module}:{name}"
        )
        assert ran.code == 0, ran.err
        assert ran.out.startswith(f"{oracle_module}:{name} agrees: NMSE ")
    ran = tinyq(
        "eval", work / "out.gguf", "--prompts", work / "prompts.txt", *QUICK, "--oracle", f"{oracle_module}:wrong"
    )
    assert ran.code == 1
    assert ran.out.startswith(f"{oracle_module}:wrong disagrees: NMSE 0.0001") or "disagrees: NMSE 1e-04" in ran.out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("last", "gives an array of shape (1, 288) for 14 tokens; expected (14, vocabulary)"),
        ("narrow", "gives logits of shape (14, 287), but the reference of (14, 288)"),
        ("nan", "gives NaN or infinite logits"),
        ("text", "gives a str; expected an array of logits"),
        ("fails", "failed on 14 tokens (KeyError: 'two\\nlines')"),
        ("leaves", "failed on 14 tokens (SystemExit: 5)"),
        ("number", "is a int; expected a function of a list of token ids"),
        ("missing", "cannot be imported (AttributeError: "),
    ],
)
def test_a_function_that_fails(tinyq: Tinyq, work: Path, oracle_module: str, name: str, said: str) -> None:
    ran = tinyq(
        "eval", work / "out.gguf", "--prompts", work / "prompts.txt", *QUICK, "--oracle", f"{oracle_module}:{name}"
    )
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert said in ran.err


def test_a_module_that_is_not_there(tinyq: Tinyq, work: Path) -> None:
    ran = tinyq("eval", work / "out.gguf", "--oracle", "no_such_module:f")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "oracle no_such_module:f: cannot be imported (ModuleNotFoundError: " in ran.err


# Golden logits


def golden(work: Path, dtype: type[np.floating[Any]] = np.float64) -> dict[str, Any]:
    """Arrays for two sequences."""
    found = Reference(load_model(work / "source"), torch.float64).logits(TOKENS)
    arrays: dict[str, Any] = {f"tokens_{n}": np.array(tokens) for n, tokens in enumerate(TOKENS)}
    return arrays | {f"logits_{n}": values.astype(dtype) for n, values in enumerate(found)}


@pytest.mark.parametrize(("dtype", "most"), [(np.float64, 1e-28), (np.float32, 1e-14), (np.float16, 1e-7)])
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_golden_logits(
    tinyq: Tinyq, work: Path, tmp_path: Path, suffix: str, dtype: type[np.floating[Any]], most: float
) -> None:
    if suffix == "safetensors":
        save_file(golden(work, dtype), tmp_path / "g.safetensors")
    else:
        np.savez_compressed(tmp_path / "g.npz", **golden(work, dtype), other=np.array([{}], dtype=object))
    args = ("--prompts", work / "prompts.txt", *QUICK, "--oracle", tmp_path / f"g.{suffix}")
    ran = tinyq("eval", work / "out.gguf", *args, "--json", tmp_path / "out.json")
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f"g.{suffix} agrees: NMSE ")
    found = json.loads((tmp_path / "out.json").read_text())["fidelity"]["oracle"]
    assert found["nmse"] <= most
    assert (found["n_sequences"], found["n_tokens"]) == (2, 14)
    assert tinyq("convert", work / "source", tmp_path / "out.gguf", "--prove", *args[-2:], "-q").code == 0


def test_golden_logits_that_differ(tinyq: Tinyq, work: Path, tmp_path: Path) -> None:
    arrays = golden(work)
    arrays["logits_1"][0, 7] += 0.1
    np.savez(tmp_path / "g.npz", **arrays)
    ran = tinyq("eval", work / "out.gguf", "--prompts", work / "prompts.txt", *QUICK, "--oracle", tmp_path / "g.npz")
    assert ran.code == 1
    assert ran.out.startswith("g.npz disagrees: NMSE ")


def test_golden_files_that_are_broken(tinyq: Tinyq, work: Path, tmp_path: Path) -> None:
    good, path = golden(work), tmp_path / "g.npz"
    nan = good["logits_0"].copy()
    nan[3, 3] = np.nan
    for arrays, said in (
        ({"a": np.zeros(3)}, "has no arrays tokens_0 and logits_0"),
        ({"tokens_0": good["tokens_0"]}, "has no array logits_0; expected both tokens_0 and logits_0"),
        (
            good | {"tokens_1": np.zeros(2)},
            "tokens_1 is float64 of shape (2,); expected integers of shape (tokens,)",
        ),
        (
            good | {"logits_1": good["logits_0"]},
            "logits_1 is float64 of shape (12, 288); expected shape (2, vocabulary)",
        ),
        (good | {"logits_1": np.array([[None]])}, "golden logits cannot be read (logits_1: "),
        (good | {"logits_0": nan}, "logits_0 has NaN or infinite values"),
        (good | {"tokens_1": np.array([1, 288])}, "has token ids beyond the model's vocabulary of 288"),
        (good | {"logits_1": np.zeros((2, 9))}, "gives logits of shape (2, 9), but the reference of (2, 288)"),
    ):
        np.savez(path, **arrays)
        ran = tinyq("eval", work / "out.gguf", "--oracle", path)
        assert (ran.code, ran.err.count("\n")) == (2, 1), said
        assert said in ran.err
    np.savez(path, **good)
    whole = path.read_bytes()
    for data in (whole[:-400], whole[:100], b"", b"PK\x03\x04 no archive"):
        path.write_bytes(data)
        ran = tinyq("eval", work / "out.gguf", "--oracle", path)
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert str(path) in ran.err
    assert "cannot be read" in tinyq("eval", work / "out.gguf", "--oracle", tmp_path / "gone.npz").err


@pytest.mark.parametrize("shape", ["(9000000000, 288)", "(-12, 288)", "(1, 288)"])
def test_a_golden_file_that_claims_more_than_it_has(tinyq: Tinyq, work: Path, tmp_path: Path, shape: str) -> None:
    good, path = golden(work), tmp_path / "g.npz"
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in good.items():
            stream = io.BytesIO()
            np.save(stream, values)
            data = stream.getvalue()
            archive.writestr(f"{name}.npy", data[:10] + header.encode() + data[128:] if name == "logits_0" else data)
    ran = tinyq("eval", work / "out.gguf", "--oracle", path)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert f"{path}: golden logits cannot be read (logits_0: " in ran.err
