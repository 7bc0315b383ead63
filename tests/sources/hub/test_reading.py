"""Reading files of the hub in ranges: what is requested, and what happens when a transfer fails."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from gguf_tools import signals
from gguf_tools.errors import InputError
from gguf_tools.sources.hub import HubError, HubName, window
from gguf_tools.sources.hub.cache import cache_folder, snapshot, store
from gguf_tools.sources.hub.file import HubFile, Listed
from gguf_tools.sources.hub.threads import for_each, started, waited
from gguf_tools.sources.hub.window import Window, in_order
from tests.hub.faults import Fault
from tests.hub.repositories import Blob, StoredFile
from tests.hub.server import Hub

DATA = os.urandom(1_000_003)
BLOCK = 100_000
NAME = "org/model"
PATH = "model.safetensors"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between requests, which take no time."""
    found: list[float] = []
    monkeypatch.setattr("time.sleep", found.append)
    return found


@pytest.fixture
def file(hub: Hub, waits: list[float]) -> HubFile:
    """A file of the hub."""
    commit = hub.add(NAME, {PATH: DATA})
    listed = Listed(PATH, len(DATA), hashlib.sha256(DATA).hexdigest())
    return HubFile(HubName(NAME, commit, PATH), listed, snapshot(HubName(NAME), commit) / PATH)


def storage(hub: Hub) -> list[tuple[int, str | None]]:
    return [(request.status, request.range) for request in hub.requests if request.storage]


def test_a_range_is_one_request_and_the_link_is_asked_for_once(hub: Hub, file: HubFile) -> None:
    assert file.fetch(10, 20) == DATA[10:20]
    assert file.fetch(len(DATA) - 5, len(DATA)) == DATA[-5:]
    assert storage(hub) == [(206, "bytes=10-19"), (206, f"bytes={len(DATA) - 5}-{len(DATA) - 1}")]
    assert len([request for request in hub.requests if request.method == "HEAD"]) == 1


def test_a_broken_transfer_goes_on_where_it_broke(hub: Hub, file: HubFile, waits: list[float]) -> None:
    hub.fail(Fault(path="/objects/", break_after=65536, times=3))
    assert file.fetch(0, len(DATA)) == DATA
    starts = [int(str(asked).split("=")[1].split("-")[0]) for _, asked in storage(hub)]
    assert starts == sorted(starts)
    assert len(starts) == 4
    assert hub.sent("/objects/") == len(DATA)
    assert waits == [1.0, 1.0, 1.0]  # each brought something


def test_status_codes_that_may_pass_are_repeated_as_the_server_asks(
    hub: Hub, file: HubFile, waits: list[float]
) -> None:
    hub.fail(Fault(path="/objects/", status=429, headers={"Retry-After": "7"}))
    hub.fail(Fault(path="/objects/", status=503, times=2))
    with pytest.warns(UserWarning, match=r"model\.safetensors: status (429|503); the request is repeated"):
        assert file.fetch(0, 1000) == DATA[:1000]
    assert waits == [7.0, 2.0, 4.0]


def test_requests_that_bring_nothing_end_with_one_line(hub: Hub, file: HubFile, waits: list[float]) -> None:
    hub.fail(Fault(path="/objects/", status=500, times=99))
    with (
        pytest.warns(UserWarning, match="is repeated"),
        pytest.raises(HubError, match=r"8 requests in a row for the bytes from 0 on failed \(status 500\)"),
    ):
        file.fetch(0, 1000)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0]


def test_a_link_that_expired_is_asked_for_again(hub: Hub, file: HubFile, waits: list[float]) -> None:
    assert file.fetch(0, 10) == DATA[:10]
    hub.expire()
    assert file.fetch(10, 20) == DATA[10:20]
    assert [status for status, _ in storage(hub)] == [206, 403, 206]
    assert waits == [0.0]


def test_a_file_that_changes_while_it_is_read_is_an_error(hub: Hub, file: HubFile) -> None:
    file.fetch(0, 10)
    commits = hub.repositories[NAME].commits
    commits[file.name.revision] = {PATH: StoredFile(Blob(DATA[::-1]), lfs=True)}
    hub.expire()
    with pytest.raises(HubError, match="changed on the hub while it was read"):
        file.fetch(10, 20)


def test_a_server_that_is_gone_is_told(file: HubFile, hub: Hub) -> None:
    file.resolve()
    hub.stop()
    with pytest.warns(UserWarning, match="is repeated"), pytest.raises(HubError, match="8 requests in a row"):
        file.fetch(0, 10)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors and headers in the sizes of these tests."""
    monkeypatch.setattr(window, "SMALL", 1000)
    monkeypatch.setattr(window, "HEADER_BLOCK", 500)


def ranges(hub: Hub) -> list[tuple[int, int]]:
    """The first and last bytes that were asked for, in the order of the file."""
    found = [re.fullmatch(r"bytes=(\d+)-(\d+)", str(asked)) for _, asked in storage(hub)]
    return sorted((int(match[1]), int(match[2])) for match in found if match)


def test_a_window_downloads_each_piece_once_however_it_is_read(hub: Hub, file: HubFile, small: None) -> None:
    made = Window(cache_folder(), block=BLOCK, unit=7_000)
    made.divide(
        file, [(800, 300_000), (300_000, 300_500), (300_500, 300_500), (300_500, 301_400), (301_400, len(DATA))]
    )
    random = np.random.default_rng(0)
    for _ in range(50):
        start = int(random.integers(0, len(DATA)))
        count = int(random.integers(0, min(3 * BLOCK, len(DATA) - start)))
        assert made.read(file, start, count) == DATA[start : start + count]
    assert made.read(file, 0, len(DATA)) == DATA
    starts = [0, 500, 800, 100_800, 200_800, 300_000, *range(301_400, len(DATA), BLOCK)]
    assert ranges(hub) == list(zip(starts, [*(start - 1 for start in starts[1:]), len(DATA) - 1], strict=True))


def test_a_window_that_is_smaller_than_the_file_gives_up_old_pieces(hub: Hub, file: HubFile, small: None) -> None:
    made = Window(cache_folder(), block=50_000, ahead=50_000, most=1, unit=10_000)
    made.divide(file, [(0, len(DATA))])
    for _ in range(2):
        for start in range(0, len(DATA), 22_222):
            assert made.read(file, start, min(22_222, len(DATA) - start)) == DATA[start : start + 22_222]
    # What was read first in the first pass is gone in the second, when it is read first again, and so on.
    assert hub.sent("/objects/") == 2 * len(DATA)
    assert os.fstat(made._file.fileno()).st_size <= 300_000
    assert list(cache_folder().iterdir()) == []  # the window has no name


def test_a_plan_is_requested_ahead_and_nothing_else(hub: Hub, file: HubFile, small: None) -> None:
    """Tensors that are read with others between them, as the experts of a layer are, in a window that holds few of them."""
    tensors = [(at, at + 10_000) for at in range(0, 990_000, 10_000)]
    order = [*tensors[0::3], *tensors[1::3], *tensors[2::3]]
    made = Window(cache_folder(), block=BLOCK, ahead=30_000, most=1, unit=1000)
    made.divide(file, tensors)
    made.plan([(file, *ends) for ends in order])
    for start, stop in order:
        assert made.read(file, start, stop - start) == DATA[start:stop]
    assert len(storage(hub)) == len(tensors)
    assert hub.sent("/objects/") == 990_000 + len(DATA) - 990_000  # the last piece goes to the end of the file


def test_a_header_is_read_without_what_follows(hub: Hub, file: HubFile, small: None) -> None:
    made = Window(cache_folder())
    assert made.read(file, 0, 8) + made.read(file, 8, 1200) == DATA[:1208]
    assert ranges(hub) == [(0, 499), (500, 999), (1000, 1499)]


def test_threads_share_a_window(hub: Hub, file: HubFile, small: None) -> None:
    made = Window(cache_folder(), block=40_000, ahead=80_000, most=1, unit=10_000)
    made.divide(file, [(0, len(DATA))])
    wrong: list[int] = []

    def read(seed: int) -> None:
        random = np.random.default_rng(seed)
        for start in random.integers(0, len(DATA) - 50_000, 10):
            if made.read(file, int(start), 50_000) != DATA[start : start + 50_000]:
                wrong.append(int(start))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_failure_that_is_read_is_an_error_and_read_again_it_is_repeated(
    hub: Hub, file: HubFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gguf_tools.sources.hub.file.ATTEMPTS", 1)
    made = Window(cache_folder())
    hub.fail(Fault(path="/objects/", status=500))
    with pytest.raises(HubError):
        made.read(file, 0, 10)
    assert made.read(file, 0, 10) == DATA[:10]


def test_blocks_in_order(hub: Hub, file: HubFile) -> None:
    assert b"".join(in_order(file, 123, block=BLOCK)) == DATA[123:]
    assert list(in_order(file, len(DATA), block=BLOCK)) == []


def test_a_download_goes_on_where_it_ended(hub: Hub, file: HubFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguf_tools.sources.hub.file.ATTEMPTS", 2)
    monkeypatch.setattr(in_order, "__kwdefaults__", {"block": BLOCK, "ahead": 0})
    hub.fail(Fault(path="/objects/", skip=4, status=500, times=2))
    with pytest.raises(HubError, match="2 requests in a row"):
        store(file)
    assert not file.local.exists()
    (part,) = file.local.parents[2].glob("blobs/*")
    assert part.read_bytes() == DATA[: 4 * BLOCK]
    done: list[int] = []
    store(file, done.append)
    assert file.local.read_bytes() == DATA
    assert file.local.is_symlink()
    assert (done[0], sum(done)) == (4 * BLOCK, len(DATA))
    assert hub.sent("/objects/") - len(DATA) < 200  # the bodies of the two errors
    assert [path.name for path in part.parent.iterdir()] == [file.sha256]


def test_a_download_that_is_not_what_the_hub_says_is_thrown_away(hub: Hub, file: HubFile) -> None:
    file.resolve()
    blobs = file.local.parents[2] / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{file.etag}.tinyq-part").write_bytes(b"x" * 1000)
    with pytest.raises(HubError, match="SHA-256"):
        store(file)
    assert list(blobs.iterdir()) == []
    assert not file.local.exists()
    store(file)
    assert file.local.read_bytes() == DATA


def test_huggingface_hub_finds_what_was_stored(hub: Hub, file: HubFile) -> None:
    from huggingface_hub import hf_hub_download

    store(file)
    before = hub.sent("/objects/")
    assert hf_hub_download(NAME, PATH, revision=file.name.revision) == str(file.local)
    assert hub.sent("/objects/") == before


def test_a_full_disk_is_told_before_anything_is_downloaded(
    hub: Hub, file: HubFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = __import__("shutil").disk_usage
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(path)._replace(free=1000))
    with pytest.raises(HubError, match=r"needs 1\.0 MB more, the disk has 1\.0 kB; free some space, or set HF_HOME"):
        store(file)
    assert hub.sent("/objects/") == 0


def test_a_file_in_git_is_read_in_ranges_too(hub: Hub, waits: list[float]) -> None:
    commit = hub.add("org/small", {"weights.txt": DATA})
    listed = Listed("weights.txt", len(DATA), None)
    file = HubFile(HubName("org/small", commit, "weights.txt"), listed, Path("unused"))
    assert file.fetch(5, 500) == DATA[5:500]


def test_whoever_waits_for_the_hub_stops_when_the_command_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    future = started(ended.wait)
    monkeypatch.setattr(signals, "received", lambda: signal.SIGINT)
    with pytest.raises(HubError, match="interrupted"):
        waited(future)
    ended.set()
    assert waited(future) is True


def test_the_first_error_of_several_threads_is_raised() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 3:
            raise HubError("three")
        done.append(number)

    with pytest.raises(HubError, match="three"):
        for_each(work, range(4), 2)
    for_each(done.append, range(10, 13), 5)
    assert {0, 1, 2, 10, 11, 12} <= set(done)


def test_a_disk_that_is_full_for_the_window_is_one_line(
    hub: Hub, file: HubFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(window, "_write", full)
    with pytest.raises(
        InputError, match=r"could not be stored \(No space left on device\); free some space, or set HF_HOME"
    ):
        Window(cache_folder()).read(file, 0, 10)
