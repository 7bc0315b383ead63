"""The exceptions that tinyq raises for expected failures.

A message is a single line that names the file, tensor or key, what was found, what was expected, and what to do. The command
line prints it and exits with the exception's `exit_code`. Any other exception that reaches the user is a bug.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quant.errors import ArgumentError, InputError, LlamaError, TinyqError

__all__ = [
    "AMOUNT",
    "BITS",
    "FILES",
    "MEMORY",
    "PROCESSES",
    "SCORE",
    "SHARE",
    "ArgumentError",
    "Bounds",
    "CheckpointError",
    "InputError",
    "LlamaError",
    "OutputError",
    "ThresholdError",
    "TinyqError",
    "TokenizerError",
    "UnsupportedError",
    "advice",
    "exhausted",
    "exhausted_in_words",
    "is_read_error",
    "named_instead",
]


class CheckpointError(InputError):
    """A checkpoint is broken, or its files contradict each other; names the file and the tensor or key (exit code 2)."""


class UnsupportedError(InputError):
    """A feature that no target, or not the requested one, supports; the message names it (exit code 2)."""


class TokenizerError(InputError):
    """A tokenizer that llama.cpp cannot reproduce; shows the first difference (exit code 2)."""


class OutputError(TinyqError):
    """The output already exists, or could not be written (exit code 2)."""


class ThresholdError(TinyqError):
    """A measured value misses a threshold given by the user, or a check found a difference (exit code 1)."""

    exit_code = 1


_ADVICE = {
    errno.EACCES: "check its permissions and those of its folder",
    errno.EPERM: "check its permissions and those of its folder",
    errno.ENOSPC: "free some space on the disk",
    errno.EDQUOT: "free some space on the disk, of which your share is used up",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "give a path that can be written",
    errno.EISDIR: "give the path of a file",
    errno.EEXIST: "give another path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "give a path without a loop of links",
}


def advice(error: OSError) -> str:
    """What to do about an error of the operating system, for the end of a message."""
    return _ADVICE.get(error.errno or 0, "check the path and the disk")


@contextmanager
def named_instead(temporary: Path, named: Path, what: str) -> Iterator[None]:
    """A block that runs a temporary file in llama.cpp: an error names the user's file, and says `what` the other is.

    The temporary file is gone when the error is read.
    """
    try:
        yield
    except LlamaError as error:
        told = str(error).replace(f"{temporary}: ", "").replace(str(temporary), str(named))
        raise LlamaError(f"{named}: {what}: {told}") from error


def is_read_error(error: BaseException) -> bool:
    """Whether an error says that a file is there and could not be read (a broken disk, no permission).

    Where a file may be absent or unsuitable without harm, such an error is raised nevertheless: what it holds is not known.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return not isinstance(cause, FileNotFoundError | NotADirectoryError)
        cause = cause.__cause__
    return False


Lack = tuple[str, str]
"""What the process has run out of, and what to do about it."""
MEMORY: Lack = ("out of memory", "free memory, raise its limit (ulimit -v), or use a smaller input")
PROCESSES: Lack = (
    "no process or thread could be started",
    "raise the limits on them and on memory (ulimit -u, ulimit -v)",
)
FILES: Lack = ("too many files are open", "raise the limit on open files (ulimit -n)")
_BY_NUMBER = {errno.ENOMEM: MEMORY, errno.EMFILE: FILES, errno.ENFILE: FILES}
_IN_WORDS = {
    "failed to map segment": MEMORY,
    "cannot allocate memory": MEMORY,
    "memoryerror": MEMORY,
    "can't start new thread": PROCESSES,
}


def exhausted(error: BaseException) -> Lack | None:
    """What the process has run out of, and what to do about it; None if neither the error nor a cause of it says so."""
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, MemoryError):
            return MEMORY
        if isinstance(one, ImportError | RuntimeError) and (lack := exhausted_in_words(str(one))):
            return lack
        if isinstance(one, OSError) and one.errno in _BY_NUMBER:
            return _BY_NUMBER[one.errno]
        one = one.__cause__ or one.__context__
    return None


def exhausted_in_words(text: str) -> Lack | None:
    """The same of an error's text, such as that of another process."""
    return next((lack for words, lack in _IN_WORDS.items() if words in text.lower()), None)


@dataclass(frozen=True)
class Bounds:
    """The range of a number that the user gives: `low` (not itself if `above`) to `high`; `expected` is it in words."""

    expected: str
    low: float = 0.0
    high: float = math.inf
    above: bool = False

    def fault(self, value: float) -> str:
        """What is wrong with `value`, for the end of an error message; "" if it lies in the range (NaN does not)."""
        fits = self.low <= value <= self.high and not (self.above and value == self.low)
        return "" if fits else f"is {value:g}; expected {self.expected}"

    def check(self, option: str, value: float | None) -> None:
        """Raise InputError unless `value` is None or lies in the range."""
        if value is not None and (fault := self.fault(value)):
            raise InputError(f"{option} {fault}")


SHARE = Bounds("a share from 0 to 1, such as 0.97 for 97%", high=1.0)
SCORE = Bounds("a score from 0 to 100", high=100.0)
AMOUNT = Bounds("a number of at least 0")
BITS = Bounds("a number above 0, at most 64", high=64.0, above=True)
