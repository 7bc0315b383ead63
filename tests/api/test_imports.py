"""The public names: loaded when they are used, and hidden by nothing."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import gguf_tools

HEAVY = ("torch", "numpy", "transformers", "llama_cpp", "tokenizers", "gguf_tools.api", "surgery")


def loaded(statement: str, names: tuple[str, ...]) -> list[str]:
    """Which of these modules a statement loads in a fresh process."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps([n for n in {names!r} if n in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


def test_the_packages_load_nothing() -> None:
    assert loaded("import gguf_tools, quant, surgery", (*HEAVY[:-1],)) == []


def test_the_functions_load_no_torch() -> None:
    assert loaded("from gguf_tools import *", ("torch", "transformers", "llama_cpp")) == []


def test_a_function_is_loaded_alone() -> None:
    assert loaded("from gguf_tools import inspect", ("surgery", "gguf_tools.evaluation", "gguf_tools.runtime")) == []


@pytest.mark.parametrize("name", gguf_tools.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert name in dir(gguf_tools)
    value = getattr(gguf_tools, name)
    if name != "__version__":
        assert value.__name__ == name
        assert inspect.getdoc(value)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        gguf_tools.nonsense  # noqa: B018
    with pytest.raises(ImportError):
        exec("from gguf_tools import nonsense")


def test_no_module_hides_a_public_name() -> None:
    modules = {info.name for info in pkgutil.iter_modules(gguf_tools.__path__)}
    assert modules & set(gguf_tools.__all__) <= {"evaluate"}  # which puts the function in its own place
    for info in pkgutil.walk_packages(gguf_tools.__path__, "gguf_tools."):
        if not info.name.endswith(("__main__", "worker")):
            importlib.import_module(info.name)
    for name in gguf_tools.__all__:
        assert not inspect.ismodule(getattr(gguf_tools, name))


@pytest.mark.parametrize("package", ["gguf_tools", "quant", "surgery"])
def test_types_are_marked(package: str) -> None:
    (folder,) = importlib.import_module(package).__path__
    assert (Path(folder) / "py.typed").is_file()
    packaged = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    assert f'{package} = ["py.typed"' in packaged
