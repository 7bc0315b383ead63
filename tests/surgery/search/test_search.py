"""`tinyq search` from its command line: the leaderboard, resuming, workers, and what may not be mixed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gguf_tools.errors import InputError
from gguf_tools.formats.gguf.header import read_header
from surgery.search.ledger import Ledger
from surgery.search.run import SearchRequest
from surgery.search.storage import storage_url
from tests.conftest import Ran
from tests.surgery.search.search_files import LAYERS, environment, search_line

pytest.importorskip("optuna")
Tinyq = Callable[..., Ran]
LOGGED = """
import os
from pathlib import Path

def size(path):
    with open(os.environ["SEARCH_LOG"], "a") as log:
        log.write(Path(path).stem + "\\n")
    return -Path(path).stat().st_size
"""


def report(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished search of all single ops and blocks, and its report."""
    folder = tmp_path_factory.mktemp("searched")
    line = search_line(folder, "--strategy", "single", "--strategy", "blocks", "--storage", folder / "study.db")
    command = [sys.executable, "-m", "gguf_tools", *line, "--json", str(folder / "report.json")]
    subprocess.run(command, check=True, cwd=folder, env=environment())
    return folder, report(folder / "report.json")


def test_the_report_has_every_candidate_with_its_state(searched: tuple[Path, dict[str, Any]]) -> None:
    _, found = searched
    states = Counter(trial["state"] for trial in found["trials"])
    assert set(states) == {"complete", "pruned"}
    # 4 deletions, 4 duplications, 3 swaps, 3 + 2 + 2 interpolations; 6 repeated blocks, 5 deleted ones.
    assert sum(states.values()) == 4 + 4 + 3 + 3 + 2 + 2 + 6 + 5
    assert all(trial["reason"] for trial in found["trials"] if trial["state"] == "pruned")
    complete = [trial for trial in found["trials"] if trial["state"] == "complete"]
    values = [trial["values"]["perplexity"] for trial in complete]
    assert values == sorted(values)
    assert found["best"] == complete[0]
    assert [trial["rank"] for trial in complete] == list(range(1, len(complete) + 1))
    assert sum("confirmed" in trial for trial in complete) == 3
    assert found["base"]["values"]["perplexity"] > 0
    assert set(found["best"]["confirmed"]) == {"figures", "against_base", "p_value", "survives", "shrinkage"}


def test_the_value_of_the_champion_is_what_eval_reads_from_its_file(
    searched: tuple[Path, dict[str, Any]], tinyq: Tinyq, tmp_path: Path
) -> None:
    """The exported file, read by llama.cpp, has the bits per byte that were found without a file."""
    folder, found = searched
    out = tmp_path / "champion.gguf"
    assert tinyq("search", "export", folder / "study.db", out).code == 0
    assert read_header(out).get("tinyq.surgery") == found["best"]["recipe"]
    line = ("eval", out, "--suite", "card", "--text", folder / "chosen.txt", "--json", tmp_path / "card.json")
    assert tinyq(*line).code == 0
    card = report(tmp_path / "card.json")["card"]
    assert card["parts"]["perplexity"]["bits_per_byte"] == pytest.approx(
        found["best"]["values"]["perplexity"], rel=1e-4
    )


def test_an_exported_candidate_has_the_bytes_that_surgery_gives(
    searched: tuple[Path, dict[str, Any]], tinyq: Tinyq, tmp_path: Path
) -> None:
    folder, found = searched
    for rank in (1, 3):
        recipe = next(trial["recipe"] for trial in found["trials"] if trial["rank"] == rank)
        one, two = tmp_path / f"{rank}.gguf", tmp_path / "again.gguf"
        assert tinyq("search", "export", folder / "study.db", one, "--rank", rank).code == 0
        assert tinyq("surgery", folder / "model.gguf", two, "--recipe", recipe, "--force").code == 0
        assert one.read_bytes() == two.read_bytes()
    missing = tinyq("search", "export", folder / "study.db", tmp_path / "x.gguf", "--rank", 99)
    assert missing.code == 2
    assert "complete candidates; give a rank of 1 to" in missing.err


def test_the_leaderboard_is_the_same_whatever_the_number_of_workers(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, found = searched
    line = search_line(folder, "--strategy", "single", "--strategy", "blocks", "--storage", folder / "shared.db")
    command = [sys.executable, "-m", "gguf_tools", *line, "--workers", "2", "--json", str(folder / "shared.json")]
    subprocess.run(command, check=True, cwd=folder, env=environment())
    shared = report(folder / "shared.json")
    for one in (found, shared):
        one["trials"] = sorted(one["trials"], key=lambda trial: str(trial["recipe"]))
    assert shared == found


def test_a_search_that_is_finished_measures_nothing_again(searched: tuple[Path, dict[str, Any]], tinyq: Tinyq) -> None:
    folder, _ = searched
    ledger = Ledger.open(storage_url(str(folder / "study.db")), None)
    before = [(record.entry, record.state, dict(record.results)) for record in ledger.records()]
    line = search_line(folder, "--strategy", "single", "--strategy", "blocks", "--storage", folder / "study.db")
    assert tinyq(*line).code == 0
    after = [(record.entry, record.state, dict(record.results)) for record in ledger.records()]
    assert [one[:2] for one in before] == [one[:2] for one in after]
    assert len(before) == len(after)


def test_a_study_that_was_begun_with_other_options_is_not_mixed_with_these(
    searched: tuple[Path, dict[str, Any]], tinyq: Tinyq
) -> None:
    folder, _ = searched
    line = search_line(folder, "--strategy", "single", "--storage", folder / "study.db")
    found = tinyq(*line)
    assert found.code == 2
    assert "was begun with strategies ['single', 'blocks']" in found.err
    assert "another --study or --storage" in found.err


def test_a_source_that_changes_before_the_study_begins_is_named(
    searched: tuple[Path, dict[str, Any]], tinyq: Tinyq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = searched
    setup = SearchRequest.setup

    def changing(request: SearchRequest, *others: Any) -> dict[str, Any]:
        os.utime(request.source, (0, 0))
        return setup(request, *others)

    monkeypatch.setattr(SearchRequest, "setup", changing)
    found = tinyq(*search_line(folder, "--strategy", "single", "--storage", tmp_path / "other.db"))
    assert found.code == 2
    assert f"{folder / 'model.gguf'}: changed while it was read" in found.err
    assert list(tmp_path.iterdir()) == []


def test_killed_at_any_moment_no_finished_trial_is_lost_or_run_again(tmp_path: Path) -> None:
    """A user's objective notes each candidate that it scores: after SIGKILL and a second run, each is there once.

    The one that was being scored when the process died may be there twice.
    """
    (tmp_path / "scoring.py").write_text(LOGGED)
    log = tmp_path / "log.txt"
    model = search_line(tmp_path)[1]
    line = ["search", model, "--objective", "scoring:size", "--strategy", "single", "--no-pruning", "--threads", "1"]
    line += ["--text", str(tmp_path / "chosen.txt"), "--held-out-text", str(tmp_path / "held_out.txt"), "--top", "1"]
    line += ["--allow", "delete", "--allow", "duplicate", "--json", str(tmp_path / "report.json")]
    command = [sys.executable, "-m", "gguf_tools", *line]
    variables = environment(SEARCH_LOG=str(log))
    with subprocess.Popen(command, cwd=tmp_path, env=variables, start_new_session=True) as child:
        while not log.exists() or len(log.read_text().split()) < 4:
            assert child.poll() is None
            time.sleep(0.01)
        os.killpg(child.pid, signal.SIGKILL)
    first = log.read_text().split()
    subprocess.run(command, cwd=tmp_path, env=variables, check=True)
    counts = Counter(log.read_text().split())
    twice = [name for name, count in counts.items() if count > 1]
    assert len(counts) == 1 + 2 * LAYERS  # the base is scored, too
    assert set(twice) <= {first[-1]}
    assert all(count <= 2 for count in counts.values())
    found = report(tmp_path / "report.json")
    assert {trial["state"] for trial in found["trials"]} == {"complete"}


def _begun(database: Path) -> bool:
    """Whether the study holds candidates."""
    try:
        return bool(Ledger.open(storage_url(str(database)), None).records())
    except InputError:
        return False


def test_ctrl_c_ends_with_the_leaderboard_so_far(tmp_path: Path) -> None:
    line = search_line(tmp_path, "--strategy", "blocks", "--no-pruning", "--json", tmp_path / "report.json")
    command = [sys.executable, "-m", "gguf_tools", *line]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        while not _begun(tmp_path / "model.search.db"):
            assert child.poll() is None
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert child.returncode in (0, 130)
    if child.returncode == 130:
        assert "interrupted" in err
        assert "Traceback" not in err
        assert "No candidate" in out or "have not been measured" in out
        assert report(tmp_path / "report.json")["trials"]


def test_a_candidate_on_which_llama_cpp_fails_is_failed_with_its_last_lines(
    tmp_path: Path, tinyq: Tinyq, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing.py").write_text(
        "from gguf_tools.errors import LlamaError\n"
        "def score(path):\n"
        "    if path.stat().st_size < 300_000:\n"
        "        raise LlamaError('llama.cpp aborted: GGML_ASSERT(x) failed')\n"
        "    return 1.0\n"
    )
    model = Path(search_line(tmp_path)[1])
    limit = model.stat().st_size
    (tmp_path / "failing.py").write_text((tmp_path / "failing.py").read_text().replace("300_000", str(limit)))
    monkeypatch.chdir(tmp_path)
    line = ["search", model, "--objective", "failing:score", "--strategy", "single", "--text", tmp_path / "chosen.txt"]
    line += ["--held-out-text", tmp_path / "held_out.txt", "--json", tmp_path / "report.json", "--no-pruning"]
    assert tinyq(*line, "--allow", "delete", "--allow", "duplicate").code == 0
    states = {trial["recipe"]: trial for trial in report(tmp_path / "report.json")["trials"]}
    assert states["delete(0)"]["state"] == "failed"
    assert "GGML_ASSERT(x) failed" in states["delete(0)"]["reason"]
    assert states["duplicate(0)"]["state"] == "complete"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layers", "2..9"), "--layers 2..9: the model has layers 0 to 3"),
        (("--layers", "a"), "--layers a: is no range"),
        (("--device", "nothing"), "--device nothing: torch cannot compute there (Expected one of cpu, cuda"),
        (("--device", "meta"), "--device meta: torch cannot compute there"),
        (("--seed", "-1", "--strategy", "sample"), "'--seed': -1 is not in the range 0<=x<=2147483647"),
        (("--allow", "swop"), "op 'swop' is not known"),
        (("--objective", "nothing"), "--objective nothing: is not known"),
        (("--objective", "no_module:score"), "cannot be imported"),
        (("--alpha", "2"), "--alpha 2: 2 is out of range"),
        (("--size", "4..2", "--strategy", "blocks"), "is descending"),
        (("--workers", "256"), "--workers 256: this machine has"),
        (("--storage", "a?b.db"), "a?b.db: has a question mark"),
        (("--storage", "postgresql://user:secret@127.0.0.1:1/x"), "***@127.0.0.1:1/x: the storage cannot be used"),
    ],
)
def test_wrong_options_are_one_line(
    tmp_path: Path, tinyq: Tinyq, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = tinyq(*search_line(tmp_path, *options))
    assert found.code == 2
    assert message in found.err
    assert "secret" not in found.err
    assert found.err.count("\n") == 1


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path, tinyq: Tinyq) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("dear diary, this is no database at all" * 20)
    before = other.read_bytes()
    found = tinyq(*search_line(tmp_path, "--storage", other))
    assert found.code == 2
    assert "the storage cannot be used" in found.err
    assert other.read_bytes() == before


def test_a_database_of_something_else_is_refused_and_kept(tmp_path: Path, tinyq: Tinyq) -> None:
    other = tmp_path / "cookies.sqlite"
    with contextlib.closing(sqlite3.connect(other)) as database:
        database.execute("CREATE TABLE cookies (name)")
        database.commit()
    before = other.read_bytes()
    found = tinyq(*search_line(tmp_path, "--storage", other))
    assert (found.code, "holds the table cookies, and is no database of studies" in found.err) == (2, True)
    assert "holds the table cookies" in tinyq("search", "report", other).err
    link = tmp_path / "link.db"
    link.symlink_to("elsewhere.db")
    assert "is a symbolic link; give its target" in tinyq(*search_line(tmp_path, "--storage", link)).err
    (tmp_path / "empty").touch()
    assert "holds no table, and is no database" in tinyq("search", "report", tmp_path / "empty").err
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in tinyq(*search_line(tmp_path, "--storage", tmp_path / "pipe")).err
    assert (other.read_bytes(), (tmp_path / "elsewhere.db").exists()) == (before, False)


def test_compose_and_sample_go_on_from_what_was_found(tmp_path: Path, tinyq: Tinyq) -> None:
    line = search_line(tmp_path, "--strategy", "single", "--strategy", "compose", "--strategy", "sample")
    database = tmp_path / "s.db"
    assert tinyq(*line, "--budget", 70, "--storage", database, "--json", tmp_path / "r.json").code == 0
    found = report(tmp_path / "r.json")
    assert len(found["trials"]) == 70
    records = Ledger.open(storage_url(str(database)), None).records()
    assert {record.entry.generation for record in records} >= {0, 1, 2}
    composed = [record.entry.parsed for record in records if record.entry.generation == 1]
    assert all(len(recipe.ops) == 2 for recipe in composed)
    assert len({record.entry.key for record in records}) == len(records)


def test_the_profile_has_a_line_for_each_layer(tmp_path: Path, tinyq: Tinyq) -> None:
    model = search_line(tmp_path)[1]
    found = tinyq("search", "profile", model, "--text", tmp_path / "chosen.txt", "--json", tmp_path / "p.json")
    assert found.code == 0
    layers = report(tmp_path / "p.json")["layers"]
    assert [layer["layer"] for layer in layers] == list(range(LAYERS))
    assert all(layer["update_norm"] > 0 and layer["influence"] >= 0 and layer["angle"] >= 0 for layer in layers)
    assert found.out.splitlines()[-1].startswith("layers that change it least")
