"""Families of other distributions, and what is said where one of them is broken.

That a sound one works is shown with the package of docs/adding-a-family.md (tests/docs/test_adding_a_family.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gguf_tools.errors import InputError
from gguf_tools.families import registry
from gguf_tools.families.registry import all_families, family_named, load_model, own_families
from tests.conftest import Ran

Install = Callable[..., None]

FAMILY = """
from gguf_tools.families import Family


def broken(checkpoint):
    return checkpoint.tensors["no such tensor"]


FAMILY = Family(name={name!r}, title="", matches={matches}, build=broken)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution on the path: its name, its module's text, and the object that its entry point names."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def put(distribution: str, text: str, attribute: str = ":FAMILY") -> None:
        module = distribution.replace("-", "_")
        (site / f"{module}.py").write_text(text, "utf-8")
        info = site / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n", "utf-8")
        (info / "entry_points.txt").write_text(f"[tinyq.families]\nmine = {module}{attribute}\n", "utf-8")
        registry._plugins.cache_clear()

    yield put
    monkeypatch.undo()
    registry._plugins.cache_clear()


def test_families_of_tinyq_and_of_others_are_sorted_together(install: Install) -> None:
    install("plugin-sound", FAMILY.format(name="newcomer", matches="lambda checkpoint: False"))
    names = [family.name for family in all_families()]
    assert names == sorted([*(family.name for family in own_families()), "newcomer"])
    assert family_named("newcomer").title == ""


@pytest.mark.parametrize(
    ("distribution", "text", "attribute", "said"),
    [
        ("plugin-import", "import no_such_module_anywhere", ":FAMILY", "ModuleNotFoundError: No module named"),
        ("plugin-syntax", "def :", ":FAMILY", "SyntaxError: "),
        ("plugin-lines", "raise RuntimeError('one\\ntwo')", ":FAMILY", "RuntimeError: one two"),
        ("plugin-attribute", "", ":FAMILY", "AttributeError: "),
        ("plugin-kind", "FAMILY = 'llama'", ":FAMILY", "is a str; expected a gguf_tools.families.Family"),
        ("plugin-module", "", "", "is a module; expected a gguf_tools.families.Family"),
        (
            "plugin-clash",
            FAMILY.format(name="llama", matches="broken"),
            ":FAMILY",
            "tinyq already has a family named 'llama'",
        ),
    ],
)
def test_a_broken_distribution_is_named(
    install: Install, tinyq: Callable[..., Ran], tmp_path: Path, distribution: str, text: str, attribute: str, said: str
) -> None:
    write = family_named("llama").tiny
    assert write
    write(tmp_path / "source", "plain", 1)
    install(distribution, text, attribute)
    ran = tinyq("convert", tmp_path / "source", tmp_path / "out.gguf")
    assert ran.code == 2
    assert f"distribution {distribution}, entry point mine of tinyq.families: " in ran.err
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert not (tmp_path / "out.gguf").exists()


def test_two_distributions_with_a_family_of_one_name(install: Install) -> None:
    for name in ("plugin-one", "plugin-two"):
        install(name, FAMILY.format(name="same", matches="lambda checkpoint: False"))
    with pytest.raises(InputError, match=r"^distribution plugin-two, .* plugin-one already has a family named 'same'"):
        all_families()


@pytest.mark.parametrize(
    ("distribution", "matches", "function"),
    [("plugin-matches", "broken", "matches"), ("plugin-build", "lambda checkpoint: True", "build")],
)
def test_a_function_that_fails_is_named(
    install: Install, tmp_path: Path, distribution: str, matches: str, function: str
) -> None:
    (tmp_path / "odd").mkdir()
    from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint

    write_checkpoint(tmp_path / "odd", {}, random_tensors({"odd.weight": (2, 2)}, 1))
    install(distribution, FAMILY.format(name="odd", matches=matches))
    with pytest.raises(InputError) as error:
        load_model(tmp_path / "odd")
    assert f"{function} of the family odd of distribution {distribution} failed (KeyError: 'no such tensor')" in str(
        error.value
    )
