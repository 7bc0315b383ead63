"""The layout of the packages: which room may import which, and how many modules lie loose."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gguf_tools
from gguf_tools.cli import tinyq
from tests.faults.declared import undeclared

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("quant", "gguf_tools", "surgery")
"""A package imports those before it."""
ROOMS = (
    "tensors",
    "model",
    "formats",
    "sources",
    "tokenizers",
    "reference",
    "description",
    "families",
    "rewrites",
    "targets",
    "conversion",
    "quantization",
    "verification",
    "runtime",
    "editing",
    "inspection",
    "evaluation",
    "allocation",
    "publishing",
    "api",
    "evaluate",
    "commands",
)
"""The rooms of gguf_tools: a room imports those before it, and the loose modules of GROUND. `docs/architecture.md` shows them."""
GROUND = ("errors", "text", "tables", "machine", "progress", "signals", "bundled")
"""Modules that every room may import; among themselves they import nothing but those before them."""
LONG = 12
"""The lines from which on a function has a docstring."""
FACES = ("__init__", "__main__", "cli")
"""Modules that lie above all rooms."""
MOST_LOOSE = 9


def modules(package: str) -> Iterator[Path]:
    yield from sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name of what is imported, line) of every import in a file, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def room_of(name: str) -> str | None:
    """The room or loose module of gguf_tools that a dotted name lies in."""
    parts = name.split(".")
    if parts[0] != "gguf_tools" or len(parts) < 2:
        return None
    return "api" if parts[1] in gguf_tools.__all__ and parts[1] != "__version__" else parts[1]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_one_way(package: str) -> None:
    later = PACKAGES[PACKAGES.index(package) + 1 :]
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules(package)
        for name, line in imports(path)
        # The API and the commands are the face of all three packages.
        if name.split(".")[0] in later and not {"api", "commands"} & set(path.parts)
    ]
    assert not wrong, "\n".join(wrong)


def test_rooms_import_one_way() -> None:
    order = {name: n for n, name in enumerate((*GROUND, *ROOMS))}
    wrong = []
    for path in modules("gguf_tools"):
        here = path.relative_to(ROOT / "gguf_tools").parts[0].removesuffix(".py")
        if here in FACES:
            continue
        for name, line in imports(path):
            there = room_of(name)
            if there == "__version__" or there is None:
                continue
            if there not in order or order[there] > order[here]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_every_room_is_in_the_order_and_few_modules_lie_loose() -> None:
    top = ROOT / "gguf_tools"
    rooms = {path.name for path in top.iterdir() if (path / "__init__.py").exists()}
    assert rooms == {*ROOMS, "bundled"}
    loose = [path.name for path in top.glob("*.py")]
    assert len(loose) <= MOST_LOOSE, loose


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_through_others(package: str) -> None:
    """No circle among modules, imports inside functions left aside: those run later."""
    graph = {}
    for path in modules(package):
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text("utf-8"))
        found = set()
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        graph[dotted] = found
    graph = {name: {other for other in found if other in graph and other != name} for name, found in graph.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " → ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("package", PACKAGES)
def test_long_functions_have_docstrings(package: str) -> None:
    bare = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno + 1 >= LONG
        and not ast.get_docstring(node)
    ]
    assert not bare


def test_every_command_is_in_the_matrix_of_faults() -> None:
    assert undeclared(tinyq) == []
