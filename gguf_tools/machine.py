"""Facts of the machine that tinyq runs on."""

from __future__ import annotations

import os
from pathlib import Path


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


SMALL_MODEL = 64 << 20
"""Bytes of weights below which a second thread costs more in waiting than it saves in work."""


def useful_threads(weight_bytes: int) -> int:
    """Threads that make running a model of this many bytes of weights fastest."""
    return 1 if weight_bytes < SMALL_MODEL else available_cores()


def physical_cores() -> int:
    """Physical cores that this process may run on: its affinity, without the second threads of a core."""
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
    """Bytes that can still be allocated without swapping, or None where the system does not say.

    Linux: MemAvailable of /proc/meminfo, and what is left of a limit on the control group (cgroup v2).
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
