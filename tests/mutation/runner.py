"""Runs the tests that reach a mutant in a forked copy of one warm process, which has imported everything and made the fixtures.

A first run without mutants notes which lines of the module each test executes, and how long it takes. A mutant inside a function
replaces the code of that function, so that it acts under every name that was imported; one at module level executes the module
anew and puts the new values in place of the old ones wherever they were imported by name.
"""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import pytest
from hypothesis import settings

from tests.mutation.equivalent import reason
from tests.mutation.mutants import Mutant, mutants

PACKAGES = ("quant", "gguf_tools", "surgery", "tests")
SLOWER = 10
"""How many times as long as without the mutant its tests may take; what takes longer is killed, in both senses."""


@dataclass
class Outcome:
    """What became of a module's mutants; `survivors` are the mutants that no test noticed.

    `equivalent` is the number of those declared to compute the same, which are not run.
    """

    total: int = 0
    killed: int = 0
    equivalent: int = 0
    unreached: int = 0
    survivors: list[Mutant] = field(default_factory=list)


class _Kept:
    """In place of a next item: what pytest must not tear down, the fixtures of the session."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session

    def listchain(self) -> list[pytest.Session]:
        """The nodes that stay set up."""
        return [self._session]


class Runner:
    """A pytest plugin that runs the mutants in place of the collected tests."""

    def __init__(self, path: Path, progress: Callable[[str], None], wanted: Callable[[Mutant], bool]) -> None:
        self.path = path
        self.module = ".".join(path.with_suffix("").parts)
        self.progress = progress
        self.wanted = wanted
        self.outcome = Outcome()
        self.failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a failure."""
        self.failed |= report.failed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Measure the tests, then run every mutant."""
        settings.register_profile("mutants", derandomize=True, database=None, deadline=None)
        settings.load_profile("mutants")
        lines: dict[pytest.Item, set[int]] = {}
        seconds: dict[pytest.Item, float] = {}
        for item, following in zip(session.items, [*session.items[1:], _Kept(session)], strict=True):
            start = time.perf_counter()
            with _traced(str(self.path.resolve())) as seen:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            seconds[item], lines[item] = time.perf_counter() - start, seen
        if self.failed:
            raise pytest.UsageError("the tests fail without a mutant")
        source = self.path.read_text("utf-8")
        for mutant in mutants(source):
            if not self.wanted(mutant):
                continue
            self.outcome.total += 1
            if reason(self.path.as_posix(), mutant, source.splitlines()):
                self.outcome.equivalent += 1
                continue
            node = _statement(ast.parse(source), mutant.line)
            reach = set(range(node[0], node[1] + 1)) if mutant.function else set()
            chosen = [item for item in session.items if not mutant.function or lines[item] & reach]
            chosen.sort(key=lambda item: (sum(seconds[one] for one in chosen if one.path == item.path), seconds[item]))
            limit = SLOWER * (sum(seconds[item] for item in chosen) + 3)
            if not chosen:
                self.outcome.unreached += 1
            if chosen and self._killed(mutant, chosen, limit):
                self.outcome.killed += 1
            else:
                self.outcome.survivors.append(mutant)
                self.progress(f"survived{'' if chosen else ' (not reached)'}: {self.path}:{mutant}")
        return True

    def _killed(self, mutant: Mutant, items: Sequence[pytest.Item], limit: float) -> bool:
        """Whether a test fails, raises or takes too long with the mutant in place, in a child process."""
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            code = 1
            with contextlib.suppress(BaseException):
                code = self._run(mutant, items)
            os._exit(code)
        end = time.monotonic() + limit
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status) != 0
            time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return True

    def _run(self, mutant: Mutant, items: Sequence[pytest.Item]) -> int:
        """In the child: 1 as soon as a test fails."""
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        put_in_place(mutant, sys.modules[self.module], str(self.path.resolve()))
        self.failed = False
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return 1
        return 0


def put_in_place(mutant: Mutant, module: ModuleType, file: str) -> None:
    """Let the loaded module behave as the mutant."""
    code = compile(mutant.tree, file, "exec")
    if not mutant.function:
        _execute_anew(code, module)
        return
    found: Any = module
    for name in mutant.function:
        found = vars(found)[name] if isinstance(found, type | ModuleType) else getattr(found, name)
    function = _plain(found)
    function.__code__ = _code_of(code, mutant.function)


def _plain(found: Any) -> FunctionType:
    """The function inside of a property, a class method or a decorator."""
    if isinstance(found, property):
        found = found.fget
    if isinstance(found, classmethod | staticmethod):
        found = found.__func__
    while hasattr(found, "__wrapped__"):
        if hasattr(found, "cache_clear"):
            found.cache_clear()
        found = found.__wrapped__
    assert isinstance(found, FunctionType), found
    return found


def _code_of(code: CodeType, names: tuple[str, ...]) -> CodeType:
    for name in names:
        # A property and its setter have one name: the last definition is the one in place.
        code = next(one for one in reversed(code.co_consts) if isinstance(one, CodeType) and one.co_name == name)
    return code


def _execute_anew(code: CodeType, module: ModuleType) -> None:
    """Execute a module in its own namespace, and replace what other modules imported from it by name."""
    old = dict(vars(module))
    exec(code, vars(module))
    for other in [one for name, one in sys.modules.items() if name.split(".")[0] in PACKAGES and one is not module]:
        for name, value in list(vars(other).items()):
            if name in old and value is old[name] and not name.startswith("__"):
                setattr(other, name, vars(module)[name])


def _statement(tree: ast.Module, line: int) -> tuple[int, int]:
    """The first and last line of the innermost simple statement, or of the head of a compound one, around a line."""
    best = (line, line)
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or line):
            body = getattr(node, "body", None)
            end = body[0].lineno - 1 if body else node.end_lineno or line
            if node.lineno <= line <= max(end, node.lineno) and node.lineno >= best[0] - (best[1] - best[0]):
                best = (node.lineno, max(end, node.lineno))
    return best


@contextlib.contextmanager
def _traced(file: str) -> Iterator[set[int]]:
    """The lines of a file that run meanwhile, in any thread."""
    seen: set[int] = set()

    def local(frame: FrameType, event: str, argument: object) -> Any:
        seen.add(frame.f_lineno)
        return local

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != file:
            return None
        seen.add(frame.f_lineno)
        return local

    threading.settrace(trace)
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(None)
        threading.settrace(None)


def run(
    path: Path,
    tests: Sequence[str],
    progress: Callable[[str], None],
    wanted: Callable[[Mutant], bool] = lambda mutant: True,
) -> Outcome:
    """The outcome of the wanted mutants of a module (a path from the repository's root) under these tests."""
    runner = Runner(path, progress, wanted)
    code = pytest.main(
        ["-n0", "-q", "-p", "no:cacheprovider", "--no-header", "--durations=0", "--capture=sys", *tests],
        plugins=[runner],
    )
    if code != pytest.ExitCode.OK:
        raise SystemExit(f"{path}: pytest ended with {code!r}")
    return runner.outcome
