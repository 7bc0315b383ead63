"""Model cards: that they say what was measured and nothing else, and that the hub can read them."""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import math
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from gguf import GGUFWriter

from gguf_tools.bundled import bundled_model
from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
from gguf_tools.formats.gguf.header import read_header
from gguf_tools.publishing.model_card.memory import offloaded_bytes
from gguf_tools.publishing.model_card.surgery import SurgeryTold, surgery_section
from gguf_tools.runtime.process import Runtime
from gguf_tools.text import human_bytes
from surgery.told import tell_surgery
from tests.conftest import Ran
from tests.tiny_gguf import dense_tensors, write_dense

Tinyq = Callable[..., Ran]

HYBRID = bundled_model("hybrid")
DENSE = bundled_model("dense")
FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def front_of(text: str) -> dict[str, Any]:
    match = FRONT.match(text)
    assert match
    found: dict[str, Any] = yaml.safe_load(match[1])
    return found


def rows_of(text: str, section: str) -> list[dict[str, str]]:
    """The first table under a heading, a dictionary a line."""
    body = text.split(f"## {section}\n", 1)[1] if section else text
    lines = next(part.strip() for part in body.split("\n\n") if part.strip().startswith("|")).splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(row) for row in cells}) == 1
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("files")
    paths = folder / "small-q8_0.gguf", folder / "small q4_k_m.gguf"
    for path, kind in zip(paths, ("q8_0", "q4_k_m"), strict=True):
        execute(prepare(Request(source=HYBRID, type=kind)), path)
    return paths


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, files: tuple[Path, Path]) -> tuple[Path, dict[str, Any]]:
    """A whole card with everything measured, and its JSON."""
    from gguf_tools.cli import run

    report = tmp_path_factory.mktemp("report") / "card.json"
    arguments = ["--questions", "bundled", "--modelfile", "--json", report, "-q", "--context", "128"]
    names = ["--quantized-by", "somebody", "--base-model", "someone/something"]
    assert run([str(a) for a in ("card", HYBRID, *files, *arguments, *names)]) == 0
    return files[0].parent, json.loads(report.read_text("utf-8"))


def test_front_matter(made: tuple[Path, dict[str, Any]]) -> None:
    text = (made[0] / "README.md").read_text("utf-8")
    front = front_of(text)
    assert front == {
        "license": "mit",
        "language": ["en"],
        "base_model": "someone/something",
        "base_model_relation": "quantized",
        "model_name": "tinyq hybrid",
        "pipeline_tag": "text-generation",
        "library_name": "gguf",
        "quantized_by": "somebody",
        "tags": ["gguf", "qwen3next", "tinyq", "qwen3_next", "tiny", "stories", "test"],
    }
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(text).data.to_dict()
    assert {key: data[key] for key in front} == front


def test_every_figure_is_one_that_was_measured(made: tuple[Path, dict[str, Any]], files: tuple[Path, Path]) -> None:
    folder, report = made
    text = (folder / "README.md").read_text("utf-8")
    rows = rows_of(text, "Files")
    for row, path, model in zip(rows, files, report["models"], strict=True):
        assert row["File"] == f"[{path.name}]({quote(path.name)})"
        size = path.stat().st_size
        weights = sum(math.prod(entry.shape) for entry in read_header(path).tensors)
        assert row["Size"] == human_bytes(size) == human_bytes(model["model"]["bytes"])
        assert row["Bits/weight"] == f"{model['model']['bpw']:.2f}"
        assert model["model"]["bpw"] * weights / 8 == pytest.approx(sum(e.nbytes for e in read_header(path).tensors))
        assert row["KL (nats)"] == f"{model['fidelity']['kl_mean']:.2g}"
        assert row["Top-1"] == f"{model['fidelity']['top1_agreement']:.2%}"
    for row, path in zip(rows_of(text, "Memory"), files, strict=True):
        with Runtime(path) as runtime:
            memory = runtime.memory(128)
        assert row["File"] == path.name
        assert row["Memory"] == human_bytes(memory.total)
        assert [row["Weights"], row["Cache"], row["Compute"]] == [
            human_bytes(part) for part in (memory.weights, memory.cache, memory.compute)
        ]
    scores = {row["File"]: row for row in rows_of(text, "Score")}
    for model in report["models"]:
        row = scores[Path(model["model"]["path"]).name]
        card = model["card"]
        facts = card["parts"]["facts"]
        assert row["score"] == f"{card['score']:.2f}"
        assert row["facts"] == f"{facts['right']}/{facts['total']}"
        assert float(row["perplexity"]) == pytest.approx(card["parts"]["perplexity"]["perplexity"], rel=1e-3)
    assert [float(row["score"]) for row in scores.values()] == sorted(
        (float(row["score"]) for row in scores.values()), reverse=True
    )
    power = report["models"][0]["card"]["power"]
    assert f"- 17 questions: a difference if {power['flips']} answers change, all one way" in text
    assert f"- 16 passages: p down to {power['text']['least_p']:.2g} in bits per byte" in text
    best, other = scores
    assert f"Compared with the best, {best}, on the same items" in text
    assert re.search(rf"^\| {other} \| .* \| no significant difference \|$", text, re.MULTILINE)


def test_what_it_was_measured_with_and_made_from_is_told(files: tuple[Path, Path], tmp_path: Path) -> None:
    """The engine's options are those of `tinyq eval`; a file quantized twice is called so."""
    from gguf_tools.cli import run

    again = tmp_path / "again.gguf"
    assert run(["quantize", str(files[0]), str(again), "q4_0", "--allow-requantize", "-q"]) == 0
    report = tmp_path / "card.json"
    options = ["--suite", "none", "--kv-type", "q8_0", "--flash-attn", "--threads", "1", "-q", "--json", str(report)]
    assert run(["card", str(HYBRID), str(again), *options]) == 0
    text = (tmp_path / "README.md").read_text("utf-8")
    told = dict(re.findall(r"^\| ([^|]+?) *\| ([^|]+?) *\|$", text.split("## Provenance")[1], re.MULTILINE))
    assert told["Requantized from"] == told["Made from a file of type"] == "q8_0"
    assert told["SHA-256 of that file"] == hashlib.sha256(files[0].read_bytes()).hexdigest()
    assert told["Settings"] == "q8_0 cache, with flash attention, 1 thread, on the CPU, greedy decoding"
    (model,) = json.loads(report.read_text("utf-8"))["models"]
    engine = model["engine"]
    assert told["Measured with"] == (
        f"tinyq {engine['tinyq']}, llama.cpp {engine['llama_cpp']}, llama-cpp-python {engine['llama_cpp_python']}, "
        f"gguf {engine['gguf']}"
    )
    (row,) = rows_of(text, "Files")
    assert row["Type"] == "q4_0 (requantized from q8_0)"


def test_usage_is_what_the_files_are(made: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = made
    text = (folder / "README.md").read_text("utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code
    calls = [node for node in ast.walk(ast.parse(code[1])) if isinstance(node, ast.Call)]
    named = {kw.arg: ast.literal_eval(kw.value) for call in calls for kw in call.keywords}
    assert named == {"n_ctx": 128, "temperature": 0.7, "top_k": 20, "top_p": 0.9}
    shell = re.search(r"```bash\n(llama-cli .*)\n", text)
    assert shell
    assert shlex.split(shell[1])[1:5] == ["-m", "small-q8_0.gguf", "-c", "128"]
    assert '{"enable_thinking": false}' in text
    assert "ollama create tinyq-hybrid -f Modelfile" in text
    modelfile = (folder / "Modelfile").read_text("utf-8")
    assert modelfile.startswith("FROM ./small-q8_0.gguf\n")
    assert "PARAMETER temperature 0.7\n" in modelfile
    assert "PARAMETER num_ctx 128\n" in modelfile
    assert modelfile not in text


def test_what_was_not_measured_is_left_out(tinyq: Tinyq, files: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "card.md"
    ran = tinyq("card", HYBRID, files[1], "--suite", "none", "--out", page)
    assert (ran.code, ran.out) == (0, f"wrote {page}\n")
    text = page.read_text("utf-8")
    assert not any(word in text for word in ("## Score", "KL", "Top-1", "quantized_by", "base_model", "surgery"))
    assert "Hello!" in text, "no question was asked that could stand as an example"
    (row,) = rows_of(text, "Files")
    place = Path(os.path.relpath(files[1], tmp_path)).as_posix()
    assert shlex.quote(place) in text
    assert row["File"].endswith(f"]({quote(place)})")
    assert f'FROM "{place}"' in text, "the Modelfile is shown where none is written"
    assert not (tmp_path / "Modelfile").exists()


def test_surgery_on_the_checkpoint_is_told_beside_the_original(tinyq: Tinyq, tmp_path: Path) -> None:
    """The file was converted from a folder that `tinyq surgery` wrote, by a conversion that does more surgery."""
    folder, operated, original = tmp_path / "folder", tmp_path / "operated.gguf", tmp_path / "original.gguf"
    questions = tmp_path / "questions.jsonl"
    asked = ["What is the capital of France?", "What color is grass?"]
    questions.write_text("".join(f'{{"question": "{one}", "accept": ["Paris", "green"]}}\n' for one in asked), "utf-8")
    recipe = "swap(0:2) + interpolate(3:5, 0.5)"
    assert tinyq("surgery", DENSE, folder, "--recipe", recipe, "-q").code == 0
    assert tinyq("convert", folder, operated, "--type", "q8_0", "--duplicate", "4", "-q").code == 0
    assert tinyq("convert", DENSE, original, "--type", "q8_0", "-q").code == 0
    report = tmp_path / "card.json"
    arguments = ("--suite", "card", "--questions", questions, "-q", "--base-model", "a/b", "--json", report)
    assert tinyq("card", folder, operated, "--baseline", original, *arguments).code == 0
    text = (tmp_path / "README.md").read_text("utf-8")
    assert "The 12 layers of the original became 14." in text
    for sentence in (
        "1. Layers 0 and 2 change places.",
        "2. A layer made of 0.5 of layer 3 and 0.5 of layer 5 is inserted after layer 3.",
        "3. A copy of layer 4 is inserted after it.",
        f"`{recipe} + duplicate(4)`",
        " 0 a │  0 a │ was 2",
    ):
        assert sentence in text
    front = front_of(text)
    assert "layer-surgery" in front["tags"]
    assert "base_model_relation" not in front, "an operated model is not merely a quantized one"
    versions = {row[""]: row for row in rows_of(text, "Comparison")}
    assert [versions["Layers"][name] for name in ("original.gguf", "operated.gguf")] == ["12", "14"]
    assert [versions["Surgery"][name] for name in ("original.gguf", "operated.gguf")] == [
        "–",
        f"{recipe} + duplicate(4)",
    ]
    data = json.loads(report.read_text("utf-8"))
    measured = {"operated.gguf": data["models"][0]["card"], "original.gguf": data["baselines"][0]["card"]}
    results = {row["Measured"]: row for row in rows_of(text.split("Measured alike", 1)[1], "")}
    for name, card in measured.items():
        bits = card["parts"]["perplexity"]["bits_per_byte"]
        assert results["bits/byte"][name] == f"{bits:.3f}"
        assert results["score"][name].startswith(f"{card['score']:.2f} (")
        assert results["facts"][name].startswith(f"{card['parts']['facts']['right']}/2 (")
    by = measured["operated.gguf"]["parts"]["perplexity"], measured["original.gguf"]["parts"]["perplexity"]
    change = results["bits/byte"]["Δ original.gguf"].strip("*")
    assert change.startswith(f"{by[0]['bits_per_byte'] - by[1]['bits_per_byte']:+.3f} (")
    relative = results["perplexity"]["Δ original.gguf"].strip("*")
    assert relative.startswith(f"{by[0]['perplexity'] / by[1]['perplexity'] - 1:+.1%} (")
    assert "| What is the capital of France? | " in text.split("What was asked", 1)[1]
    assert "### With thinking" in text
    assert "### Without thinking" in text


def test_baselines_need_the_card_suite(tinyq: Tinyq, files: tuple[Path, Path], tmp_path: Path) -> None:
    command = ("card", HYBRID, files[0], "--out", tmp_path / "card.md")
    ran = tinyq(*command, "--baseline", files[1], "--suite", "fidelity")
    assert (ran.code, ran.err.split(";")[0]) == (2, "tinyq: --baseline needs --suite card or all")
    assert "is given twice" in tinyq(*command, "--baseline", files[0]).err
    assert tinyq(*command, "--baseline", HYBRID / "config.json").code == 2
    assert not (tmp_path / "card.md").exists()


def test_files_of_different_surgery_are_told_apart(tmp_path: Path) -> None:
    def file(name: str, **keys: str) -> SurgeryTold | None:
        writer = GGUFWriter(tmp_path / name, "qwen3")
        for key, value in keys.items():
            writer.add_string(key.replace("_", "."), value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tell_surgery(read_header(tmp_path / name), 4, "aaaa")

    told = {
        "plain": file("plain"),
        "swapped": file("swapped", tinyq_surgery="swap(0:2)"),
        "both": file("both", tinyq_surgery="delete(1)", tinyq_source_recipe='layers = 3\nsteps = ["repeat(1x3)"]\n'),
        "path": file("path", tinyq_surgery="path(0, 0, 2, 1)"),
        "broken": file("broken", tinyq_surgery="swap(`<b>"),
    }
    assert told["plain"] is None
    counts = {name: (one.before, one.after) for name, one in told.items() if one}
    assert counts == {"swapped": (4, 4), "both": (3, 4), "path": (None, 4), "broken": (None, 4)}
    text = surgery_section(list(told.items()))
    assert "The 4 layers of swapped were changed; their number is the same." in text
    assert "The 3 layers of the original became 4 in both." in text
    assert "The layers of path were changed; there are 4 now." in text
    assert "`swap('<b>`" in text
    assert surgery_section([("plain", None)]) == ""


@pytest.mark.parametrize("tied", [True, False])
def test_the_tensors_that_a_gpu_would_hold(tmp_path: Path, tied: bool) -> None:
    """All but the input embedding; an embedding that is the output too is held a second time."""
    tensors = dense_tensors(2)
    output = tensors.pop("output.weight", tensors["token_embd.weight"])
    path = write_dense(tmp_path / "a.gguf", tensors if tied else {**tensors, "output.weight": output})
    total = sum(entry.nbytes for entry in read_header(path).tensors)
    embedding = next(entry.nbytes for entry in read_header(path).tensors if entry.name == "token_embd.weight")
    assert offloaded_bytes(path) == (total if tied else total - embedding)


def test_the_hub_id_of_the_source(tinyq: Tinyq, files: tuple[Path, Path], tmp_path: Path) -> None:
    cached = tmp_path / "models--Some--Model-1B" / "snapshots" / "abc"
    shutil.copytree(HYBRID, cached)
    page = tmp_path / "card.md"
    assert tinyq("card", cached, files[0], "--suite", "none", "--out", page, "-q").code == 0
    assert front_of(page.read_text("utf-8"))["base_model"] == "Some/Model-1B"
    named = tmp_path / "named"
    shutil.copytree(HYBRID, named)
    config = json.loads((named / "config.json").read_text("utf-8"))
    (named / "config.json").write_text(json.dumps(config | {"_name_or_path": "Other/Model"}), "utf-8")
    assert tinyq("card", named, files[0], "--suite", "none", "--out", page, "-q", "--force").code == 0
    assert front_of(page.read_text("utf-8"))["base_model"] == "Other/Model"


def test_the_worst_names_stay_in_their_place(tinyq: Tinyq, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(HYBRID, source)
    name = "a | b `c`\n# d: {e}"
    front = yaml.safe_dump({"model_name": name, "license": "mit", "tags": ["x: y", "- z"]})
    (source / "README.md").write_text(f"---\n{front}---\n", "utf-8")
    path = tmp_path / "x|y.gguf"
    assert tinyq("convert", source, path, "--type", "q8_0", "-q").code == 0
    assert tinyq("card", source, path, "--suite", "none", "-q").code == 0
    text = (tmp_path / "README.md").read_text("utf-8")
    assert front_of(text)["tags"][-2:] == ["x: y", "- z"]
    assert next(line for line in text.splitlines() if line.startswith("# ")) == "# a | b 'c' # d: {e}"
    assert rows_of(text, "Files")[0]["File"].startswith("[x\\|y.gguf]")
    assert re.search(r"ollama create [a-z0-9._-]+ -f", text)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--base-model", "no id"), "--base-model is 'no id'; expected a hub id (owner/name)"),
        (("--questions", "nowhere"), "nowhere: is neither a question set"),
        (("--context", "100000"), "the model's context has 256 tokens, but --context is 100000"),
        (("--context", "9" * 30), "'--context': " + "9" * 30 + " is not in the range"),
        (("--base-model", "../.."), "--base-model is '../..'; expected a hub id (owner/name)"),
        (("--quantized-by", "a\n---\nb"), "--quantized-by is 'a\\n---\\nb'; expected a name of printable characters"),
        (("--json", "nowhere/x.json"), "the folder nowhere does not exist"),
        (("--out", "nowhere/card.md"), "the folder nowhere does not exist"),
    ],
)
def test_wrong_requests(
    tinyq: Tinyq, files: tuple[Path, Path], tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    out = () if "--out" in arguments else ("--out", tmp_path / "card.md")
    suite = ("--suite", "card" if "--questions" in arguments else "none")
    ran = tinyq("card", HYBRID, files[0], *out, *arguments, *suite)
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert expected in ran.err
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_exist_are_refused_before_anything_is_measured(
    tinyq: Tinyq, files: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "Modelfile").write_text("mine")
    ran = tinyq("card", HYBRID, files[0], "--out", tmp_path / "README.md", "--modelfile")
    assert (ran.code, ran.out) == (2, "")
    assert f"{tmp_path / 'Modelfile'}: exists already" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["Modelfile"]
    missing = tinyq("card", tmp_path / "nothing", files[0], "--out", tmp_path / "README.md", "--suite", "none")
    assert missing.code == 2
    assert "nothing" in missing.err


def test_nothing_is_written_over_what_is_read(tinyq: Tinyq, files: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    shutil.copy(files[0], path)
    before = path.read_bytes()
    for option in ("--out", "--json"):
        ran = tinyq("card", HYBRID, path, "--suite", "none", "--force", option, path)
        assert (ran.code, ran.out) == (2, "")
        assert f"{path}: is also an input of this command; give {option} another path" in ran.err
    both = tinyq("card", HYBRID, path, "--suite", "none", "--modelfile", "--out", tmp_path / "Modelfile")
    assert f"{tmp_path / 'Modelfile'}: is also the output of --out" in both.err
    twice = tinyq("card", HYBRID, path, path, "--suite", "none")
    assert f"{path}: is given twice; give each file once" in twice.err
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_card_and_modelfile_appear_together_or_not_at_all(
    tinyq: Tinyq, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []

    def second_fails(descriptor: int) -> None:
        flushed.append(descriptor)
        if len(flushed) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", second_fails)
        ran = tinyq("card", HYBRID, files[0], "--suite", "none", "--modelfile", "--out", tmp_path / "README.md")
    assert (ran.code, ran.out, len(flushed)) == (2, "", 2)
    assert "could not be written (the disk is full)" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_files_of_one_name_in_two_folders(tinyq: Tinyq, files: tuple[Path, Path], tmp_path: Path) -> None:
    question = tmp_path / "one.jsonl"
    question.write_text('{"question": "What is 2 plus 2?", "accept": ["4"]}\n', "utf-8")
    paths = tmp_path / "a" / "m.gguf", tmp_path / "b" / "m.gguf"
    for path, file in zip(paths, files, strict=True):
        path.parent.mkdir()
        shutil.copy(file, path)
    page = tmp_path / "README.md"
    options = ("--suite", "card", "--questions", question, "--out", page, "-q")
    assert tinyq("card", HYBRID, *paths, *options).code == 0
    text = page.read_text("utf-8")
    assert [row["File"] for row in rows_of(text, "Files")] == ["[a/m.gguf](a/m.gguf)", "[b/m.gguf](b/m.gguf)"]
    assert {row["File"] for row in rows_of(text, "Score")} == {"a/m.gguf", "b/m.gguf"}
    assert "\n1 question of the set" in text
    assert "FROM ./a/m.gguf\n" in text


def test_hostile_metadata_stays_text(tinyq: Tinyq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "x\n---\n# <script> ![i](http://x) [l](http://y) | `c` \x1b[31m \u202e"

    def add_name(writer: GGUFWriter, _: str) -> None:
        writer.add_string("general.name", hostile)
        writer.add_string("general.license", hostile)
        writer.add_array("general.tags", [hostile, "", "good"])
        writer.add_uint32("general.base_model.count", 0xFFFFFFFF)
        writer.add_string("general.base_model.0.repo_url", "https://huggingface.co/some/model")
        writer.add_string("general.base_model.1.repo_url", "https://huggingface.co/../..")
        writer.add_uint32("tinyq.type", 7)
        writer.add_string("tinyq.family", hostile)

    monkeypatch.setattr(GGUFWriter, "add_name", add_name)
    path = write_dense(tmp_path / "a]b<c>#d?.gguf", chat=True)
    assert tinyq("card", path, path, "--suite", "none", "-q").code == 0
    text = (tmp_path / "README.md").read_text("utf-8")
    front = front_of(text)
    assert front["base_model"] == "some/model"
    assert front["tags"][-1] == "good"
    assert "" not in front["tags"]
    assert front["license"] == "other"  # the hub would refuse the other
    assert re.fullmatch(r"[a-z0-9][\w.+-]*", front["license_name"])
    body = FRONT.sub("", text)
    assert not re.search(r"(?<!\\)<|\x1b|\u202e", body.split("## Usage")[0] + body.split("## Provenance")[1])
    assert re.search(r"^# x --- # \\<script> !\\\[i\\\]\(http://x\)", body, re.MULTILINE)
    (row,) = rows_of(text, "Files")
    assert row["File"] == "[a\\]b\\<c>#d?.gguf](a%5Db%3Cc%3E%23d%3F.gguf)"
    assert row["Type"] == "all F32", "what is no text is not the type"


def test_another_source_is_told(tinyq: Tinyq, files: tuple[Path, Path], tmp_path: Path) -> None:
    """As where the weights were trained on after the files had been made."""
    other = tmp_path / "other"
    shutil.copytree(HYBRID, other)
    config = json.loads((other / "config.json").read_text("utf-8"))
    (other / "config.json").write_text(json.dumps(config | {"transformers_version": "0"}), "utf-8")
    page = tmp_path / "card.md"
    assert tinyq("card", other, files[0], "--suite", "fidelity", "--out", page, "-q").code == 0
    assert f"The reference is not, or no longer, the source that {files[0].name} records." in page.read_text("utf-8")
    assert tinyq("card", HYBRID, files[0], "--suite", "fidelity", "--out", page, "-q", "--force").code == 0
    assert "no longer" not in page.read_text("utf-8")
