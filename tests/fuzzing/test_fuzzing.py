"""The fuzzer itself: what counts as a finding, the changes of inputs, and the inputs that are kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import pytest

from fuzzing import archive, campaign, inputs, target
from fuzzing.campaign import Server
from fuzzing.mutate import json_mutator, mutate_bytes
from fuzzing.page import carry_over, page
from fuzzing.target import Finding, Prepared, Target, attempt, limits
from gguf_tools.errors import CheckpointError


def test_what_is_accepted_and_what_is_refused() -> None:
    def refuse(data: bytes) -> bool:
        raise CheckpointError("model.gguf: truncated")

    with limits():
        assert attempt(lambda data: len(data), b"x") is True
        assert attempt(lambda data: len(data), b"") is False
        assert attempt(refuse, b"x") is False


def raises(data: bytes) -> bool:
    return bool(json.loads(data))


def endless(data: bytes) -> bool:
    while True:
        time.perf_counter()


def hides_errors(data: bytes) -> bool:
    while True:
        try:
            endless(data)
        except Exception:
            return False


def greedy(data: bytes) -> bool:
    return bool(bytearray(1 << 40))


@pytest.mark.parametrize(
    ("read", "kind"),
    [(raises, "JSONDecodeError"), (endless, "TooSlowError"), (hides_errors, "TooSlowError"), (greedy, "MemoryError")],
)
def test_what_is_a_finding(monkeypatch: pytest.MonkeyPatch, read: Callable[[bytes], bool], kind: str) -> None:
    monkeypatch.setattr(target, "SECONDS", 0.2)
    with limits():
        outcome = attempt(read, b"x")
    assert isinstance(outcome, Finding)
    assert outcome.key.startswith(f"{kind} in ")
    assert "Traceback" in outcome.text


def test_a_finding_is_named_after_the_products_innermost_function() -> None:
    def read(data: bytes) -> bool:
        from gguf_tools.formats.gguf.values import align

        return bool(align(1, len(data)))

    with limits():
        outcome = attempt(read, b"")
    assert isinstance(outcome, Finding)
    assert outcome.key == "ZeroDivisionError in gguf/values.py:align"


def test_changes_are_the_same_for_the_same_seed_and_others_for_another() -> None:
    document = json.dumps({"a": [1, 2.5, None], "b": {"c": "x"}}).encode()
    for mutate in (json_mutator(["k"], ["v"]), mutate_bytes):
        found = [mutate(document, Random(seed)) for seed in range(50)]
        assert found == [mutate(document, Random(seed)) for seed in range(50)]
        assert len(set(found)) > 40


def test_changed_documents_are_documents() -> None:
    mutate = json_mutator(["k"], ["v", {"w": []}])
    data, rng = b'{"a": [1, {"b": "x"}]}', Random(1)
    for _ in range(200):
        data = mutate(data, rng)
        json.loads(data)
        data = data if 10 < len(data) < 2000 else b'{"a": [1, {"b": "x"}]}'


def test_several_files_in_one_input(tmp_path: Path) -> None:
    files = {"a.json": b"{}\n=== not a head", "b": b"", "c.bin": bytes(range(256))}
    assert archive.unpack(archive.pack(files)) == files
    assert archive.unpack(b"junk") == {}
    archive.write(tmp_path, files, frozenset(files))
    archive.write(tmp_path, {"b": b"x", "unknown": b""}, frozenset(files))
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_inputs_are_kept_as_they_are(tmp_path: Path) -> None:
    data = [bytes(range(256)), b"", b"\xff\n"]
    inputs.write(tmp_path / "x.jsonl", data)
    assert inputs._read(tmp_path / "x.jsonl") == data


def test_the_smallest_inputs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "FOLDER", tmp_path)
    inputs.keep("x", [b"z" * inputs.MOST_BYTES, b"bb", b"a", b"a"])
    assert inputs.kept("x") == [b"a", b"bb"]


def test_findings_that_were_mended_are_removed(tmp_path: Path) -> None:
    place = tmp_path / "x" / "findings"
    place.mkdir(parents=True)
    for name, data in (("mended", b"1"), ("open", b"{")):
        (place / f"{name}.input").write_bytes(data)
        (place / f"{name}.txt").write_text(f"{name} in a.py:f\n\nTraceback")
    one = Target(name="x", title="", prepare=lambda folder: Prepared([], raises))
    campaign.replay(one, tmp_path)
    assert campaign.findings("x", tmp_path) == ["open in a.py:f"]
    assert sorted(path.name for path in place.iterdir()) == ["open.input", "open.txt"]


def test_the_page_adds_up_the_runs(tmp_path: Path) -> None:
    one = Target(name="x", title="what it reads", prepare=lambda folder: Prepared([], raises), deep=True)
    (tmp_path / "x").mkdir()
    runs = [campaign.Run(executions=n, accepted=1, seconds=0.5, edges=7 * n) for n in (1000, 500)]
    (tmp_path / "x" / "runs.jsonl").write_text("".join(json.dumps(asdict(run)) + "\n" for run in runs))
    text = page([one], tmp_path, 5.0, 1 << 30)
    assert "| x (deep) | what it reads | 1,500 | 2 | 1 | 7,000 | 0 | 0 |" in text
    assert "In all 1,500 executions in 1 seconds of computing; findings open: 0." in text
    other, config = replace(one, name="y", deep=False), replace(one, name="config-z", deep=True)
    for name in ("y", "config-z"):
        campaign.note(tmp_path / name, campaign.Run(executions=100, accepted=1, seconds=2.0, edges=7))
    whole = page([one, other, config], tmp_path, 5.0, 1 << 30)
    assert "On configs 100, in targets that go deep 1,600; 1,600 in one or both of these." in whole
    carry_over([one, other, config], tmp_path / "elsewhere", whole)
    assert page([one, other, config], tmp_path / "elsewhere", 5.0, 1 << 30) == whole
    carry_over([one, other, config], tmp_path / "elsewhere", whole)
    assert page([one, other, config], tmp_path / "elsewhere", 5.0, 1 << 30) == whole


def test_the_time_of_a_campaign_is_shared_among_its_targets() -> None:
    clock = [0.0]
    shares = campaign.Shares(4, 2, 100.0, lambda: clock[0])
    with ThreadPoolExecutor(1) as other:
        with shares.take() as first:
            entered = shares.take()
            second = other.submit(entered.__enter__).result()
            clock[0] = 10.0
        with shares.take() as third:  # the first ended after 10 of its 50 seconds; the second is busy until 50
            clock[0] = 50.0
            other.submit(entered.__exit__, None, None, None).result()
        clock[0] = 80.0
        with shares.take() as fourth:
            assert (first, second, third, fourth) == (50.0, 50.0, (90.0 + 50.0) / 2, 20.0)


def test_jobs_run_all_targets_and_none_is_started_without_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = [
        Target(name=f"t{n}", title="", prepare=lambda folder: Prepared([], raises), deep=n == 3) for n in range(4)
    ]
    started: list[tuple[str, int, int | None]] = []

    def process(
        target: Target, place: Path, server: Server, executions: int, seconds: int | None
    ) -> tuple[campaign.Run, bool]:
        started.append((target.name, executions, seconds))
        return campaign.Run(executions=executions, accepted=0, seconds=0.0, edges=0), target.name != "t1"

    monkeypatch.setattr(campaign, "_process", process)
    ran = campaign.run_all(targets, tmp_path, jobs=1, executions=7, seconds=None, total=None)
    assert {target.name: whole for target, whole in ran} == {"t0": True, "t1": False, "t2": True, "t3": True}
    assert started == [("t3", 7, None), ("t0", 7, None), ("t1", 7, None), ("t2", 7, None)]
    started.clear()
    assert all(whole for _, whole in campaign.run_all(targets, tmp_path, jobs=2, executions=None, seconds=9, total=0.0))
    assert started == []


def test_a_process_that_crashed_is_started_again_for_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Target(name="x", title="", prepare=lambda folder: Prepared([], raises))
    wanted: list[int] = []

    def process(
        target: Target, place: Path, server: Server, executions: int, seconds: int | None
    ) -> tuple[campaign.Run, bool]:
        wanted.append(executions)
        return campaign.Run(executions=4, accepted=0, seconds=0.0, edges=0), len(wanted) == 3

    monkeypatch.setattr(campaign, "_process", process)
    assert campaign.run(one, tmp_path, Server(), 20)
    assert wanted == [20, 16, 12]
    assert sum(run.executions for run in campaign.runs("x", tmp_path)) == 12
