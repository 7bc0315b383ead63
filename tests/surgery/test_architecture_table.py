"""The table of architectures against llama.cpp's own source: every architecture, and every tensor of its layers, has its place.

The source is that of the installed llama-cpp-python: an unpacked sdist, its archive, or a checkout of llama.cpp, named by
TINYQ_LLAMA_CPP_SOURCE, or an archive of that name where pip looks for files.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest

from surgery.architectures.judge import ASPECTS, judge
from surgery.architectures.registry import architectures
from surgery.architectures.tensors import GROUPS, ROLES, expand

VARIABLE = "TINYQ_LLAMA_CPP_SOURCE"
SDIST = f"llama_cpp_python-{version('llama-cpp-python')}.tar.gz"
FILES = ("llama-arch.cpp", "llama-model.cpp", "llama-hparams.h", "llama-vocab.cpp")
NOT_ARCHITECTURES = {"(unknown)"}
HELPERS = {
    "create_tensor_qkv": {"attn_q", "attn_k", "attn_v", "attn_qkv"},
    "create_tensor_gate_up_exps": {"ffn_gate_up_exps", "ffn_gate_exps", "ffn_up_exps"},
}
"""Functions of `llama_model_base` that load several tensors."""


@cache
def source() -> Mapping[str, str]:
    """The files of llama.cpp's `src` that the table is read from, by path within it; the test is skipped without them."""
    named = [os.environ.get(VARIABLE), *os.environ.get("PIP_FIND_LINKS", "").split()]
    places = [Path(place) for place in named if place]
    for place in places:
        for archive in (place, place / SDIST):
            if archive.name == SDIST and archive.is_file():
                return _unpacked(archive)
        for folder in (place / "src", place / "vendor" / "llama.cpp" / "src"):
            if (folder / "llama-arch.cpp").is_file():
                paths = [*(folder / name for name in FILES), *(folder / "models").iterdir()]
                return {str(path.relative_to(folder)): path.read_text("utf-8") for path in paths}
    pytest.skip(
        f"llama.cpp's source is not at hand: set {VARIABLE} to {SDIST} (pip download --no-binary) or its folder"
    )


def _unpacked(archive: Path) -> dict[str, str]:
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            _, inside, name = member.name.partition("/vendor/llama.cpp/src/")
            if inside and (name in FILES or name.startswith("models/")):
                stream = tar.extractfile(member)
                found[name] = stream.read().decode("utf-8") if stream else ""
    return found


def names() -> dict[str, str]:
    """Architecture's symbol → its name."""
    return dict(re.findall(r"\{\s*(LLM_ARCH_\w+),\s*\"([^\"]+)\"", source()["llama-arch.cpp"]))


def loaders() -> dict[str, tuple[str, str]]:
    """Architecture's name → the file and the text of the function that loads its tensors."""
    classes = dict(re.findall(r"case (LLM_ARCH_\w+):\s*return new (llama_model_\w+)", source()["llama-model.cpp"]))
    bases = dict(re.findall(r"struct (llama_model_\w+) : public (llama_model_\w+)", source()["models/models.h"]))
    functions = {
        match[1]: (path.removeprefix("models/"), match[0])
        for path, text in source().items()
        for match in re.finditer(r"void (llama_model_\w+)::load_arch_tensors\b.*?\n}\n", text, re.S)
    }
    found = {}
    for symbol, name in names().items():
        model = classes.get(symbol)
        while model and model not in functions:
            model = bases.get(model)
        if model:
            found[name] = functions[model]
    return found


def test_every_architecture_is_in_the_table() -> None:
    assert set(names().values()) - NOT_ARCHITECTURES == set(architectures()), "read the new ones, and give each a row"


def test_every_row_names_its_file_and_every_tensor_of_its_layers() -> None:
    blocks = dict(re.findall(r"\{\s*LLM_TENSOR_(\w+),\s*\"blk\.%d\.([^\"]+)\"", source()["llama-arch.cpp"]))
    found = loaders()
    for name, row in architectures().items():
        if row.closed:
            continue
        path, text = found[name]
        assert row.source == path, name
        loaded = {blocks[symbol] for symbol in re.findall(r"LLM_TENSOR_(\w+)", text) if symbol in blocks}
        for helper, tensors in HELPERS.items():
            loaded |= tensors if helper in text else set()
        known = {
            tensor.removesuffix(".lora_a").removesuffix(".lora_b").removesuffix(".scale") for tensor in row.tensors
        }
        assert loaded == known, name


def test_what_reads_a_pattern_or_a_leading_count_says_so() -> None:
    """Keys by which llama.cpp decides for a layer by its place, each with the property that a row must have."""
    asked = {
        r"load_swa_pattern\(ml, [2-9]": "has a sliding window",
        r"LLM_KV_LEADING_DENSE_BLOCK_COUNT": "has a dense feed-forward",
        r"LLM_KV_FULL_ATTENTION_INTERVAL": "is recurrent",
        r"LLM_KV_INTERLEAVE_MOE_LAYER_STEP|LLM_KV_MOE_EVERY_N_LAYERS": "has experts",
        r"LLM_KV_HASH_LAYER_COUNT": "routes by token ids",
        r"n_no_rope_layer_step": "has no rope",
        r"LLM_KV_ATTENTION_INDEXER_TYPES": "the layer whose indexer is used",
        r"LLM_KV_ATTENTION_SHARED_KV_LAYERS": "shares keys and values",
        r"LLM_KV_DEEPSTACK_MAPPING": "takes image features",
    }
    never = {("ernie4_5", "has a dense feed-forward"), ("ernie4_5", "has experts"), ("paddleocr", "has experts")}
    never |= {("paddleocr", "has a dense feed-forward")}  # both keys are read for ernie4_5-moe only
    never |= {("bailingmoe", "has a dense feed-forward")}  # the key is read there, and used nowhere
    lacking = {
        (name, what)
        for name, row in architectures().items()
        for pattern, what in asked.items()
        if not row.closed and re.search(pattern, source()[f"models/{row.source}"])
        if what not in {p.what for p in row.properties}
    }
    assert lacking == never


def test_every_row_is_judged_for_every_op() -> None:
    for row in architectures().values():
        for aspect in ASPECTS:
            verdict = judge(row, aspect)
            assert verdict.word in ("done", "if kept", "in part", "refused", "–")
            assert bool(verdict.reasons) == (verdict.word in ("if kept", "in part", "refused")), row.name


def test_every_name_in_the_table_is_used() -> None:
    used = {name for row in architectures().values() for name in row.tensors}
    assert set(ROLES) - used <= {"attn_rot_embd", "rope_factors_long", "rope_factors_short"}
    assert {name for group in GROUPS for name in expand(group)} <= set(ROLES) | used
