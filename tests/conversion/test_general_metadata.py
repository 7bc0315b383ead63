"""General metadata: names, licence and ancestry from a model card, sampling defaults, types, and what made the file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_tools import __version__
from gguf_tools.conversion.general_metadata import general_metadata
from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
from gguf_tools.families.registry import family_named, load_model
from gguf_tools.formats.gguf.header import DEFAULT_ALIGNMENT, Field, ValueType, pack_header, read_header
from gguf_tools.model.spec import FrontMatter
from gguf_tools.sources.beside import MOST_FRONT_MATTER, front_matter
from gguf_tools.sources.checkpoint import open_checkpoint
from tests.oracle import convert
from tests.random_model import EXPERTS, layer, random_model
from tests.tiny_models import Tensors, change_config, change_tensors

Copy = Callable[[Path], Path]

CARD = """---
license: other
license_name: my-license
license_link: https://example.org/license
model_name: A tiny model
base_model:
- some-org/Some_Base-1B
- plain
datasets: [roneneldan/TinyStories]
tags: [tiny, test]
language:
- en
- de
---

# Text
"""


def values(metadata: Mapping[str, Field]) -> dict[str, Any]:
    return {key: field.value for key, field in metadata.items()}


NO_FRONT_MATTER = FrontMatter()


def general(
    card: FrontMatter = NO_FRONT_MATTER, folder: Path = Path("/some/Folder-1B"), **generation: Any
) -> dict[str, Any]:
    model = replace(random_model([layer()]), front_matter=card, generation=generation)
    return values(general_metadata(model, folder, "qwen3"))


def carded(folder: Path, text: str) -> FrontMatter:
    (folder / "README.md").write_text(text, "utf-8")
    front, notes = front_matter(folder)
    assert not notes
    return front


def test_a_card_is_read(tmp_path: Path) -> None:
    assert (
        general(carded(tmp_path, CARD)).items()
        >= {
            "general.architecture": "qwen3",
            "general.type": "model",
            "general.name": "A tiny model",
            "general.license": "other",
            "general.license.name": "my-license",
            "general.license.link": "https://example.org/license",
            "general.base_model.count": 2,
            "general.base_model.0.name": "Some Base 1B",
            "general.base_model.0.organization": "some org",
            "general.base_model.0.repo_url": "https://huggingface.co/some-org/Some_Base-1B",
            "general.base_model.1.name": "plain",
            "general.dataset.count": 1,
            "general.dataset.0.name": "TinyStories",
            "general.dataset.0.organization": "roneneldan",
            "general.tags": ("tiny", "test"),
            "general.languages": ("en", "de"),
        }.items()
    )


@pytest.mark.parametrize("text", ["", "# No front matter", "---\nlicense: mit\n", "---\n---\n# Empty\n"])
def test_a_card_without_front_matter_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text, "utf-8")
    assert front_matter(tmp_path) == (FrontMatter(), ())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"---\n[: broken\n---\n", "is not valid YAML (line "),
        (b"---\na: \x07\n---\n", "is not valid YAML ("),
        (b"---\n- a list\n---\n", "has no keys"),
        (b"---\nnull\n---\n", "has no keys"),
        (b"---\n" + b"[" * 5000 + b"\n---\n", "is nested too deeply"),
        (b"---\n!!python/object/apply:os.system ['true']\n---\n", "has no keys"),
        (b"---\na: " + b"x" * MOST_FRONT_MATTER + b"\n---\n", "has 524,292 characters; expected 524,288 at most"),
        (b"---\nlicense: \xff\n---\n", "is not UTF-8 (at byte 14)"),
    ],
)
def test_a_card_that_cannot_be_read_is_none_and_a_note_says_so(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "README.md"
    path.write_bytes(data)
    front, (note,) = front_matter(tmp_path)
    assert front == FrontMatter()
    assert note.startswith(f"{path}: ")
    assert reason in note
    assert note.endswith("without it, no license, base model, tags or languages are stated")
    assert "\n" not in note


def test_a_card_that_is_a_pipe_a_folder_or_a_link_to_nothing_is_none(tmp_path: Path) -> None:
    assert front_matter(tmp_path) == (FrontMatter(), ())
    path = tmp_path / "README.md"
    for make in (os.mkfifo, os.mkdir, lambda where: os.symlink("nowhere", where)):
        make(path)
        front, (note,) = front_matter(tmp_path)
        assert front == FrontMatter()
        assert note.startswith(f"{path}: cannot be read (")
        path.rmdir() if path.is_dir() else path.unlink()


def test_the_model_has_the_note(tmp_path: Path) -> None:
    write = family_named("glm4-moe").tiny
    assert write
    write(tmp_path / "model", "plain", 1)
    (tmp_path / "model" / "README.md").write_bytes(b"\xff")
    assert [note for note in load_model(tmp_path / "model").notes if "README.md" in note]


def test_values_of_other_kinds_are_left_out(tmp_path: Path) -> None:
    text = "---\nlicense: [mit]\nbase_model: {a: 1}\ntags: [1, ok, null]\nlanguage: en\nmodel_name: 7\n---\n"
    assert carded(tmp_path, text) == FrontMatter(tags=("ok",), languages=("en",))


def test_half_characters_do_not_break_the_file(tmp_path: Path) -> None:
    card = carded(tmp_path, '---\nlicense: "x\\ud800"\n---\n')
    metadata = general_metadata(replace(random_model([layer()]), front_matter=card), tmp_path, "qwen3")
    path = tmp_path / "out.gguf"
    path.write_bytes(pack_header(metadata, (), DEFAULT_ALIGNMENT))
    assert read_header(path).get("general.license") == "x\\ud800"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/a/Tiny-1B", "Tiny-1B"),
        ("/a/Tiny-1B/hf", "Tiny-1B"),
        ("/a/Tiny-1B/Checkpoint", "Tiny-1B"),
        ("/model/hf", "hf"),
    ],
)
def test_without_a_card_the_folder_gives_the_name(folder: str, name: str) -> None:
    assert general(folder=Path(folder))["general.name"] == name


def test_the_size_counts_experts() -> None:
    assert general()["general.size_label"] == f"{random_model([layer()]).parameters / 1000:.1f}K"
    model = random_model([layer(feed_forward=EXPERTS)])
    assert values(general_metadata(model, Path("x"), "a"))["general.size_label"].startswith("4x")


def test_sampling_defaults_are_those_of_the_generation_config() -> None:
    found = general(
        temperature=0.7, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.1, max_new_tokens=9, do_sample=True
    )
    sampling = {key.removeprefix("general.sampling."): value for key, value in found.items() if "sampling" in key}
    assert sampling == {"temp": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "penalty_repeat": 1.1}


@pytest.mark.parametrize("value", [None, True, "x", [1], 10**30, -(10**400), float("inf"), float("nan")])
def test_sampling_defaults_that_are_no_numbers_are_left_out(value: Any) -> None:
    found = general(temperature=value, top_k=value)
    assert not any("sampling" in key for key in found)


def test_types_of_the_keys_are_those_that_llama_cpp_reads() -> None:
    model = replace(random_model([layer()]), generation={"temperature": 1, "top_k": 20.0})
    metadata = general_metadata(model, Path("x"), "qwen3")
    assert metadata["general.sampling.temp"].type is ValueType.FLOAT32
    assert metadata["general.sampling.top_k"].type is ValueType.INT32


# Whole files


def test_a_file_says_what_made_it(hybrid_folder: Path, copied: Copy, tmp_path: Path) -> None:
    folder = copied(hybrid_folder)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "top_k": 7}), "utf-8")
    (folder / "README.md").write_text(CARD, "utf-8")
    change_config(folder, {"num_attention_heads": 9})

    def ungate(found: Tensors) -> None:
        for name in [name for name in found if "shared_expert_gate" in name]:
            del found[name]

    change_tensors(folder, ungate)
    (tmp_path / "files").mkdir()
    found = values(read_header(convert(folder, tmp_path / "files" / "out.gguf", "auto")).metadata)
    assert (
        found.items()
        >= {
            "general.name": "A tiny model",
            "general.sampling.temp": 0.5,
            "general.sampling.top_k": 7,
            "general.file_type": 1,
            "tinyq.version": __version__,
            "tinyq.family": "qwen3-next",
            "tinyq.target": "qwen3next",
            "tinyq.type": "f16",
            "tinyq.rewrites": ("zero shared-expert gate",),
            "tinyq.notes": ("config.json says num_attention_heads 9, but the tensors have 4",),
            "tinyq.source.path": "../tiny-hybrid",
            "tinyq.source.digest": open_checkpoint(folder).digest(),
        }.items()
    )
    assert "general.quantization_version" not in found


def test_the_path_of_the_source_holds_when_both_are_moved(qwen3_folder: Path, copied: Copy, tmp_path: Path) -> None:
    copied(qwen3_folder)
    convert(tmp_path / qwen3_folder.name, tmp_path / "out.gguf")
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in (qwen3_folder.name, "out.gguf"):
        shutil.move(tmp_path / name, moved / name)
    recorded = read_header(moved / "out.gguf").get("tinyq.source.path")
    assert open_checkpoint(moved / recorded).config == open_checkpoint(qwen3_folder).config


@pytest.mark.parametrize(
    ("name", "number", "quantized"), [("f32", 0, False), ("f16", 1, False), ("bf16", 32, False), ("q8_0", 7, True)]
)
def test_a_file_says_its_type(qwen3_folder: Path, tmp_path: Path, name: str, number: int, quantized: bool) -> None:
    header = read_header(convert(qwen3_folder, tmp_path / "out.gguf", name))
    assert header.get("general.file_type") == number
    assert header.get("general.quantization_version") == (2 if quantized else None)
    assert header.metadata["general.file_type"].type is ValueType.UINT32


def test_two_conversions_are_the_same_bytes(sharded_folder: Path, tmp_path: Path) -> None:
    for n in (1, 3):
        execute(prepare(Request(source=sharded_folder, type="q8_0")), tmp_path / f"{n}.gguf", threads=n)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "3.gguf").read_bytes()


def test_losses_are_added_up_by_type(sharded_folder: Path, tmp_path: Path) -> None:
    result = execute(prepare(Request(source=sharded_folder, type="f16")), tmp_path / "out.gguf")
    conversion = prepare(Request(source=sharded_folder, type="f16"))
    sizes: dict[str, int] = {}
    for choice, tensor in zip(conversion.choices, conversion.tensors, strict=True):
        sizes[choice.type.name] = sizes.get(choice.type.name, 0) + tensor.size
    assert {name: loss.weights for name, loss in result.losses.items()} == sizes
    assert result.losses["f32"].changed == 0
    loss = result.losses["f16"]
    before = np.concatenate(
        [t.array().ravel() for c, t in zip(conversion.choices, conversion.tensors, strict=True) if c.type.name == "f16"]
    )
    change = before - before.astype(np.float16).astype(np.float32)
    assert loss.changed == np.count_nonzero(change)
    assert loss.max_abs_change == pytest.approx(np.abs(change).max())
    assert loss.rms_change == pytest.approx(np.sqrt(np.mean(change.astype(np.float64) ** 2)))
    assert result.bytes == (tmp_path / "out.gguf").stat().st_size
