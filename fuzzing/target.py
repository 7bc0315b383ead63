"""What is fuzzed, and what counts as a finding.

A target reads bytes as one of tinyq's readers does, and goes on as far as the product would. It may raise the errors that tinyq
raises on purpose and click's for wrong usage. Every other exception is a finding, as is an input that takes longer or needs more
memory than the target allows.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from types import FrameType

PACKAGES = ("gguf_tools", "quant", "surgery")
SECONDS = 5.0
"""Of computing in Python, for one input."""
MEMORY = 1 << 30
"""Bytes of address space beyond what the process has before the first input."""

Read = Callable[[bytes], object]
"""Reads an input as the product does; whatever is true says that the input was accepted."""
Mutate = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Prepared:
    """A target that is ready: valid inputs to begin with, and what reads an input."""

    seeds: Sequence[bytes]
    read: Read


@dataclass(frozen=True, kw_only=True)
class Target:
    """One reader. `prepare` gets a folder of its own for the files that the reader reads.

    `mutate` changes an input in terms of its structure; without it bytes are changed. `words` are byte strings that occur in
    such inputs. `executions` is the number of inputs of the long campaign; `short` that of the tests. `deep` says that what
    is accepted goes on through the product, as in a conversion without its weights.
    """

    name: str
    title: str
    prepare: Callable[[Path], Prepared]
    mutate: Mutate | None = None
    words: Sequence[bytes] = ()
    executions: int = 500_000
    short: int = 300
    longest: int = 4096
    deep: bool = False


@dataclass(frozen=True)
class Finding:
    """An input that fell: `key` is alike for inputs that fall at the same place, `text` is the traceback."""

    key: str
    text: str


class TooSlowError(BaseException):
    """An input took more than SECONDS. No Exception, so that no reader handles it."""


@cache
def declared() -> tuple[type[Exception], ...]:
    """What may leave a reader. Imported late, so that the packages are instrumented when they are first imported."""
    import click

    from gguf_tools.errors import TinyqError

    return TinyqError, click.UsageError


def attempt(read: Read, data: bytes) -> Finding | bool:
    """Read one input: whether it was accepted, or what went wrong."""
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, 1.0)
    try:
        return bool(read(data))
    except declared():
        return False
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        return _finding(error)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)


def _finding(error: BaseException) -> Finding:
    """The finding of an exception, called by its type and by the product's innermost function on the way to it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if any(f"/{package}/" in frame.filename for package in PACKAGES)]
    last = own[-1] if own else frames[-1]
    where = f"{'/'.join(Path(last.filename).parts[-2:])}:{last.name}"
    return Finding(f"{type(error).__name__} in {where}", "".join(traceback.format_exception(error))[-6000:])


@contextlib.contextmanager
def limits(memory: int = MEMORY) -> Iterator[None]:
    """Have TooSlowError raised when an input's time is up, and MemoryError beyond `memory` more bytes of address space."""

    def over(_number: int, _frame: FrameType | None) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGVTALRM, over)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    most = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, before)


@contextlib.contextmanager
def prepared(target: Target, inside: Path | None = None) -> Iterator[Prepared]:
    """The target, with a scratch folder `inside` another; by default in memory where the system has one."""
    memory = Path("/dev/shm")
    within = inside or (memory if memory.is_dir() else None)
    with tempfile.TemporaryDirectory(prefix="tinyq-fuzz-", dir=within) as folder:
        yield target.prepare(Path(folder))
