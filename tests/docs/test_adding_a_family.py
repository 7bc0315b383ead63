"""The page on adding a family shows code that exists, and a package that works when it is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from docs.generate import DOCS
from gguf_tools.families import phi3

PAGE = (DOCS / "adding-a-family.md").read_text("utf-8")
EXAMPLE, PACKAGE = PAGE.split("## A package of your own\n")
ROOT = Path(__file__).resolve().parents[2]


def test_the_example_is_the_family_that_exists() -> None:
    source = Path(phi3.__file__).read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)\n```", EXAMPLE, re.DOTALL)
    assert len(blocks) == 6
    assert all(block in source for block in blocks)
    # All of the code but the imports is shown.
    shown = "".join("".join(blocks).split())
    assert shown == "".join(source[source.index("LONGROPE = ") :].split())
    assert len(source.splitlines()) <= 140


def test_the_package_installs_and_passes_its_own_tests(tmp_path: Path) -> None:
    project, site = tmp_path / "project", tmp_path / "site"
    project.mkdir()
    files = re.findall(
        r"^`([\w.]+)`[^`]*?(?:`[^`\n]*`[^`]*?)*:\n\n```\w+\n(.*?)\n```", PACKAGE, re.DOTALL | re.MULTILINE
    )
    assert [name for name, _ in files] == ["pyproject.toml", "tinyq_upgate.py", "test_upgate.py"]
    for name, text in files:
        (project / name).write_text(text + "\n", "utf-8")
    pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--target",
        site,
        project,
    ]
    run(*pip)
    path = os.pathsep.join([str(site), str(ROOT)])
    ran = run("-m", "pytest", "-q", "-p", "no:cacheprovider", project / "test_upgate.py", path=path)
    # Recognised, planned, and four types.
    assert "6 passed" in ran
    script = (
        "from pathlib import Path; from tinyq_upgate import tiny; from gguf_tools.cli import run; "
        f"folder = Path({str(tmp_path)!r}); tiny(folder / 'made', 'plain', 1); "
        "raise SystemExit(run(['convert', str(folder / 'made'), str(folder / 'out.gguf'), '--type', 'f32']))"
    )
    assert "upgate" in run("-c", script, path=path)
    assert (tmp_path / "out.gguf").exists()


def run(*args: object, path: str = "") -> str:
    """What this Python prints, given more places to import from; it must succeed."""
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *map(str, args)], capture_output=True, text=True, env=environment, cwd="/", timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
