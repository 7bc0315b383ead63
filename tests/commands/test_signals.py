"""SIGINT, SIGTERM, SIGHUP and SIGXCPU: one line, the exit code that a shell expects, nothing left behind, at any moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gguf_tools import signals
from gguf_tools.evaluation.vocabulary import prove_vocabulary

ENDS = {
    signal.SIGINT: (130, "tinyq: interrupted; no output was left behind"),
    signal.SIGTERM: (143, "tinyq: ended by SIGTERM; no output was left behind"),
    signal.SIGHUP: (129, "tinyq: ended by SIGHUP; no output was left behind"),
}
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


def begun(*args: object, code: str = SLOW) -> subprocess.Popen[str]:
    """A command that has come to its slow place, in a process group of its own."""
    child = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "now\n"
    return child


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    "moment",
    [
        "gguf_tools.conversion.plan:smallest_exact",
        "gguf_tools.conversion.write:write_groups",
        f"{prove_vocabulary.__module__}:{prove_vocabulary.__name__}",
    ],
    ids=["reading", "writing", "proving"],
)
def test_a_signal_at_any_moment_is_one_line(
    qwen3_folder: Path, tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    with begun(moment, "convert", qwen3_folder, tmp_path / "out.gguf") as child:
        child.send_signal(number)
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err) == (ENDS[number][0], "", ENDS[number][1] + "\n")
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_the_processor_time_is_one_line(qwen3_folder: Path, tmp_path: Path) -> None:
    """The kernel sends SIGXCPU each second from the soft limit (ulimit -t) on, and SIGKILL at the hard one."""
    with begun("gguf_tools.conversion.write:write_groups", "convert", qwen3_folder, tmp_path / "out.gguf") as child:
        child.send_signal(signal.SIGXCPU)
        out, err = child.communicate(timeout=30)
    said = "tinyq: ended by SIGXCPU (the limit on processor time, ulimit -t); no output was left behind\n"
    assert (child.returncode, out, err) == (152, "", said)
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_does_not_stop_the_clearing_up(qwen3_folder: Path, tmp_path: Path) -> None:
    with begun("gguf_tools.conversion.write:write_groups", "convert", qwen3_folder, tmp_path / "out.gguf") as child:
        for _ in range(50):
            child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err) == (143, "", ENDS[signal.SIGTERM][1] + "\n")
    assert list(tmp_path.iterdir()) == []


WITHIN_LLAMA = """
import os, sys, time
from gguf_tools.cli import main
from gguf_tools.runtime.process import Runtime
def tokenize(self, *args, **options):
    print("now", flush=True)
    print(self.pid, flush=True)
    time.sleep(60)
Runtime.tokenize = tokenize
main(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_while_llama_cpp_runs(
    qwen3_folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with begun("convert", qwen3_folder, tmp_path / "out.gguf", code=WITHIN_LLAMA) as child:
        assert child.stdout is not None
        worker = int(child.stdout.readline())
        os.killpg(child.pid, number)
        _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (ENDS[number][0], ENDS[number][1] + "\n")
    assert not Path(f"/proc/{worker}").exists()
    assert list(tmp_path.iterdir()) == []


AT_CREATION = """
import os, signal, sys
import gguf_tools.formats.output as output
from gguf_tools.cli import main
made = output.create_file
def create(path):
    stream = made(path)
    os.kill(os.getpid(), int(sys.argv[1]))
    return stream
output.create_file = create
main(sys.argv[2:])
"""
AT_RENAME = """
import os, signal, sys
from gguf_tools.cli import main
replace = os.replace
def rename(a, b):
    replace(a, b)
    os.kill(os.getpid(), int(sys.argv[1]))
os.replace = rename
main(sys.argv[2:])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_the_creation_of_a_file(qwen3_folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Before its name is noted, so that nothing would remove it."""
    command = [sys.executable, "-c", AT_CREATION, str(int(number)), "inspect", str(qwen3_folder)]
    command += ["--json", str(tmp_path / "a.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (ENDS[number][0], "", ENDS[number][1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_when_the_output_is_there_is_said_so(
    qwen3_folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "a.json"
    command = [sys.executable, "-c", AT_RENAME, str(int(number)), "inspect", str(qwen3_folder), "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    how = ENDS[number][1].partition(";")[0]
    expected = f"{how}; {out} had been written before, complete"
    assert (done.returncode, done.stderr.strip()) == (ENDS[number][0], expected)
    assert list(tmp_path.iterdir()) == [out]


def test_signals_that_are_ignored_stay_ignored(qwen3_folder: Path, tmp_path: Path) -> None:
    """As under nohup."""
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + SLOW
    moment = "gguf_tools.conversion.write:write_groups"
    with begun(moment, "convert", qwen3_folder, tmp_path / "out.gguf", code=code) as child:
        child.send_signal(signal.SIGHUP)
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (143, ENDS[signal.SIGTERM][1] + "\n")


@pytest.mark.parametrize("module", ["click", "gguf_tools.cli", "gguf_tools.commands.inspect", "numpy", "yaml"])
@pytest.mark.parametrize("number", ENDS)
def test_a_signal_while_modules_are_loaded(qwen3_folder: Path, module: str, number: signal.Signals) -> None:
    code = f"""
import sys, time
class Late:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            print("now", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Late())
from gguf_tools.__main__ import main
main()
"""
    with begun("inspect", qwen3_folder, code=code) as child:
        child.send_signal(number)
        out, err = child.communicate(timeout=30)
    code_and_line = child.returncode, err.strip()
    assert (code_and_line, out) == (ENDS[number], "")


def test_an_import_that_swallows_the_interrupt_ends_as_one(qwen3_folder: Path) -> None:
    """Extension modules turn what is raised while they are loaded into errors of their own."""
    code = """
import sys, time
class Late:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            try:
                print("now", flush=True)
                time.sleep(60)
            except BaseException:
                raise ImportError("initialization failed") from None
sys.meta_path.insert(0, Late())
from gguf_tools.__main__ import main
main()
"""
    with begun("inspect", qwen3_folder, code=code) as child:
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    assert (child.returncode, err.strip(), out) == (*ENDS[signal.SIGINT], "")


@pytest.mark.parametrize("seed", range(6))
def test_ctrl_c_at_a_random_moment(qwen3_folder: Path, seed: int) -> None:
    """While our code runs: before it, and once Python ends after it, signals are Python's own business.

    At its end Python takes its handlers away, so that the signal ends the process without a word, after all is printed.
    """
    code = 'print("now", flush=True)\nfrom gguf_tools.__main__ import main\nmain()'
    wait = random.Random(seed).uniform(0.02, 0.5)
    code = "import signal\nfrom gguf_tools import signals\nsignals.leave_at_once()\n" + code
    with begun("inspect", qwen3_folder, code=code) as child:
        time.sleep(wait)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)
    assert child.returncode in (0, 130, -signal.SIGINT)
    assert err.strip() in ("", ENDS[signal.SIGINT][1])


EXECUTED = """
import os, signal
from gguf_tools import __main__, cli
def run(args):
    try:
        exec("os.kill(os.getpid(), signal.SIGINT)\\nwhile True: pass")
    except KeyboardInterrupt as error:
        return cli._explained(error)
cli.run = run
__main__.main()
"""


def test_an_interrupt_in_executed_text_has_the_exit_code_too(tmp_path: Path) -> None:
    """As in the methods of a dataclass, which are made of a text; `python -m` ends itself by SIGINT after one."""
    (tmp_path / "executed.py").write_text(EXECUTED)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-m", "executed"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == ENDS[signal.SIGINT]


def test_exit_codes_are_those_of_a_shell() -> None:
    signals.forget()  # what other tests have written
    assert {number: (signals.exit_code(number), f"tinyq: {signals.sentence(number)}") for number in ENDS} == ENDS
