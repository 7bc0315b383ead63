"""Cores, threads and memory of the machine."""

from __future__ import annotations

import os
from pathlib import Path


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
