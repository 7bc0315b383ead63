"""Cores, threads and memory of the machine; limits on them; pipes that nobody reads."""

from __future__ import annotations

import _thread
import contextlib
import os
import select
from pathlib import Path

from gguf_tools.errors import MEMORY, TinyqError

LEAST_MEMORY = 192 << 20
"""Bytes of address space below which not even numpy can be imported."""
_FEW_PROCESSES = 1024
MOST_THREADS = 512
"""Most threads that llama.cpp computes with (`GGML_MAX_N_THREADS`); many more than there are cores only take time."""
MOST_COUNT = (1 << 31) - 1
"""Largest number that llama.cpp's settings hold (`int32_t`); a larger one would silently become another."""


def available_cores() -> int:
    """Number of logical cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


SMALL_MODEL = 64 << 20
"""Bytes of weights below which synchronizing a second thread costs more time than it saves."""


def useful_threads(weight_bytes: int) -> int:
    """Number of threads that runs a model with this many bytes of weights fastest."""
    return 1 if weight_bytes < SMALL_MODEL else available_cores()


def physical_cores() -> int:
    """Number of physical cores that this process may run on: its CPU affinity, hyper-threads of a core counted once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    siblings = set()
    for cpu in allowed:
        try:
            siblings.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            return len(allowed)
    return len(siblings)


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping, or None if unknown.

    On Linux: MemAvailable of /proc/meminfo, or the rest of the control group's limit (cgroup v2) if that is smaller.
    """
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            found.append(max(int(limit) - int((group / "memory.current").read_text()), 0))
    except (OSError, ValueError, IndexError):
        pass  # another system, or no control group
    return min(found) if found else None


def prepare_for_limits() -> None:
    """Raise TinyqError where no thread can be started, or the address space is too small; called before numpy is imported.

    numpy's OpenBLAS starts a thread for each core when it is imported, each with memory of its own. Where they cannot be
    started it prints several lines and ends the process, so that under a limit it is told to start none.
    """
    try:
        _thread.start_new_thread(lambda: None, ())
    except RuntimeError as error:
        raise TinyqError(f"tinyq cannot begin: {error}") from error
    with contextlib.suppress(ImportError, OSError, ValueError):  # another system
        import resource

        memory, _ = resource.getrlimit(resource.RLIMIT_AS)
        processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
        if memory != resource.RLIM_INFINITY and memory < LEAST_MEMORY:
            raise TinyqError(
                f"the address space is limited to {memory >> 20:,} MiB, and tinyq needs {LEAST_MEMORY >> 20} MiB at least; "
                f"{MEMORY[1]}"
            )
        if memory != resource.RLIM_INFINITY or 0 <= processes < _FEW_PROCESSES:
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def require_current_folder() -> None:
    """Raise TinyqError where the current folder was removed: relative paths fail in it, and torch's MKL ends the process."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise TinyqError("the current folder was removed; change to another one (cd)") from error


def reader_gone(descriptor: int) -> bool:
    """Whether a descriptor is a pipe or a socket whose other end is closed."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def drop(descriptor: int) -> None:
    """Have what is written to a descriptor from now on go nowhere."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), descriptor)
