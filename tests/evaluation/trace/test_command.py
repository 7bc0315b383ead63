"""`tinyq trace`."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_tools.api.convert import convert
from gguf_tools.evaluation.trace.pictures import encode_png
from tests.evaluation.trace.planting import planted
from tests.made_checkpoints import Made


@pytest.fixture(scope="module")
def file(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("command") / "file.gguf"
    convert(made("qwen3-moe", "plain"), out, type="f32")
    return out


def test_a_clean_file(tinyq: Callable[..., Any], file: Path, made: Made, tmp_path: Path) -> None:
    report, page, picture = tmp_path / "a.json", tmp_path / "a.html", tmp_path / "a.png"
    options = (
        "--tokens",
        9,
        "--routing",
        "--decode",
        "--json",
        report,
        "--html",
        page,
        "--png",
        picture,
        "--threads",
        1,
    )
    ran = tinyq("trace", file, *options)
    assert ran.code == 0, ran.err
    assert "every point is explained by rounding" in ran.out
    assert "100% of tokens to the same experts" in ran.out
    found = json.loads(report.read_text("utf-8"))
    assert found["first_bad"] is None
    assert found["n_tokens"] == 9
    layers = {point["layer"] for point in found["points"]}
    assert layers == {None, *range(len(layers) - 1)}
    assert all(sum(one["load_model"]) == 9 * len(one["model"][0]) for one in found["routing"])
    text = page.read_text("utf-8")
    assert text.startswith("<!doctype html>")
    assert "http" not in text
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_fault(tinyq: Callable[..., Any], file: Path, made: Made, tmp_path: Path) -> None:
    bad = planted(file, tmp_path / "bad.gguf", ("blk.1.attn_v.weight", np.negative))
    ran = tinyq("trace", bad, "--reference", made("qwen3-moe", "plain"), "--tokens", 9, "--json", "-", "--threads", 1)
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert "layer 1 attn.v" in ran.err
    first = json.loads(ran.out)["first_bad"]
    assert (first["layer"], first["point"]) == (1, "attn.v")
    assert first["cause"] == "blk.1.attn_v.weight: its sign is turned"
    assert first["tensors"] == ["blk.1.attn_v.weight"]
    ran = tinyq("trace", bad, "--reference", made("qwen3-moe", "plain"), "--tokens", 9, "--position", 3, "--threads", 1)
    assert "worst at token 3" in " ".join(ran.out.split())
    assert "(tried: leaves an NMSE of " in " ".join(ran.out.split())


def test_eval_names_the_first_bad_point(tinyq: Callable[..., Any], file: Path, made: Made, tmp_path: Path) -> None:
    bad = planted(file, tmp_path / "bad.gguf", ("blk.1.attn_v.weight", np.negative))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Once upon\n", "utf-8")
    options = (
        "--reference",
        made("qwen3-moe", "plain"),
        "--prompts",
        prompts,
        "--tokens",
        1,
        "--no-speed",
        "--oracle",
        "none",
    )
    ran = tinyq("eval", bad, *options, "--max-nmse", "1e-9", "--threads", 1, "-q")
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert "the first bad point is layer 1 attn.v: blk.1.attn_v.weight: its sign is turned" in ran.err
    assert "first bad" not in tinyq("eval", file, *options, "--max-nmse", "1e-30", "--threads", 1, "-q").err


def test_a_position_that_is_not_read(tinyq: Callable[..., Any], file: Path) -> None:
    ran = tinyq("trace", file, "--tokens", 4, "--position", 4)
    assert ran.code == 2
    assert "position 4" in ran.err


def test_the_picture_is_a_png() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3)).astype(np.uint8)
    data = encode_png(pixels)
    at, body = 8, b""
    while at < len(data):
        (size,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        chunk = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + chunk)
        body += chunk if kind == b"IDAT" else b""
        at += 12 + size
    rows = np.frombuffer(zlib.decompress(body), np.uint8).reshape(3, -1)
    assert np.array_equal(rows[:, 1:].reshape(3, 5, 3), pixels)
