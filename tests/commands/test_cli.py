"""The command line as a whole: what it loads, usage errors, interrupts and closed pipes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete

from gguf_tools import __version__, cli
from gguf_tools.commands.sources import SourcePath
from gguf_tools.errors import LlamaError, OutputError, ThresholdError, TinyqError
from quant import kernels
from tests.conftest import Ran
from tests.tiny_gguf import write_dense

Tinyq = Callable[..., Ran]
HEAVY = ("torch", "numpy", "gguf", "tokenizers", "llama_cpp", "transformers", "safetensors", "yaml", "jinja2")

IMPORTS = """
import json, sys
from gguf_tools.cli import run
code = run(sys.argv[2:])
print(json.dumps([code, [name for name in json.loads(sys.argv[1]) if name in sys.modules]]))
"""


def imported(names: tuple[str, ...], *args: str) -> list[str]:
    """Which of these modules a command loads in a fresh process."""
    command = [sys.executable, "-c", IMPORTS, json.dumps(names), *args]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, found = json.loads(done.stdout.splitlines()[-1])
    assert code == 0
    return list(found)


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["-h"]])
def test_help_loads_nothing_heavy(args: list[str]) -> None:
    assert imported(HEAVY, *args) == []


@pytest.mark.parametrize("command", ["convert", "eval", "demo"])
def test_help_of_a_command_loads_no_torch(command: str) -> None:
    assert imported(("torch", "transformers", "llama_cpp"), command, "--help") == []


@pytest.mark.parametrize("line", [("convert", "out.gguf"), ("publish", "-o", "out")])
def test_a_dry_run_loads_no_torch(qwen3_folder: Path, line: tuple[str, ...]) -> None:
    command, *out = line
    args = (command, str(qwen3_folder), *out, "--dry-run")
    assert imported(("torch", "transformers", "llama_cpp"), *args) == []


def test_help_lists_every_command(tinyq: Tinyq) -> None:
    ran = tinyq("--help")
    assert ran.code == 0
    for name, (_, text) in cli.COMMANDS.items():
        assert any(line.split()[:1] == [name] and text.split()[0] in line for line in ran.out.splitlines())


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(tinyq: Tinyq, name: str) -> None:
    ran = tinyq(name, "--help")
    assert ran.code == 0
    assert ran.out.startswith(f"Usage: tinyq {name} ")
    assert ran.err == ""


@pytest.mark.parametrize("name", [None, *cli.COMMANDS])
def test_every_help_ends_with_an_example_that_is_valid(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SourcePath, "convert", lambda _, value, *__: Path(value))  # names on the hub are not asked for
    group = click.Context(cli.tinyq, info_name="tinyq", terminal_width=80)
    command = cli.tinyq.get_command(group, name) if name else None
    help_text = (
        command.get_help(click.Context(command, info_name=name, parent=group)) if command else cli.tinyq.get_help(group)
    )
    *_, head, end = re.split(r"(Examples?:)\n", help_text)
    lines = [line.strip() for line in end.splitlines()]
    assert head == ("Example:" if len(lines) == 1 else "Examples:")
    for line in lines:
        assert len(line) <= 78
        first, called, *args = shlex.split(line)
        assert (first, called) == ("tinyq", name or called)
        found = cli.tinyq.get_command(group, called)
        assert found
        with found.make_context(called, args, parent=group):
            pass


def test_version(tinyq: Tinyq) -> None:
    assert tinyq("--version") == Ran(0, f"tinyq, version {__version__}\n", "")


@pytest.mark.parametrize("args", [("--version", "-v"), ("-v", "--version")])
def test_version_with_the_encoder(tinyq: Tinyq, args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    assert tinyq(*args) == Ran(0, f"tinyq, version {__version__}\nencoder: {kernels.describe()}\n", "")
    monkeypatch.setenv(kernels.SETTING, "mmx")
    ran = tinyq(*args)
    if kernels.available():
        assert ran.err.startswith("tinyq: TINYQ_KERNELS is 'mmx'; expected off")
        assert ran.code == 2


def test_an_unknown_command_is_named_with_those_there_are(tinyq: Tinyq) -> None:
    ran = tinyq("transmogrify", "--help")
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert "there is no command 'transmogrify'; expected one of convert, " in ran.err


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["evl", "a.gguf"], "there is no command 'evl'; did you mean eval"),
        (["Quantise"], "did you mean quantize?"),
        (["quantize", "a", "b", "q4km"], "similar types are q4_k_m, "),
        (["surgery", "a", "b", "--swpa", "1:2"], "--swap"),
        (["surgery", "a", "b", "--recipe", "solr-dus"], "did you mean solar-dus?"),
        (["surgery", "a", "b", "--recipe", "swpa(1:2)"], "did you mean swap?"),
        (["eval", "a", "--suit", "card"], "--suite"),
        (["eval", "a", "--suite", "crad"], "'card'"),
        (["eval", "a", "--suite", "card", "--weight", "fatcs=4"], "did you mean facts?"),
        (["golden", "--all", "out", "--family", "lama"], "did you mean llama"),
    ],
)
def test_what_is_nearly_right_is_suggested(tinyq: Tinyq, args: list[str], expected: str, tmp_path: Path) -> None:
    write_dense(tmp_path / "a")
    ran = tinyq(*(str(tmp_path / arg) if arg in ("a", "b", "out") else arg for arg in args))
    assert ran.code == 2
    assert expected in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "word", "expected"),
    [
        ([], "ver", ["verify"]),
        (["convert", "a", "b", "--type"], "q4_k_", ["q4_k_m", "q4_k_s"]),
        (["convert", "a", "b", "--type"], "AU", ["auto"]),
        (["quantize", "a", "b"], "q5_k_", ["q5_k_m", "q5_k_s"]),
        (["quantize", "a", "b", "--tensor-type"], "ffn_down=q6", ["ffn_down=q6_K"]),
        (["convert", "a", "b", "--as"], "qwen3_n", ["qwen3_next"]),
        (["convert", "a", "b", "--target"], "qwen3n", ["qwen3next"]),
        (["golden", "--family"], "minim", ["minimind"]),
        (["surgery", "a", "b", "--recipe"], "solar", ["solar-dus", "solar"]),
        (["surgery", "--recipe", "rys", "a", "b", "--swap", "1:2"], "--interp", ["--interpolate"]),
        (["convert", "a", "b"], "--interpol", ["--interpolate"]),
        (["surgery", "a", "b", "--swap", "1:2", "--only"], "att", ["attention"]),
        (["eval", "a", "--weight"], "non", ["non-thinking="]),
        (["eval", "a", "--format"], "m", ["markdown"]),
    ],
)
def test_the_shell_completes(args: list[str], word: str, expected: list[str]) -> None:
    completion = ShellComplete(cli.tinyq, {}, "tinyq", "_TINYQ_COMPLETE")
    assert sorted(item.value for item in completion.get_completions(args, word)) == sorted(expected)


def test_bash_asks_for_completions() -> None:
    asked = {
        **os.environ,
        "_TINYQ_COMPLETE": "bash_complete",
        "COMP_WORDS": "tinyq quantize a b iq4",
        "COMP_CWORD": "4",
    }
    done = subprocess.run([sys.executable, "-m", "gguf_tools"], env=asked, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split()) == ["plain,iq4_nl", "plain,iq4_xs"]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["convert"], "Missing argument 'SOURCE'"),
        (["convert", "a"], "Missing argument 'OUT'"),
        (["convert", "a", "b", "c"], "unexpected extra argument"),
        (["convert", "a", "b", "--tipe", "f16"], "--tipe"),
        (["convert", "a", "b", "--threads", "0"], "--threads"),
        (["convert", "a", "b", "--threads", "many"], "'many' is not a valid integer"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_wrong_usage_is_one_line(tinyq: Tinyq, args: list[str], expected: str) -> None:
    ran = tinyq(*args)
    assert ran.code == 2
    assert ran.out == ""
    assert expected in ran.err
    assert ran.err.count("\n") == 1
    assert "--help" in ran.err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (TinyqError("a\nb  c"), 2, "tinyq: a\\nb c\n"),
        (OutputError("out"), 2, "tinyq: out\n"),
        (ThresholdError("short"), 1, "tinyq: short\n"),
        (LlamaError("aborted"), 3, "tinyq: aborted\n"),
        (KeyboardInterrupt(), 130, "tinyq: interrupted; no output was left behind\n"),
        (
            PermissionError(13, "Permission denied", "/some/file"),
            2,
            "tinyq: /some/file: Permission denied; check its permissions and those of its folder; no output was left behind\n",
        ),
        (OSError("odd"), 2, "tinyq: odd; check the path and the disk; no output was left behind\n"),
    ],
)
def test_errors_become_a_line_and_an_exit_code(
    tinyq: Tinyq, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(cli.tinyq, "main", lambda **_: fail())
    assert tinyq("convert") == Ran(code, "", line)


def test_a_fault_of_ours_is_a_line_that_says_so(tinyq: Tinyq, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise AssertionError("a bug\nin \x1b[31mred")

    monkeypatch.setattr(cli.tinyq, "main", fail)
    ran = tinyq("convert")
    assert (ran.code, ran.out, ran.err.count("\n")) == (cli.FAULT, "", 1)
    assert "internal error of tinyq: AssertionError at " in ran.err
    assert "(a bug in \\x1b[31mred)" in ran.err
    assert "please report it" in ran.err
    monkeypatch.setenv(cli.DEBUG, "1")
    ran = tinyq("convert")
    assert ran.code == cli.FAULT
    assert "Traceback (most recent call last)" in ran.err
    assert "test_cli.py" in ran.err


def test_the_end_of_a_file_is_no_interrupt(tinyq: Tinyq, monkeypatch: pytest.MonkeyPatch) -> None:
    """click takes an EOFError for the end of what is typed."""

    def fail(*_: Any, **__: Any) -> None:
        raise EOFError("EOF read where object expected")

    monkeypatch.setattr("gguf_tools.inspect", fail)
    ran = tinyq("inspect", "a")
    assert ran.code == cli.FAULT
    assert "internal error of tinyq: EOFError" in ran.err


@pytest.mark.parametrize(("module", "package"), [("torch", "torch"), ("yaml", "pyyaml")])
def test_a_required_package_that_is_missing_is_named(module: str, package: str) -> None:
    """As after `pip install --no-deps`."""
    hidden = f"import sys; sys.modules[{module!r}] = None; from gguf_tools.cli import main; main(['demo', '--force'])"
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        f"tinyq: {package} is not installed, and this command needs it; pip install {package}\n",
    )


# Signals

INTERRUPTED = "tinyq: interrupted; no output was left behind"
SLOW = """
import sys, time
import gguf_tools.conversion.plan, gguf_tools.conversion.write, gguf_tools.evaluation.vocabulary
from gguf_tools.cli import main
module, name = sys.argv[1].split(":")
def slow(*args, **options):
    print("now", flush=True)
    time.sleep(60)
setattr(sys.modules[module], name, slow)
main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    "moment",
    [
        "gguf_tools.conversion.plan:smallest_exact",
        "gguf_tools.conversion.write:write_groups",
        "gguf_tools.evaluation.vocabulary:prove_vocabulary",
    ],
    ids=["reading", "writing", "proving"],
)
def test_an_interrupt_at_any_moment_is_one_line(qwen3_folder: Path, tmp_path: Path, moment: str) -> None:
    command = [sys.executable, "-c", SLOW, moment, "convert", str(qwen3_folder), str(tmp_path / "out.gguf")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "now\n"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    # Where the terminal shows ^C, an empty line comes first.
    assert (child.returncode, out, err.strip()) == (130, "", INTERRUPTED)
    assert list(tmp_path.iterdir()) == []


WITHIN_LLAMA = """
import sys, time
from gguf_tools.cli import main
from gguf_tools.runtime.process import Runtime
def tokenize(self, *args, **options):
    print(self.pid, flush=True)
    time.sleep(60)
Runtime.tokenize = tokenize
main(sys.argv[1:])
"""


def test_an_interrupt_while_llama_cpp_runs_ends_its_process_too(qwen3_folder: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the terminal's group at once."""
    command = [sys.executable, "-c", WITHIN_LLAMA, "convert", str(qwen3_folder), str(tmp_path / "out.gguf")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stdout is not None
        worker = int(child.stdout.readline())
        os.killpg(child.pid, signal.SIGINT)
        _, err = child.communicate(timeout=30)
    assert (child.returncode, err.strip()) == (130, INTERRUPTED)
    assert not Path(f"/proc/{worker}").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_ends_nothing(qwen3_folder: Path, tmp_path: Path) -> None:
    """As in `| head -1`: the outputs and the exit code are those that the command has without it."""
    reading, writing = os.pipe()
    os.close(reading)
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "gguf_tools", "inspect", str(qwen3_folder), "--json", str(report)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    shown = subprocess.run([*command[:4], "--help"], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(report.read_text())["family"] == "qwen3"
    assert (shown.returncode, shown.stderr) == (0, b"")


# Reports


def test_a_report_appears_whole_or_not_at_all(
    tinyq: Tinyq, qwen3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "report.json"
    report.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        ran = tinyq("inspect", qwen3_folder, "--json", report, "--force")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert f"{report}: could not be written (the disk is full)" in ran.err
    assert (report.read_text(), list(tmp_path.iterdir())) == ("old", [report])
    assert "exists already" in tinyq("inspect", qwen3_folder, "--json", report).err
    assert tinyq("inspect", qwen3_folder, "--json", report, "--force").code == 0
    assert json.loads(report.read_text("utf-8"))["family"] == "qwen3"


def test_a_report_goes_to_a_stream_by_its_name(qwen3_folder: Path, tmp_path: Path) -> None:
    """/dev/stdout is a link to what may be a regular file, which stays."""
    target = tmp_path / "target"
    command = [sys.executable, "-m", "gguf_tools", "inspect", str(qwen3_folder), "--json", "/dev/stdout"]
    with target.open("wb") as stream:
        subprocess.run(command, stdout=stream, check=True)
        assert os.path.samestat(os.fstat(stream.fileno()), target.stat())
    assert json.loads(target.read_text("utf-8"))["kind"] == "checkpoint"  # and nothing else


@pytest.mark.parametrize("command", ["convert", "quantize", "surgery"])
def test_a_quiet_dry_run_shows_the_plan(tinyq: Tinyq, qwen3_folder: Path, tmp_path: Path, command: str) -> None:
    """It is all that a dry run is for."""
    out = tmp_path / "a.gguf"
    args: list[object] = [qwen3_folder, out]
    if command == "quantize":
        assert tinyq("convert", qwen3_folder, out, "--type", "f32", "--quiet").out == ""
        args = [out, tmp_path / "b.gguf", "q8_0"]
    ran = tinyq(command, *args, *(["--swap", "0:1"] if command == "surgery" else []), "--dry-run", "--quiet")
    assert ran.code == 0
    assert "nothing was written" in ran.out


def test_closed_streams_neither_end_a_command_nor_get_into_its_files(qwen3_folder: Path, tmp_path: Path) -> None:
    """A file that is opened while stderr is closed would be stderr to all that prints."""
    results: list[dict[str, bytes]] = []
    for closed in ("", " <&- >&- 2>&-"):
        out = tmp_path / f"out{len(results)}"
        command = [sys.executable, "-m", "gguf_tools", "surgery", str(qwen3_folder), str(out), "--swap", "0:1"]
        done = subprocess.run(["sh", "-c", f'exec "$@"{closed}', "sh", *command], capture_output=True, check=False)
        assert done.returncode == 0
        results.append({path.name: path.read_bytes() for path in out.iterdir()})
        again = subprocess.run(["sh", "-c", f'exec "$@"{closed}', "sh", *command], capture_output=True, check=False)
        assert again.returncode == 2
    assert results[0] == results[1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("more", [[], ["--json", "-"], ["--json", "/dev/stdout"]])
def test_a_full_stdout_is_one_line(qwen3_folder: Path, more: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "gguf_tools", "inspect", str(qwen3_folder), *more]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    line = "tinyq: stdout: could not be written (No space left on device); no output was left behind\n"
    assert (done.returncode, done.stderr) == (2, line)


def test_what_was_written_before_an_error_is_said(qwen3_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "gguf_tools", "convert", str(qwen3_folder), str(out)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert out.exists()
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"(No space left on device); {out} had been written before, complete" in done.stderr


def test_a_report_replaces_a_link_and_never_follows_it(tinyq: Tinyq, qwen3_folder: Path, tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)  # leads nowhere yet
    assert "exists already" in tinyq("inspect", qwen3_folder, "--json", link).err
    target.write_text("precious")
    assert "exists already" in tinyq("inspect", qwen3_folder, "--json", link).err
    assert tinyq("inspect", qwen3_folder, "--json", link, "--force").code == 0
    assert not link.is_symlink()
    assert json.loads(link.read_text("utf-8"))["kind"]
    assert target.read_text() == "precious"
