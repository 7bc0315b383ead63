"""The distribution: what a wheel built from the sdist holds, and that the command works where only that is installed."""

from __future__ import annotations

import email
import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gguf_tools import __version__

ROOT = Path(__file__).resolve().parents[1]
CHECK = ROOT / ".ci" / "check_wheel.py"
UNSHARE = shutil.which("unshare")
PACKAGES = ("gguf_tools", "quant", "surgery")
OLDEST_SETUPTOOLS = 77
"""As pyproject.toml asks for; the build runs without a network, so it has to be here."""


def run(*command: object, cwd: Path, **variables: str) -> str:
    env = {**os.environ, **variables}
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def has_setuptools() -> bool:
    try:
        return int(version("setuptools").split(".")[0]) >= OLDEST_SETUPTOOLS
    except PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist that is built from a copy of the source tree."""
    if not has_setuptools():
        pytest.skip(f"setuptools >= {OLDEST_SETUPTOOLS} is not installed")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    # The C sources are in it all the same.
    run(sys.executable, "-c", build, built, cwd=source, TINYQ_PURE="1")
    (sdist,) = built.iterdir()
    assert sdist.name == f"tinyq_gguf-{__version__}.tar.gz"
    shutil.unpack_archive(sdist, built)
    return built / f"tinyq_gguf-{__version__}"


def wheel_line(unpacked: Path, folder: Path) -> list[object]:
    """The command line that builds the wheel of a copy of the unpacked sdist."""
    copy = shutil.copytree(unpacked, folder / "sdist")
    line = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    return [*line, "--wheel-dir", folder, copy]


def build_wheel(unpacked: Path, folder: Path, **variables: str) -> Path:
    """The wheel of the unpacked sdist, which is built in a copy, with these environment variables."""
    run(*wheel_line(unpacked, folder), cwd=folder, **variables)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as it is built here."""
    return build_wheel(unpacked, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def pure_wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel without kernels."""
    return build_wheel(unpacked, tmp_path_factory.mktemp("pure"), TINYQ_PURE="1")


def metadata(wheel: Path, name: str) -> str:
    """A file of a wheel's metadata."""
    return zipfile.ZipFile(wheel).read(f"tinyq_gguf-{__version__}.dist-info/{name}").decode()


def contents(wheel: Path) -> set[str]:
    """The files of a wheel's packages, without its metadata."""
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def packaged() -> set[str]:
    """Every file of the packages but the kernels' C sources and what they are compiled to."""
    return {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".c", ".h", ".so")
    }


def test_the_wheel_holds_every_file_of_the_packages_and_the_kernels(wheel: Path) -> None:
    expected = packaged()
    assert any(name.endswith(".safetensors") for name in expected)
    compiled = {name for name in contents(wheel) if name.endswith(".so")}
    assert contents(wheel) - compiled == expected
    assert {name.split(".")[0] for name in compiled} <= {"quant/kernels/_lanes"}
    if shutil.which("cc"):
        assert compiled
        assert f"tinyq_gguf-{__version__}-cp310-abi3-" in wheel.name


def test_a_wheel_is_built_without_a_compiler(unpacked: Path, tmp_path: Path) -> None:
    wheel = build_wheel(unpacked, tmp_path, CC="/bin/false")
    assert contents(wheel) == packaged()


def test_the_pure_wheel_fits_every_platform_and_ggml_encodes(pure_wheel: Path, tmp_path: Path) -> None:
    assert pure_wheel.name == f"tinyq_gguf-{__version__}-py3-none-any.whl"
    assert contents(pure_wheel) == packaged()
    zipfile.ZipFile(pure_wheel).extractall(tmp_path / "unzipped")
    found = run(sys.executable, CHECK, "ggml", cwd=tmp_path, PYTHONPATH=str(tmp_path / "unzipped"), TINYQ_KERNELS="")
    assert found == "12 types as ggml encodes them, by ggml (this installation has no C kernels)\n"


def test_both_wheels_say_what_pyproject_says(wheel: Path, pure_wheel: Path) -> None:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = toml.loads((ROOT / "pyproject.toml").read_text())["project"]
    said = metadata(wheel, "METADATA")
    assert metadata(pure_wheel, "METADATA") == said
    assert metadata(pure_wheel, "entry_points.txt").split() == [
        "[console_scripts]",
        "tinyq",
        "=",
        "gguf_tools.__main__:main",
    ]
    found = email.message_from_string(said)
    assert found["Requires-Python"] == project["requires-python"]
    extras = {canonicalize_name(name): needs for name, needs in project["optional-dependencies"].items()}
    assert set(found.get_all("Provides-Extra", [])) == extras.keys()
    stated = [Requirement(line) for line in found.get_all("Requires-Dist", [])]
    for extra, needs in [("", project["dependencies"]), *extras.items()]:
        assert {need.name for need in stated if _only_for(need, extra)} == {Requirement(line).name for line in needs}


def _only_for(need: Requirement, extra: str) -> bool:
    """Whether a requirement is one of an extra; of none if `extra` is empty."""
    return f'extra == "{extra}"' in str(need.marker) if extra else "extra ==" not in str(need.marker)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"TINYQ_PURE": "yes"},
            "TINYQ_PURE is 'yes'; expected 1 (without the C kernels), 0 (never without them) or nothing",
        ),
        ({"TINYQ_PURE": "0", "CC": "/bin/false"}, "/bin/false -"),
    ],
)
def test_a_wheel_is_not_built_otherwise_than_it_is_asked_for(
    unpacked: Path, tmp_path: Path, variables: dict[str, str], said: str
) -> None:
    line = [str(part) for part in wheel_line(unpacked, tmp_path)]
    done = subprocess.run(
        line, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, **variables}, check=False
    )
    assert done.returncode != 0
    assert said in done.stderr + done.stdout
    assert not list(tmp_path.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel, and the libraries of this one without its own tinyq."""
    made = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", made, cwd=made.parent)
    python = made / "bin" / "python"
    # The libraries of this environment, pip among them, without its own tinyq: .pth files that lie there are not read.
    here = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=made.parent).strip())
    (here / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    run(python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--ignore-installed", wheel, cwd=made.parent)
    return made


def test_the_command_works_from_the_wheel_alone(installed: Path, wheel: Path, tmp_path: Path) -> None:
    python, tinyq = installed / "bin" / "python", installed / "bin" / "tinyq"
    assert run(tinyq, "--version", cwd=tmp_path).strip() == f"tinyq, version {__version__}"
    models = Path(
        run(python, "-c", "import gguf_tools.bundled as b; print(b.bundled_model('dense'))", cwd=tmp_path).strip()
    )
    assert models.is_relative_to(installed)
    assert "qwen3" in run(tinyq, "inspect", models, cwd=tmp_path)
    if "-abi3-" in wheel.name and shutil.which("cc"):
        found = run(python, CHECK, "kernels", cwd=tmp_path, TINYQ_KERNELS="")
        assert found.startswith("12 types as ggml encodes them, by kernels for ")
    name = "from importlib.metadata import metadata; print(metadata('tinyq-gguf')['Name'])"
    assert run(python, "-c", name, cwd=tmp_path).strip() == "tinyq-gguf"


def test_the_demo_works_in_a_read_only_folder_without_a_network(installed: Path, tmp_path: Path) -> None:
    """Neither the folder it is run in nor the one it is installed in can be written to; only a temporary one can."""
    here, scratch = tmp_path / "here", tmp_path / "scratch"
    here.mkdir()
    scratch.mkdir()
    command = f"{installed / 'bin' / 'tinyq'} demo --model dense --json {scratch / 'demo.json'}"
    line = ["sh", "-c", command]
    # A network and mounts of its own, where the system lets a user have those.
    if UNSHARE and subprocess.run([UNSHARE, "-rnm", "true"], capture_output=True, check=False).returncode == 0:
        mounts = f"for f in {here} {installed}; do mount --bind $f $f && mount -o remount,bind,ro $f || exit 99; done"
        line = [UNSHARE, "-rnm", "sh", "-c", f"{mounts}; cd {here} && ! touch x 2>/dev/null && exec {command}"]
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(scratch), "HOME": str(here), "http_proxy": "http://127.0.0.1:9"}
    here.chmod(0o555)
    done = subprocess.run(line, cwd=here, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((scratch / "demo.json").read_text())
    assert {"f32", "q8_0", "q4_k_m"} <= found.keys()
    assert found["f32"]["fidelity"]["nmse"] < 1e-9
    assert list(here.iterdir()) == []
    left = [path.name for path in scratch.iterdir() if not path.name.startswith("torchinductor")]  # which torch makes
    assert left == ["demo.json"]
