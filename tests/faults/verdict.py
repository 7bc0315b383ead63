"""Whether a command survived a fault, from what was found: exit code, stderr, files, processes. No command's word is taken."""

from __future__ import annotations

import re
import signal
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tests.faults.child import Ended
from tests.faults.place import Entry, Snapshot

DURING_EXIT = (-signal.SIGINT, -signal.SIGTERM, -signal.SIGXCPU)
"""Exit codes of a signal that came when the command was done and Python had taken its handlers away, which leaves nothing on
stderr. With a line there it was interrupted: `python -m` ends by SIGINT itself, in place of the exit code 130, if the exception
passed through code that `exec` made of a text (`Py_RunMain`)."""
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_NOTHING_LEFT = "no output was left behind"
_SHOWN = 300


@dataclass(frozen=True, kw_only=True)
class Complete:
    """What a run without a fault leaves: every entry that it makes, changes or removes (None), and its stdout."""

    entries: Mapping[str, Entry | None]
    out: str

    @classmethod
    def of(cls, before: Snapshot, after: Snapshot, ended: Ended) -> Complete:
        """From the snapshots around a run."""
        names = sorted({*before.entries, *after.entries})
        changed = [name for name in names if before.entries.get(name) != after.entries.get(name)]
        return cls(entries={name: after.entries.get(name) for name in changed}, out=ended.out)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What counts as survived; `good` is the exit code of a run without a fault."""

    codes: Collection[int]
    good: int = 0
    says: Sequence[str] = ()
    """What the line on stderr must contain where there is an error."""
    killed: bool = False
    """SIGKILL: what is left over is the next run's to complete or to remove, and judged after that."""
    tells: bool = False
    """The report may say what `says` has, instead of an error."""
    half_done: bool = False
    """A change in place that failed after it began: what is left is judged after the next run, as with SIGKILL."""
    progress: tuple[str, ...] = ()
    """Beginnings of lines on stderr that count neither as an error nor as anything else."""
    excused: Collection[str] = ()
    """Entries that the fault itself changed, or that a stream takes the place of."""
    prints: bool = True
    """Whether stdout can be held against that of a run without a fault."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was there before the run, after it, and what it left."""

    before: Snapshot
    after: Snapshot
    ended: Ended


def complaints(found: Found, completes: Sequence[Complete], expected: Expected) -> list[str]:
    """What speaks against the command; nothing where it survived. It may end as any of `completes`."""
    ended = found.ended
    made = ["did not end within its limit"] if ended.hung else []
    if ended.code not in expected.codes:
        made.append(f"exit code {ended.code}; expected one of {sorted(expected.codes)}")
    if ended.survivors:
        made.append(f"{ended.survivors} processes outlived it")
    succeeded = ended.code == expected.good or (ended.code in DURING_EXIT and not ended.err.strip())
    if expected.tells and succeeded and expected.says and all(text in ended.out for text in expected.says):
        outputs = {name for complete in completes for name in complete.entries}
        expected = replace(expected, prints=False, excused={*expected.excused, *outputs})
    made += _of_stderr(ended, expected, succeeded)
    options = [_of_entries(found, complete, expected, succeeded) for complete in completes]
    fewest: list[str] = min(options, key=len)
    made += fewest
    if succeeded and expected.prints and all(ended.out != complete.out for complete in completes):
        made.append(f"stdout is not what a run without a fault prints: {ended.out[:_SHOWN]!r}")
    return made


def unsettled(found: Found, completes: Sequence[Complete], good: int | None) -> list[str]:
    """What speaks against the state that the run after a kill leaves: all complete and nothing left over.

    `good` is None where that run only completes, or finds nothing to complete: then all may be as it was, too.
    """
    ended = found.ended
    made = [f"a traceback: {ended.err[-_SHOWN:]!r}"] if "Traceback" in ended.err else []
    if ended.code not in ((0, 2) if good is None else (good,)):
        made.append(f"exit code {ended.code}: {ended.err[:_SHOWN]!r}")
    options: list[list[str]] = []
    for complete in completes:
        excused = [name for name in complete.entries if name.startswith("out/") and good is None]
        expected = Expected(codes=(), excused=excused)
        options.append(_of_entries(found, complete, expected, succeeded=good is not None))
    fewest: list[str] = min(options, key=len)
    return made + fewest


def _of_stderr(ended: Ended, expected: Expected, succeeded: bool) -> Iterable[str]:
    """One line at an error, beyond what is printed without one; none at success or after SIGKILL."""
    if "Traceback" in ended.err or "Exception ignored" in ended.err:
        yield f"a traceback: {ended.err[-_SHOWN:]!r}"
        return
    lines = [
        line
        for line in ended.err.splitlines()
        if line and not (expected.progress and line.startswith(expected.progress))
    ]
    silent = succeeded or expected.killed
    if silent and lines:
        yield f"stderr holds {lines[0][:_SHOWN]!r}; expected nothing"
    if silent:
        return
    if len(lines) != 1 or not lines[0].startswith("tinyq: "):
        yield f"stderr holds {len(lines)} lines, one that begins with 'tinyq: ' expected: {ended.err[:_SHOWN]!r}"
    if not lines:
        return
    yield from (
        f"the line does not say {text!r}: {ended.err[:_SHOWN]!r}" for text in expected.says if text not in ended.err
    )


def _of_entries(found: Found, complete: Complete, expected: Expected, succeeded: bool) -> list[str]:
    """Inputs unchanged, nothing left over, each output old or complete and, after success, complete."""
    made, states = [], {}
    later = expected.killed or expected.half_done
    for name in sorted({*found.before.entries, *found.after.entries, *complete.entries}):
        if name in expected.excused:
            continue
        before, after = found.before.entries.get(name), found.after.entries.get(name)
        if after == before and (name not in complete.entries or before != complete.entries[name]):
            states[name] = "old"
        elif name in complete.entries and after == complete.entries[name]:
            states[name] = "new"
        elif not later or (name.startswith("in/") and before is not None and name not in complete.entries):
            made.append(_wrong(name, before, after, name in complete.entries))
    if later:
        return made
    outputs = {name: state for name, state in states.items() if name in complete.entries}
    if succeeded:
        made += [f"{name} is not there as a run without a fault leaves it" for name, s in outputs.items() if s == "old"]
    for group in _groups(outputs):
        if len({outputs[name] for name in group}) > 1:
            made.append(f"a mixed set: {', '.join(f'{name} {outputs[name]}' for name in group)}")
    new = [
        name
        for name, state in outputs.items()
        if state == "new" and found.before.entries.get(name) != complete.entries[name]
    ]
    if new and _NOTHING_LEFT in found.ended.err:
        made.append(f"says that {_NOTHING_LEFT}, but {new[0]} is there")
    return made


def _wrong(name: str, before: Entry | None, after: Entry | None, output: bool) -> str:
    """What is wrong with an entry that is neither as it was nor complete."""
    if name.startswith("in/") and before is not None:
        return f"the input {name} was {'removed' if after is None else 'changed'}"
    if not output:
        return f"{name} was left over"
    return f"the output {name} is {'gone' if after is None else 'neither the old one nor complete'}"


def _groups(names: Iterable[str]) -> list[list[str]]:
    """Entries that must change together: what a change in place touches, the parts of a split set."""
    groups: dict[str, list[str]] = {}
    for name in names:
        if name.startswith("in/"):
            groups.setdefault("in", []).append(name)
        elif match := _PART.search(name):
            groups.setdefault(name[: match.start()], []).append(name)
    return list(groups.values())
