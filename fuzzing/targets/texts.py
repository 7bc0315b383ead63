"""Texts that users write or download: front matter, recipes and options of surgery, types, sizes, prompts, questions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click

from fuzzing.mutate import json_mutator
from fuzzing.target import Prepared, Target
from gguf_tools.allocation.given import read_sensitivity
from gguf_tools.api.options import byte_count, type_options
from gguf_tools.commands.surgery_options import WithSurgery, given_recipe
from gguf_tools.evaluation.card.questions import choose, load_completions, load_questions
from gguf_tools.evaluation.prompts import load_prompts
from gguf_tools.formats.plain_yaml import read_plain_yaml
from gguf_tools.formats.text_file import parse_json
from gguf_tools.publishing.folder import checksums_text, read_checksums
from gguf_tools.publishing.model_card.accepted import accepted
from gguf_tools.sources.beside import front_matter
from gguf_tools.sources.hub import parse_name
from gguf_tools.sources.hub.file import Listed
from gguf_tools.sources.hub.source import is_usable
from gguf_tools.tensors.base import Filled
from quant.recipes import recipe
from surgery.algebra import Stack, describe, origins, parted
from surgery.ops import all_ops
from surgery.recipe import Recipe, file_text, parse_text, read_file

LAYERS = 12
OP_WORDS = [
    *(f"{name}(".encode() for name in all_ops()),
    *(
        b")",
        b" + ",
        b"..",
        b":",
        b"@",
        b"x",
        b",",
        b"only=attention",
        b"only=ffn",
        b"method=slerp",
        b"replace=1",
        b"0",
        b"11",
        b"12",
    ),
    *(b"-1", b"1e999", b"nan", b"0.5", b"999999999", b"2..5", b"3:4", "٣".encode(), "²".encode()),
]
RECIPES = (
    "swap(1:3) + interpolate(2:4, 0.5) + bridge(5:2)",
    "path(0..7, 5..9, 11)",
    "repeat(2..5x2) + triple(3) + duplicate(1) + cycle(2..6@-1) + reverse(0..3) + move(3:5)",
    "delete(3, 5..6) + scale(4@0.9, only=ffn)",
    "merge(1:2, slerp) + swap(0:1, only=attention) + interpolate(1:2, 0.5, method=slerp, replace=3)",
    "drop-experts(0..11:1) + swap-experts(0:0:1)",
)


def _applied(found: Recipe) -> bool:
    """Apply a recipe, and read its own text again, which has to say the same."""
    assert parse_text(str(found)) == Recipe(found.ops)
    stack: Stack = found.apply(LAYERS)
    for layer in stack:
        describe(layer), origins(layer), parted(layer)
    return True


def _recipe(folder: Path) -> Prepared:
    def read(data: bytes) -> bool:
        return _applied(parse_text(data.decode("utf-8", "surrogateescape")))

    return Prepared([text.encode() for text in RECIPES], read)


def _recipe_file(folder: Path) -> Prepared:
    path = folder / "recipe.toml"

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        found = read_file(path)
        path.write_text(file_text(found), "utf-8")
        assert read_file(path) == found
        return _applied(found)

    return Prepared([file_text(parse_text(text), LAYERS).encode() for text in RECIPES], read)


def _options(folder: Path) -> Prepared:
    """Each line an argument of a command that takes the options of surgery."""

    @click.command(cls=WithSurgery)
    @click.argument("source")
    @click.argument("out", required=False)
    def command(source: str, out: str | None) -> Recipe | None:
        return given_recipe()

    def read(data: bytes) -> bool:
        found = command.main(data.decode("utf-8", "surrogateescape").split("\n"), "tinyq", standalone_mode=False)
        return isinstance(found, Recipe) and _applied(found)

    seeds = [
        b"IN\nOUT\n--swap\n1:3\n--only\nffn\n--interpolate=2:4@0.5\n--bridge\n5:2",
        b"IN\n--path\n0..7,5..9,11\n--recipe\nswap(1:2) + delete(5)",
    ]
    return Prepared(seeds, read)


def _path(folder: Path) -> Prepared:
    def read(data: bytes) -> bool:
        return _applied(parse_text(f"path({data.decode('utf-8', 'surrogateescape')})"))

    return Prepared([b"0..7,5..9,11", b"0", b"11..11"], read)


def _types(folder: Path) -> Prepared:
    """A type, and texts REGEX=TYPE, a line each."""

    def read(data: bytes) -> bool:
        first, *rest = data.decode("utf-8", "surrogateescape").split("\n")
        recipe(first)
        type_options(rest, rest[0].rpartition("=")[2] if rest else None, None, False)
        return True

    seeds = [b"q4_k_m\nffn_down=q6_k\n^blk\\.[0-9]+\\.attn_(q|k)=q8_0", b"IQ4_XS", b"f32\n(?i)OUTPUT=f16"]
    return Prepared(seeds, read)


def _sizes(folder: Path) -> Prepared:
    def read(data: bytes) -> bool:
        return byte_count(data.decode("utf-8", "surrogateescape"), "--target-size") > 0

    return Prepared([b"500M", b"1.5G", b"2GiB", b"123456", b"1 KB"], read)


def _file(name: str, load: Callable[[Path], object], *seeds: bytes) -> Callable[[Path], Prepared]:
    """A target that reads one file."""

    def prepare(folder: Path) -> Prepared:
        path = folder / name

        def read(data: bytes) -> bool:
            path.write_bytes(data)
            return bool(load(path))

        return Prepared(seeds, read)

    return prepare


def _hub(folder: Path) -> Prepared:
    """A name on the hub, and in the lines after it what the hub lists: a file's path, its size and its SHA-256."""

    def read(data: bytes) -> bool:
        first, *rest = data.decode("utf-8", "surrogateescape").split("\n")
        name = parse_name(first)
        assert name is None or parse_name(str(name)) == name or name.is_commit
        files = [Listed(*row) for line in rest if isinstance(row := parse_json(line, folder), list) and len(row) == 3]
        usable = [file for file in files if is_usable(file)]
        for file in usable:
            assert (folder / file.path).resolve().is_relative_to(folder.resolve())
        return name is not None and len(usable) == len(rest)

    row = json.dumps(["sub/model.safetensors", 100, "0" * 64])
    return Prepared(
        [f"org/name@refs/pr/1/a.gguf\n{row}".encode(), f'org/name@v1\n["config.json", 2, null]\n{row}'.encode()], read
    )


def _lines(*rows: object) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


PROMPTS = _lines(
    {"prompt": "Once upon a time", "max_tokens": 5},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]},
)
QUESTIONS = _lines(
    {"question": "What is the capital of France?", "accept": ["Paris"], "system": "Be brief.", "topic": "places"},
    {"question": "2 + 2?", "accept": ["4", "four"]},
    {"question": "Is it?", "kind": "yesno", "answer": "no"},
    {"question": "How far?", "kind": "number", "answer": 3.5e5, "unit": "km", "tolerance": "5%"},
    {"question": "Which?", "kind": "choice", "options": ["iron", "wood"], "answer": "A", "by": "letters"},
)
COMPLETIONS = _lines({"prompt": "Monday, Tuesday,", "accept": ["Wednesday"]})


def _accepted(path: Path) -> bool:
    """The front matter's values as they come on a card: what the hub accepts of them is accepted whole."""
    front, _ = front_matter(path.parent)
    values = {
        "license": front.license,
        "license_name": front.license_name,
        "license_link": front.license_link,
        "language": list(front.languages),
        "base_model": list(front.base_models),
        "datasets": list(front.datasets),
    }
    kept, _ = accepted(values)
    kept.pop("language_bcp47", None)
    assert accepted(kept) == (kept, ())
    return bool(kept)


CHECKSUMS = checksums_text({"model-Q8_0.gguf": "0123456789abcdef" * 4, "README.md": "f" * 64}).encode()
CARD = b"""---
license: apache-2.0
base_model:
- org/name
datasets: [a/b]
tags: &tags [x, y]
language: en
model_name: "A: b"
date: 2024-01-01
more: {<<: {a: 1}, b: *tags}
---
# Title
"""
ROW = json_mutator(
    [
        "prompt",
        "messages",
        "max_tokens",
        "role",
        "content",
        "question",
        "accept",
        "system",
        "topic",
        "kind",
        "answer",
        "unit",
        "tolerance",
        "options",
        "by",
    ]
)
WEIGHTS = {"a": Filled((2, 64), 1.0)}
SENSITIVITY = json.dumps(
    {
        "budget": {
            "sensitivity": {
                "tokens": 9,
                "tensors": {
                    "a": {"probe": "q4_0", "kl": 0.5, "rms": 1.0, "losses": {"q4_0": 0.5, "q8_0": 0.01, "f16": 0}}
                },
            }
        }
    }
).encode()


def _chosen(path: Path) -> object:
    return choose(str(path), held_out="rest", text=path)


YAML = b"""name: Llama-3
block_size: 8192
norm_eps: 1.0e-05
rope_adjustments: null
bias: false
rope_indices: [1, 2.5, x]
hf_config: {name: a, "org": 'b'}
"""
YAML_WORDS = [
    b": ",
    b"- ",
    b"!!python/object:os.system",
    b"&a ",
    b"*a",
    b"<<: ",
    b"{",
    b"[",
    b"|\n",
    b"? ",
    b"0x",
    b"0b",
    b".nan",
    b"1:2",
]
TARGETS = (
    Target(
        name="recipe",
        title="recipe of surgery, as text",
        prepare=_recipe,
        words=OP_WORDS,
        executions=1_500_000,
        longest=400,
    ),
    Target(
        name="hub",
        title="names on the hub, and its lists of files",
        prepare=_hub,
        words=[b"/", b"..", b"@", b"refs/pr/1", b"\\\\", b"null", b"\\u0000", b".gguf", b".safetensors", b"--"],
        longest=600,
        executions=300_000,
    ),
    Target(
        name="recipe-file",
        title="recipe of surgery, TOML",
        prepare=_recipe_file,
        words=OP_WORDS,
        longest=1000,
        executions=300_000,
    ),
    Target(
        name="surgery-options",
        title="options of surgery",
        prepare=_options,
        words=[*OP_WORDS, b"\n--"],
        longest=400,
        executions=300_000,
    ),
    Target(name="surgery-path", title="--path", prepare=_path, words=OP_WORDS, longest=200, executions=500_000),
    Target(
        name="types",
        title="types and REGEX=TYPE",
        prepare=_types,
        words=[b"q4_k_m", b"q6_k=", b"=f16", b"(?", b"*"],
        longest=200,
        executions=50_000,
    ),
    Target(
        name="sizes",
        title="sizes",
        prepare=_sizes,
        words=[b"GiB", b"K", b"1e9", "٣".encode()],
        longest=60,
        executions=500_000,
    ),
    Target(
        name="front-matter",
        title="README's front matter (YAML)",
        prepare=_file("README.md", _accepted, CARD),
        words=[
            b"---\n",
            b": ",
            b"- ",
            b"!!python/object:os.system",
            b"&a ",
            b"*a",
            b"<<: ",
            b"{",
            b"[",
            b"|\n",
            b"? ",
            b"%YAML 1.1\n",
        ],
        executions=200_000,
        longest=1500,
    ),
    Target(
        name="checksums",
        title="checksums of a publication",
        prepare=_file("SHA256SUMS", lambda path: read_checksums(path.parent), CHECKSUMS),
        words=[b"  ", b"..", b"/", b"\n", b"SHA256SUMS", b"0" * 64],
        executions=200_000,
        longest=400,
    ),
    Target(
        name="prompts",
        title="prompts, JSON lines",
        prepare=_file("p.jsonl", load_prompts, PROMPTS),
        mutate=ROW,
        executions=300_000,
    ),
    Target(
        name="prompts-text", title="prompts, text", prepare=_file("p.txt", load_prompts, b"Once upon\n\nA time\r\n")
    ),
    Target(
        name="sensitivity",
        title="report with a measured sensitivity",
        prepare=_file("r.json", lambda path: read_sensitivity(path, WEIGHTS, frozenset(WEIGHTS)), SENSITIVITY),
        mutate=json_mutator(
            ["budget", "allocation", "sensitivity", "tokens", "tensors", "probe", "kl", "rms", "losses"]
        ),
        executions=100_000,
    ),
    Target(
        name="questions",
        title="questions of the card suite",
        prepare=_file("q.jsonl", load_questions, QUESTIONS, *QUESTIONS.split(b"\n")),
        mutate=ROW,
        executions=300_000,
    ),
    Target(
        name="questions-chosen",
        title="questions of the card suite, chosen, with a text",
        prepare=_file("q.jsonl", _chosen, _lines(*({"question": f"Q{n}?", "accept": ["a"]} for n in range(20)))),
        executions=20_000,
    ),
    Target(
        name="completions",
        title="texts to continue",
        prepare=_file("c.jsonl", load_completions, COMPLETIONS),
        mutate=ROW,
        executions=300_000,
    ),
    Target(
        name="yaml-config",
        title="model_config.yaml",
        prepare=_file("model_config.yaml", lambda path: repr(read_plain_yaml(path)), YAML),
        words=YAML_WORDS,
        executions=200_000,
        longest=1500,
    ),
)
