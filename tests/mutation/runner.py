"""Runs the tests that reach a mutant in a forked copy of one warm process, which has imported everything and made the fixtures.

A first run without mutants notes which lines of the module each test executes, and how long it takes. A mutant inside a function
replaces the code of that function, so that it acts under every name that was imported; one at module level executes the module
anew and puts the new values in place of the old ones wherever they were imported by name.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import os
import resource
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import pytest
from hypothesis import Phase, settings

from tests.mutation.equivalent import reason
from tests.mutation.mutants import Mutant, changes, mutants

PACKAGES = ("quant", "gguf_tools", "surgery", "tests")
SLOWER = 10
"""How many times as long as without the mutant its tests may take; what takes longer is killed, in both senses."""
GROWTH = 4 << 30
"""Bytes of address space that the tests of a mutant may add to those of the warm process."""
STEADY = settings(
    derandomize=True, database=None, deadline=None, phases=(Phase.explicit, Phase.generate), print_blob=False
)
"""Hypothesis draws the same examples each time, and does not look for a smaller one when a mutant is noticed."""


@dataclass
class Outcome:
    """What became of the mutants; `survivors` are those that no test noticed, each with its module's path.

    `equivalent` is the number of those declared to compute the same, which are not run.
    """

    total: int = 0
    killed: int = 0
    equivalent: int = 0
    unreached: int = 0
    survivors: list[tuple[str, Mutant]] = field(default_factory=list)


class _Kept:
    """In place of a next item: what pytest must not tear down, the fixtures of the session."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session

    def listchain(self) -> list[pytest.Session]:
        """The nodes that stay set up."""
        return [self._session]


@dataclass(frozen=True)
class Job:
    """Mutants that are counted together: modules, and which of their mutants to run.

    `wanted` is asked with a module's path, the mutant's number in it, the text of its line and the change; `finished` is told
    what became of them.
    """

    modules: Sequence[str]
    finished: Callable[[Outcome], None]
    wanted: Callable[[str, int, str, str], bool] = lambda module, number, line, change: True


class Runner:
    """A pytest plugin that runs the mutants in place of the collected tests."""

    def __init__(self, jobs: Sequence[Job], progress: Callable[[str], None]) -> None:
        self.jobs = jobs
        self.progress = progress
        self.outcome = Outcome()
        self.failed = False
        self.lines: dict[pytest.Item, dict[str, set[int]]] = {}
        self.seconds: dict[pytest.Item, float] = {}
        self.killer: dict[tuple[str, tuple[str, ...]], pytest.Item] = {}
        self.killers: set[pytest.Item] = set()
        self.functions: list[FunctionType] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a failure."""
        self.failed |= report.failed

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """Set what every test that is imported from now on takes over from hypothesis' settings."""
        settings.register_profile("mutants", STEADY)
        settings.load_profile("mutants")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Measure the tests, run every mutant, and see that those that noticed one still pass without one."""
        begun = time.monotonic()
        self._measure(session)
        self.progress(f"{len(session.items)} tests without a mutant: {time.monotonic() - begun:.1f} s")
        self.functions = functions_of({str(Path(path).resolve()) for job in self.jobs for path in job.modules})
        gc.freeze()  # so that a collection in a child does not touch, and so copy, what the parent has
        for job in self.jobs:
            self.outcome, self.killers = Outcome(), set()
            for path in job.modules:
                source = Path(path).read_text("utf-8")
                lines = source.splitlines()
                found = enumerate(changes(source))
                numbers = {n for n, (line, change) in found if job.wanted(path, n, lines[line - 1].strip(), change)}
                for mutant in mutants(source, numbers) if numbers else ():
                    self._one(path, mutant, source, session.items)
            if self._killed(None, [item for item in session.items if item in self.killers]) is not None:
                raise pytest.UsageError("after the mutants the tests fail without one; the figures would be too good")
            job.finished(self.outcome)
        return True

    def _measure(self, session: pytest.Session) -> None:
        """Which lines each test executes, and how much processor time it takes."""
        files = {str(Path(path).resolve()): path for job in self.jobs for path in job.modules}
        for item, following in zip(session.items, [*session.items[1:], _Kept(session)], strict=True):
            start = time.process_time()
            with _traced(files) as seen:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            self.seconds[item], self.lines[item] = time.process_time() - start, seen
            if self.failed:
                raise pytest.UsageError(f"{item.nodeid} fails without a mutant")

    def _one(self, path: str, mutant: Mutant, source: str, items: Sequence[pytest.Item]) -> None:
        """Run one mutant, and add it to the outcome."""
        self.outcome.total += 1
        if reason(path, mutant, source.splitlines()):
            self.outcome.equivalent += 1
            return
        first, last = _statement(ast.parse(source), mutant.line)
        # What a module computes when it is imported has no lines in a test: the tests that use the module are run.
        reach = range(first, last + 1) if mutant.function else range(len(source))
        chosen = [item for item in items if not self.lines[item][path].isdisjoint(reach)]
        if not chosen and not mutant.function:
            chosen = list(items)
        chosen = self._in_order(chosen, self.killer.get((path, mutant.function)))
        killer = self._killed((path, mutant), chosen) if chosen else None
        if killer is not None:
            self.outcome.killed += 1
            self.killer[path, mutant.function] = chosen[killer]
            self.killers.add(chosen[killer])
            return
        self.outcome.unreached += not chosen
        self.outcome.survivors.append((path, mutant))
        self.progress(f"survived{'' if chosen else ' (not reached)'}: {path}:{mutant}")

    def _in_order(self, items: list[pytest.Item], killer: pytest.Item | None) -> list[pytest.Item]:
        """The test that noticed the last mutant of the same function and those after it in its file, which often notice the next.

        Then come the quick files and their quick tests.
        """
        files: Counter[Path] = Counter()
        for item in items:
            files[item.path] += self.seconds[item]  # type: ignore[assignment]
        place = {item: n for n, item in enumerate(items)}
        start = place.get(killer, 0) if killer else 0

        def key(item: pytest.Item) -> tuple[bool, float, str, float]:
            if killer and item.path == killer.path:
                return False, 0.0, "", (place[item] - start) % len(items)
            return True, files[item.path], str(item.path), self.seconds[item]

        return sorted(items, key=key)

    def _killed(self, mutant: tuple[str, Mutant] | None, items: Sequence[pytest.Item]) -> int | None:
        """Which of the tests fails, raises or takes too long with the mutant in place, in a child process; None if none.

        The processor time decides, so that other work on the machine does not; the time on the clock ends what waits.
        """
        seconds = sum(self.seconds[item] for item in items)
        at, said = os.pipe()
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            os.close(at)
            code = 1
            with contextlib.suppress(BaseException):
                _limit(int(SLOWER * seconds) + 2)
                code = self._run(mutant, items, said)
            os._exit(code)
        os.close(said)
        end = time.monotonic() + 600 + 60 * SLOWER * seconds
        done, status = 0, 0
        while not done and time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if not done:
                time.sleep(0.003)
        if not done:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        with open(at, "rb") as stream:
            begun = len(stream.read())
        return None if done and os.waitstatus_to_exitcode(status) == 0 else max(begun - 1, 0)

    def _run(self, mutant: tuple[str, Mutant] | None, items: Sequence[pytest.Item], said: int) -> int:
        """In the child: 1 as soon as a test fails. A byte is written to `said` as each test begins."""
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if mutant:
            path, planted = mutant
            name = ".".join(Path(path).with_suffix("").parts)
            put_in_place(planted, sys.modules[name], str(Path(path).resolve()), self.functions)
        self.failed = False
        for item, following in zip(items, [*items[1:], None], strict=True):
            os.write(said, b".")
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return 1
        return 0


def _limit(seconds: int) -> None:
    """Bound the processor time (from now) and the address space of this process."""
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, used + seconds + 1))
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    most = pages * resource.getpagesize() + GROWTH
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def functions_of(files: Container[str]) -> list[FunctionType]:
    """All functions whose code is in these files, those among them that a function returned."""
    return [one for one in gc.get_objects() if type(one) is FunctionType and one.__code__.co_filename in files]


def put_in_place(
    mutant: Mutant, module: ModuleType, file: str, functions: Sequence[FunctionType] | None = None
) -> None:
    """Let the loaded module behave as the mutant; `functions` are those of the file, if they are known."""
    code = compile(mutant.tree, file, "exec")
    if not mutant.function:
        _execute_anew(code, module)
        return
    found: Any = module
    for name in mutant.function:
        found = vars(found)[name] if isinstance(found, type | ModuleType) else getattr(found, name)
    function = _plain(found)
    old = function.__code__
    function.__code__ = _code_of(code, mutant.function)
    _replace_inner(old, function.__code__, functions_of({file}) if functions is None else functions)


def _replace_inner(old: CodeType, new: CodeType, functions: Sequence[FunctionType]) -> None:
    """Let the functions that a function returned before (conditions in a table) behave as those that it returns now."""
    pairs = dict(zip(_inner(old), _inner(new), strict=False))
    if not pairs:
        return
    for one in functions:
        if one.__code__ in pairs:
            replacement = pairs[one.__code__]
            if len(replacement.co_freevars) == len(one.__code__.co_freevars):
                one.__code__ = replacement


def _inner(code: CodeType) -> Iterator[CodeType]:
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield one
            yield from _inner(one)


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
    """Execute a module in its own namespace, and replace what other modules imported from it by name.

    What functions remember of the old values (`functools.cache`) is forgotten.
    """
    old = dict(vars(module))
    exec(code, vars(module))
    for other in [one for name, one in sys.modules.items() if name.split(".")[0] in PACKAGES and one is not module]:
        for name, value in list(vars(other).items()):
            if name in old and value is old[name] and not name.startswith("__"):
                setattr(other, name, vars(module)[name])
            elif hasattr(value, "cache_clear"):
                value.cache_clear()


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
def _traced(files: Mapping[str, str]) -> Iterator[dict[str, set[int]]]:
    """The lines that run meanwhile, in any thread, of files (absolute path → the name under which they are noted)."""
    seen: dict[str, set[int]] = {name: set() for name in files.values()}

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        name = files.get(frame.f_code.co_filename)
        if name is None:
            return None
        lines = seen[name]

        def local(frame: FrameType, event: str, argument: object) -> Any:
            lines.add(frame.f_lineno)
            return local

        lines.add(frame.f_lineno)
        return local

    threading.settrace(trace)
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(None)
        threading.settrace(None)


def run(jobs: Sequence[Job], tests: Sequence[str], progress: Callable[[str], None]) -> None:
    """Run the mutants of modules (paths from the repository's root) under these tests, and tell the jobs as they are finished."""
    code = pytest.main(
        [
            "-n0",
            "-q",
            "-p",
            "no:cacheprovider",
            "--no-header",
            "--no-summary",
            "--durations=0",
            "--capture=sys",
            *tests,
        ],
        plugins=[Runner(jobs, progress)],
    )
    if code != pytest.ExitCode.OK:
        raise SystemExit(f"{', '.join(tests)}: pytest ended with {code!r}")
