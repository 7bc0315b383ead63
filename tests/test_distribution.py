"""The distribution: what a wheel built from the sdist holds, and that the command works where only that is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from gguf_tools import __version__

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("gguf_tools", "quant", "surgery")
OLDEST_SETUPTOOLS = 77
"""As pyproject.toml asks for; the build runs without a network, so it has to be here."""


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def has_setuptools() -> bool:
    try:
        return int(version("setuptools").split(".")[0]) >= OLDEST_SETUPTOOLS
    except PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the sdist that is built from a copy of the source tree."""
    if not has_setuptools():
        pytest.skip(f"setuptools >= {OLDEST_SETUPTOOLS} is not installed")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, built, cwd=source)
    (sdist,) = built.iterdir()
    assert sdist.name == f"tinyq_gguf-{__version__}.tar.gz"
    shutil.unpack_archive(sdist, built)
    unpacked = built / f"tinyq_gguf-{__version__}"
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", built, unpacked),
        cwd=built,
    )
    return built / f"tinyq_gguf-{__version__}-py3-none-any.whl"


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert any(name.endswith(".safetensors") for name in expected)
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == expected


def test_the_command_works_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    made = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", made, cwd=tmp_path)
    python = made / "bin" / "python"
    # The libraries of this environment, pip among them, without its own tinyq: .pth files that lie there are not read.
    here = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (here / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    run(python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--ignore-installed", wheel, cwd=tmp_path)
    tinyq = made / "bin" / "tinyq"
    assert run(tinyq, "--version", cwd=tmp_path).strip() == f"tinyq, version {__version__}"
    models = Path(
        run(python, "-c", "import gguf_tools.bundled as b; print(b.bundled_model('dense'))", cwd=tmp_path).strip()
    )
    assert models.is_relative_to(here)
    assert "qwen3" in run(tinyq, "inspect", models, cwd=tmp_path)
    name = "from importlib.metadata import metadata; print(metadata('tinyq-gguf')['Name'])"
    assert run(python, "-c", name, cwd=tmp_path).strip() == "tinyq-gguf"
