"""A disk, a limit, a TMPDIR, a stdout or an installation that is not as it should be; and a run in which nothing is wrong."""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.faults.at_steps import WRONG
from tests.faults.bench import Bench, Try
from tests.faults.child import Ended, Setting, run
from tests.faults.fault import Fault
from tests.faults.on_paths import UNSHARE, no_mounts
from tests.faults.place import Place
from tests.faults.scenario import Scenario

NEEDED = "0.3.36"
"""The llama-cpp-python that pyproject.toml asks for."""
# The small disk vanishes with its namespace, so that what it holds is copied out of it first.
_SMALL_DISK = (
    'mount -t tmpfs -o "size=$1" none "$2" && top=$2 && shift 2 && "$@"; code=$?; '
    'mkdir "$top.seen" && cp -a "$top/." "$top.seen" && exit "$code"'
)
_SMALL_TMP = 'mount -t tmpfs -o "size=4k" none "$1" && head -c 4096 /dev/zero > "$1/full"; shift && exec "$@"'


class Nothing(Fault):
    name = "none"
    about = "no fault: the same run again leaves the same, byte for byte"
    cheap = False

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        return [Try(label="again", codes=(scenario.code,))]


class FileLimit(Fault):
    name = "file size limit"
    about = "RLIMIT_FSIZE, from 0 to the size of the largest output"
    cheap = False

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        reference = bench.reference(scenario)
        files = [path for path in (reference.kept / "out").rglob("*") if path.is_file()]
        largest = max([path.stat().st_size for path in files], default=0)
        draw = random.Random(f"{self.name}:{scenario.name}")
        limits = [0, largest - 1, *(draw.randrange(largest) for _ in range(most))] if largest else [0]
        limits = [limits[draw.randrange(2)]] if most == 1 else limits[:most]
        return [Try(label=f"{n:,} bytes", codes=WRONG, setting=partial(self._setting, n)) for n in limits]

    def _setting(self, limit: int, _: Place) -> Setting:
        return Setting(limits={resource.RLIMIT_FSIZE: limit})


class SmallDisk(Fault):
    name = "small disk"
    about = "the outputs' folder is a tmpfs of a few pages, smaller than the outputs or larger"
    cheap = False

    def why_not(self) -> str:
        return no_mounts()

    def fits(self, scenario: Scenario) -> bool:
        return bool(scenario.outputs)

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        kept = bench.reference(scenario).kept / "out"
        pages = sum(-(-path.stat().st_size // 4096) for path in kept.rglob("*") if path.is_file())
        draw = random.Random(f"{self.name}:{scenario.name}")
        sizes = [draw.randrange(1, 2 * pages + 4) for _ in range(max(most // 2, 1))]
        return [Try(label=f"{4 * n} KiB", codes=WRONG, act=partial(self._run, 4 * n)) for n in sizes]

    def _run(self, size: int, bench: Bench, scenario: Scenario, place: Place) -> Ended:
        wrapper = (*UNSHARE, "sh", "-c", _SMALL_DISK, "sh", f"{size}k", str(place.outputs))
        ended = run(place, place.arguments(scenario), Setting(wrapper=wrapper))
        seen = place.outputs.with_name("out.seen")
        if seen.is_dir():  # else the command hung, and was ended with the shell that copies
            place.outputs.rmdir()
            seen.rename(place.outputs)
        return ended


class NoTmp(Fault):
    name = "TMPDIR missing"
    about = "TMPDIR names a folder that does not exist; the system's own serves"
    cheap = False

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        return [Try(label="missing", codes=(scenario.code,), setting=self._setting)]

    def _setting(self, place: Place) -> Setting:
        return Setting(environment={"TMPDIR": str(place.folder / "tmp" / "none")})


class FullTmp(Fault):
    name = "TMPDIR full"
    about = "TMPDIR is a tmpfs without a free byte"
    cheap = False

    def why_not(self) -> str:
        return no_mounts()

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        return [Try(label="full", codes=WRONG, setting=self._setting)]

    def _setting(self, place: Place) -> Setting:
        return Setting(wrapper=(*UNSHARE, "sh", "-c", _SMALL_TMP, "sh", str(place.folder / "tmp")))


class BadStdout(Fault):
    name = "stdout full or closed"
    about = "stdout is a full device, or closed"
    cheap = False

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        ways = [("full", "/dev/full"), ("closed", "closed")]
        draw = random.Random(f"{self.name}:{scenario.name}")
        ways = [ways[draw.randrange(2)]] if most == 1 else ways
        return [
            Try(label=label, codes=(scenario.code, 2), setting=partial(self._setting, where), prints=False)
            for label, where in ways
        ]

    def _setting(self, where: str, _: Place) -> Setting:
        return Setting(streams={"stdout": where})


class NoLlama(Fault):
    name = "llama_cpp missing"
    about = "llama-cpp-python is not installed: commands that need it say which version and what for, the others work"
    hidden: tuple[str, ...] = ("llama_cpp",)
    package = ""

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        says = ("llama-cpp-python", NEEDED, scenario.llama) if scenario.llama else ()
        codes = (3,) if scenario.llama else (scenario.code,)
        setting = partial(self._setting, bench)
        whole, report = not scenario.llama, ("out/report.json",) if scenario.proves else ()
        return [
            Try(
                label="",
                codes=codes,
                says=says,
                setting=setting,
                needs_complete=whole,
                prints=not report,
                excused=report,
            )
        ]

    def _setting(self, bench: Bench, _: Place) -> Setting:
        folder = site(bench.folder / self.name.replace(" ", "-"), self.hidden, self.package)
        root = Path(__file__).resolve().parents[2]
        return Setting(environment={"PYTHONPATH": f"{folder}:{root}"})


class OldLlama(NoLlama):
    name = "llama_cpp too old"
    about = "llama-cpp-python 0.2.90 is installed, which lacks functions that are used: as if it were missing"
    hidden = ()
    package = "0.2.90"


class NoTransformers(NoLlama):
    name = "transformers missing"
    about = "transformers, which is an extra, is not installed: every command works without it"
    hidden = ("transformers",)
    cheap = False

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        return [Try(label="", codes=(scenario.code,), setting=partial(self._setting, bench))]


_HIDING = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec


def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in %r else find(name, path, target)


PathFinder.find_spec = staticmethod(find_spec)  # some libraries call it on an instance
"""


def site(folder: Path, hidden: tuple[str, ...], package: str) -> Path:
    """A folder for PYTHONPATH that hides modules as if they were not installed, and has an old llama_cpp of a version."""
    folder.mkdir(exist_ok=True)
    if hidden:
        (folder / "sitecustomize.py").write_text(_HIDING % (hidden,), "utf-8")
    if package:
        (folder / "llama_cpp" / "lib").mkdir(parents=True, exist_ok=True)
        (folder / "llama_cpp" / "__init__.py").write_text(
            f'from .llama_cpp import *\n__version__ = "{package}"\n', "utf-8"
        )
        (folder / "llama_cpp" / "llama_cpp.py").write_text("GGML_TYPE_F32, GGML_TYPE_F16 = 0, 1\n", "utf-8")
        info = folder / f"llama_cpp_python-{package}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: {package}\n", "utf-8")
    return folder


def faults() -> Iterator[Fault]:
    """The faults of this module."""
    yield from (Nothing(), FileLimit(), SmallDisk(), NoTmp(), FullTmp(), BadStdout())
    yield from (NoLlama(), OldLlama(), NoTransformers())
