"""The faults that are planted: each is another program, and the ones meant are among them."""

from __future__ import annotations

import ast
from types import FunctionType, ModuleType

import pytest

from tests.mutation import figures
from tests.mutation.equivalent import EQUIVALENT
from tests.mutation.modules import MODULES
from tests.mutation.mutants import mutants
from tests.mutation.runner import put_in_place

SOURCE = '''
"""A docstring of 1 line."""
LIMIT = 3

def eighth(count: int, wide: bool = False) -> int:
    """Returns 1 of 8."""
    found = count // 8
    for n in range(1, count):
        if n > LIMIT and not wide:
            raise ValueError(f"{n} is above {LIMIT + 1}")
    return found

class Box:
    @property
    def size(self) -> int:
        return 2 * LIMIT
'''


def test_every_mutant_is_another_program() -> None:
    made = [ast.dump(mutant.tree) for mutant in mutants(SOURCE)]
    assert len({*made, ast.dump(ast.parse(SOURCE))}) == len(made) + 1


def test_the_mutants_meant_are_there_and_no_text_is_one() -> None:
    changes = {str(mutant) for mutant in mutants(SOURCE)}
    assert {
        "3: 3 → 4",
        "3: 3 → 2",
        "5: False → True",
        "7: count // 8 → count * 8",
        "7: 8 → 9",
        "8: range(1, count) → range(1, count, 2)",
        "9: n > LIMIT → n >= LIMIT",
        "9: n > LIMIT and (not wide) → n > LIMIT or not wide",
        "9: condition negated: n > LIMIT and (not wide)",
        "16: 2 * LIMIT → 2 + LIMIT",
    } <= changes
    assert not [change for change in changes if change.startswith(("2:", "6:", "10:"))]


def test_a_mutant_acts_in_the_loaded_module() -> None:
    for change, expected in (("7: 8 → 9", (7, 6)), ("16: 2 * LIMIT → 2 + LIMIT", (8, 5)), ("3: 3 → 4", (8, 8))):
        module = ModuleType("made")
        exec(compile(SOURCE, "made", "exec"), vars(module))
        eighth: FunctionType = module.eighth
        box = module.Box()
        put_in_place(next(mutant for mutant in mutants(SOURCE) if str(mutant) == change), module, "made")
        assert (eighth(64, True), box.size) == expected


def test_a_default_acts_though_it_is_not_in_the_code_of_its_function() -> None:
    module = ModuleType("made")
    exec(compile(SOURCE, "made", "exec"), vars(module))
    mutant = next(mutant for mutant in mutants(SOURCE) if str(mutant) == "5: False → True")
    put_in_place(mutant, module, "made")
    assert module.eighth.__defaults__ == (True,)


@pytest.mark.parametrize("module", EQUIVALENT)
def test_every_declared_equivalent_is_a_mutant(module: str) -> None:
    assert module in MODULES
    assert figures.stale(module) == []


def test_the_page_shows_the_figures() -> None:
    assert figures.PAGE.read_text("utf-8") == figures.page(MODULES, figures.read())
