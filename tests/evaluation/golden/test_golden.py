"""Golden values are what transformers computes, and a check finds the first thing that differs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from gguf_tools.bundled import bundled_model
from gguf_tools.errors import InputError
from gguf_tools.evaluation.conformance import Case, transformers_logits
from gguf_tools.evaluation.golden.check import Check, check_arrays
from gguf_tools.evaluation.golden.engines import check_command, check_gguf
from gguf_tools.evaluation.golden.meanings import MEANINGS
from gguf_tools.evaluation.golden.read import read_dump, read_golden_files
from gguf_tools.evaluation.golden.suite import name_of, suite_cases, write_suite
from gguf_tools.evaluation.golden.values import kind_of
from gguf_tools.evaluation.golden.write import write_golden
from gguf_tools.runtime.silence import silence_limit
from tests.evaluation.golden.conftest import Place
from tests.evaluation.trace.planting import planted

Arrays = dict[str, NDArray[Any]]


def checked(place: Place, dump: Arrays) -> Check:
    return check_arrays(read_golden_files(place.golden), dump, "engine")


def test_golden_logits_are_transformers(place: Place) -> None:
    golden = load_file(place.golden / "golden.safetensors")
    facts = json.loads((place.golden / "golden.json").read_text("utf-8"))
    prompts = [prompt["tokens"] for prompt in facts["prompts"]]
    for n, logits in enumerate(transformers_logits(place.source, prompts)):
        assert golden[f"tokens_{n}"].tolist() == prompts[n]
        error = np.square(logits - golden[f"logits_{n}"]).sum() / np.square(logits).sum()
        assert error <= 1e-11
    greedy = prompts[0] + facts["prompts"][0]["greedy"]
    (logits,) = transformers_logits(place.source, [greedy])
    assert logits[len(prompts[0]) - 1 : -1].argmax(-1).tolist() == facts["prompts"][0]["greedy"]
    two = np.sort(logits[len(prompts[0]) - 1 : -1], axis=-1)[:, -2:]
    np.testing.assert_allclose(golden["margins_0"], two[:, 1] - two[:, 0], rtol=1e-4)
    assert set(golden) == set(facts["arrays"])
    assert all(
        entry["meaning"] and entry["shape"] == list(golden[name].shape) for name, entry in facts["arrays"].items()
    )


def test_an_arithmetic_that_explains_any_logits_has_no_tolerances(tmp_path: Path) -> None:
    """The bundled dense model in float16, whose logits are another model's."""
    (tmp_path / "golden").mkdir()
    made = write_golden(bundled_model("dense"), tmp_path / "golden", new_tokens=1)
    assert list(made.tolerances) == ["f32", "bf16"]
    assert "NMSE of the logits: f32 1e-10, bf16 " in str(made)
    golden = read_golden_files(tmp_path / "golden")
    with pytest.raises(InputError, match="has no tolerances for f16; give --max-nmse"):
        check_arrays(golden, golden.arrays, "engine", "f16")


def test_what_the_source_cannot_give_is_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no tokenizer that --prompts can be read with"):
        write_golden(place.file, tmp_path, texts=["a"])
    with pytest.raises(
        InputError, match=r"^1000000000 tokens after a prompt of 24 do not fit into the context of \d+; "
    ):
        write_golden(place.source, tmp_path, new_tokens=10**9)
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_not_utf_8_and_a_readme_of_one_heading(tmp_path: Path) -> None:
    source = tmp_path / os.fsdecode(b"a\xff\n# b")
    shutil.copytree(bundled_model("dense"), source)
    (tmp_path / "golden").mkdir()
    write_golden(source, tmp_path / "golden", texts=["a"], new_tokens=1)
    facts = json.loads((tmp_path / "golden" / "golden.json").read_text("utf-8"))
    assert facts["source"]["name"] == source.name
    assert (tmp_path / "golden" / "README.md").read_text("utf-8").startswith("# Golden values of a\\udcff # b\n")
    assert read_golden_files(tmp_path / "golden").prompts


@pytest.mark.parametrize("value", [10**400, float("nan"), "1", None], ids=["huge", "nan", "text", "null"])
def test_a_tolerance_that_is_no_number_is_refused(place: Place, tmp_path: Path, value: object) -> None:
    shutil.copytree(place.golden, tmp_path / "golden")
    facts = json.loads((place.golden / "golden.json").read_text("utf-8"))
    facts["tolerances"]["f32"]["logits"] = value
    (tmp_path / "golden" / "golden.json").write_text(json.dumps(facts), "utf-8")
    with pytest.raises(
        InputError, match=r"golden\.json: is not what tinyq golden writes \(.* is not a finite number\)"
    ):
        read_golden_files(tmp_path / "golden")


def transformers_dump(source: Path, golden: Arrays) -> Arrays:
    """What docs/tracing.md shows: forward hooks on a transformers model, under the golden names."""
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    dump: Arrays = {}

    def kept(name: str) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            values = output[0] if isinstance(output, tuple) else output
            dump[name] = values[0].float().numpy().reshape(values.shape[1], -1)

        return hook

    for n in range(3):
        hooks = []
        for i, layer in enumerate(model.model.layers):
            hooks.append(layer.register_forward_hook(kept(f"points_{n}.layers.{i}.layer_out")))
            hooks.append(layer.self_attn.register_forward_hook(kept(f"points_{n}.layers.{i}.mixer_out")))
            hooks.append(layer.input_layernorm.register_forward_hook(kept(f"points_{n}.layers.{i}.mixer_norm")))
        with torch.inference_mode():
            dump[f"logits_{n}"] = model(torch.tensor([golden[f"tokens_{n}"].tolist()])).logits[0].numpy()
        for hook in hooks:
            hook.remove()
    return dump


def test_the_dump_that_the_page_shows(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of docs/tracing.md, as it stands."""
    page = Path(__file__).parents[3] / "docs" / "tracing.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    (tmp_path / "hf").symlink_to(place.source)
    (tmp_path / "golden").symlink_to(place.golden)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    found = checked(place, read_dump(tmp_path / "mine.safetensors"))
    assert found.passed, found.first
    assert len(found.compared) == 2 * 3 + 1


def test_a_dump_of_transformers_passes_and_a_change_of_it_is_located(place: Place, tmp_path: Path) -> None:
    dump = transformers_dump(place.source, load_file(place.golden / "golden.safetensors"))
    save_file(dump, tmp_path / "dump.safetensors")
    arrays: dict[str, Any] = dump
    np.savez(tmp_path / "dump.npz", **arrays)
    for path in (tmp_path / "dump.safetensors", tmp_path / "dump.npz"):
        found = checked(place, read_dump(path))
        assert found.passed, found.first
        assert len(found.compared) == len(dump)
    dump["points_1.layers.2.mixer_out"][5, 3] += 1.0
    dump["logits_2"] *= 2
    found = checked(place, dump)
    assert found.first
    assert (found.first.prompt, found.first.position, found.first.point) == (1, 5, "layers.2.mixer_out")
    assert "channel 3" in found.first.expected


def test_wrong_shapes_nan_experts_and_tokens(place: Place) -> None:
    golden: Arrays = load_file(place.golden / "golden.safetensors")
    found = checked(place, {"logits_0": golden["logits_0"][:3]})
    assert found.first
    assert found.first.found.startswith("shape 3×")
    bad = golden["logits_1"].copy()
    bad[4, 2] = np.nan
    found = checked(place, {"logits_1": bad})
    assert found.first
    assert (found.first.prompt, found.first.position) == (1, 4)
    chosen = golden["points_0.layers.1.moe.chosen"].copy()
    chosen[7] = sorted(set(range(4)) - set(chosen[7].tolist()))[: chosen.shape[1]]
    found = checked(place, {"points_0.layers.1.moe.chosen": chosen})
    assert found.first
    assert (found.first.position, found.first.point) == (7, "layers.1.moe.chosen")
    found = checked(place, {"logits_0": golden["logits_0"], "tokens_0": golden["tokens_0"] + 1})
    assert found.first
    assert (found.first.point, found.first.position) == ("tokens", 0)
    greedy = golden["greedy_0"].copy()
    greedy[3] += 1
    found = checked(place, {"greedy_0": greedy})
    assert found.first
    assert (found.first.point, found.first.position) == ("greedy", 3)
    with pytest.raises(InputError, match="no array of the golden folder"):
        checked(place, {"hidden": golden["logits_0"]})


def test_a_gguf(place: Place, tmp_path: Path) -> None:
    golden = read_golden_files(place.golden)
    found = check_gguf(golden, place.file, "f32", None, 1)
    assert found.passed, found.first
    assert found.greedy == 24
    bad = planted(place.file, tmp_path / "bad.gguf", ("blk.1.attn_v.weight", np.negative))
    found = check_gguf(golden, bad, "f32", None, 1)
    assert found.first
    assert found.first.point == "logits"


ENGINE = """
import json, sys
facts = json.load(open({facts!r}))
tokens = [int(t) for t in sys.argv[2].split(",")]
known = next(p for p in facts["prompts"] if p["tokens"] == tokens)
print("model", sys.argv[1])
print(*[t + {off} for t in ({prompt} + known["greedy"])])
"""


@pytest.mark.parametrize(("prompt", "off"), [("[]", 0), ("tokens", 0), ("[]", 1)])
def test_a_command(place: Place, tmp_path: Path, prompt: str, off: int) -> None:
    script = tmp_path / "engine.py"
    script.write_text(ENGINE.format(facts=str(place.golden / "golden.json"), off=off, prompt=prompt), "utf-8")
    found = check_command(read_golden_files(place.golden), f"{sys.executable} {script} {{model}} {{tokens}}", "any")
    assert found.passed is not bool(off)


def test_a_command_that_fails(place: Place) -> None:
    golden = read_golden_files(place.golden)
    with pytest.raises(InputError, match=r"has no \{tokens\}"):
        check_command(golden, "engine", "")
    with pytest.raises(InputError, match="cannot be run"):
        check_command(golden, "/nowhere/engine {tokens}", "")
    with pytest.raises(InputError, match="exit code 3: it broke"):
        check_command(
            golden,
            f"{sys.executable} -c \"import sys; sys.exit(print('it broke', file=sys.stderr) or 3)\" {{tokens}}",
            "",
        )


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("print('\\x00 loading … done')", "printed no token ids for prompt 0; expected 8"),
        ("import os; os.kill(os.getpid(), 11)", "ended with exit code -11"),
        ("import time; time.sleep(60)", "did not end within 0.5 s; give a longer --timeout"),
        ("import os\nwhile True: os.write(1, b'7 ' * 9999)", "printed more than 16 MiB"),
        ("import os; os.read(0, 1) or os.kill(os.getpid(), 9)", "ended with exit code -9"),
        ("import sys; sys.stdout.buffer.write(bytes(range(256)) * 999)", None),
    ],
)
def test_a_command_that_misbehaves(place: Place, monkeypatch: pytest.MonkeyPatch, code: str, error: str | None) -> None:
    golden = read_golden_files(place.golden)
    command = f"{sys.executable} -c {shlex.quote(code)} {{tokens}}"
    if error is None:  # the digits among the bytes are not the golden tokens
        assert not check_command(golden, command, "").passed
        return
    with silence_limit(0.5 if "sleep" in code else 120.0), pytest.raises(InputError, match=re.escape(error)):
        check_command(golden, command, "")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc for a process")
def test_what_a_command_leaves_behind_is_ended(place: Place, tmp_path: Path) -> None:
    """A process that it started holds its stdout open, and would for an hour."""
    golden = read_golden_files(place.golden)
    token, pid = golden.prompts[0].greedy[0], tmp_path / "pid"
    script = f"sleep 3600 & echo $! > {pid}; echo {token}"
    assert check_command(golden, f"sh -c {shlex.quote(script)} {{tokens}}", "").first
    state = Path(f"/proc/{pid.read_text().strip()}/stat")
    for _ in range(500):  # a process that was killed is there until it is waited for
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.02)
    raise AssertionError("it still runs")


def test_a_command_with_an_open_quote(place: Place) -> None:
    with pytest.raises(InputError, match="cannot be split into words"):
        check_command(read_golden_files(place.golden), "engine '{tokens}", "")


def test_a_command_that_prints_too_few_tokens(place: Place) -> None:
    golden = read_golden_files(place.golden)
    token = golden.prompts[0].greedy[0]
    found = check_command(golden, f"{sys.executable} -c 'print({token})' {{tokens}}", "")
    assert found.first
    assert (found.first.prompt, found.first.position) == (0, 1)
    assert found.first.found == "no more tokens"


def test_dumps_of_other_layouts(place: Place) -> None:
    """Transposed, another dtype, another shape of the same values, and names that nobody asked for."""
    golden: Arrays = load_file(place.golden / "golden.safetensors")
    logits = golden["logits_0"]
    assert not checked(place, {"logits_0": np.ascontiguousarray(logits.T)}).passed
    assert checked(place, {"logits_0": logits[None].astype(np.float64)}).passed
    found = checked(place, {"logits_0": logits, "hidden_0": logits})
    assert found.passed
    assert found.notes == ("not in the golden folder, and not compared: hidden_0",)
    found = checked(place, {"logits_0": logits.astype(np.float16)})
    assert found.first
    assert found.first.point == "logits"


def test_the_suite_has_every_variant_under_a_name_of_its_own() -> None:
    names = [name_of(case) for case in suite_cases()]
    assert len(set(names)) == len(names) > 100
    assert {case.family.name for case in suite_cases()} >= {"llama", "qwen3-next", "gemma2", "moe-model"}


@pytest.mark.parametrize(
    "case",
    [
        suite_cases()[0],
        next(case for case in suite_cases() if case.expected.target == "gemma2"),  # GELU
        next(case for case in suite_cases() if name_of(case) == "phi3-longrope-long"),
        *suite_cases()[60::50],
    ],
    ids=str,
)
def test_llama_cpp_passes_what_the_suite_asks(case: Case, tmp_path: Path) -> None:
    from gguf_tools.conversion.plan import prepare
    from gguf_tools.conversion.write import execute

    source = case.write(tmp_path)
    execute(prepare(case.request(source, type="f32")), tmp_path / "file.gguf")
    (tmp_path / "golden").mkdir()
    made = write_golden(source, tmp_path / "golden")
    assert made.nbytes < 1_000_000
    found = check_gguf(read_golden_files(tmp_path / "golden"), tmp_path / "file.gguf", "f32", None, 1)
    assert found.passed, found.first


def test_a_large_vocabulary_has_shorter_prompts_in_the_suite(tmp_path: Path) -> None:
    """MiniMind's has 6,400 tokens: 24 tokens a prompt would be 1.4 MB of logits."""
    suite = write_suite(tmp_path, points=False, families=("minimind",))
    assert max(entry["bytes"] for entry in suite.entries) < 1_000_000
    large = read_golden_files(tmp_path / "minimind-bare-3")
    assert large.vocab_size == 6400
    assert max(len(prompt.tokens) for prompt in large.prompts) == 12


def test_the_commands(tinyq: Callable[..., Any], place: Place, tmp_path: Path) -> None:
    out = tmp_path / "golden"
    ran = tinyq("golden", place.source, out, "--tokens", 2, "--json", "-")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["folder"] == str(out)
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "golden.json", "golden.safetensors"]
    assert tinyq("golden", place.source, out).code == 2
    assert tinyq("golden", place.source, out, "--force", "-q").code == 0
    ran = tinyq("check", out, "--dump", out / "golden.safetensors")
    assert ran.code == 0, ran.err
    assert "verdict   passed" in ran.out
    golden: Arrays = load_file(out / "golden.safetensors")
    golden["logits_1"][2, 9] += 100
    save_file(golden, tmp_path / "bad.safetensors")
    ran = tinyq("check", out, "--dump", tmp_path / "bad.safetensors", "--json", "-")
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    report = json.loads(ran.out)
    assert report["passed"] is False
    assert report["first_bad"]["prompt"] == 1
    assert report["first_bad"]["position"] == 2
    assert report["first_bad"]["point"] == "logits"
    assert tinyq("check", out).code == 2
    assert tinyq("check", place.source, "--dump", tmp_path / "bad.safetensors").code == 2
    assert tinyq("golden", place.source).code == 2


def test_points_have_meanings(place: Place) -> None:
    facts = json.loads((place.golden / "golden.json").read_text("utf-8"))
    points = {kind_of(name.partition(".")[2]) for name in facts["arrays"] if name.startswith("points_")}
    assert points <= set(MEANINGS)
