"""The faults that are planted: each is another program, and the ones meant are among them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from tests.mutation import figures
from tests.mutation.equivalent import EQUIVALENT
from tests.mutation.figures import Draw, Figures
from tests.mutation.modules import ARCHITECTURES, ROOT, SUBJECTS
from tests.mutation.mutants import changes, mutants
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


def test_a_mutant_acts_in_the_functions_that_were_returned_before() -> None:
    source = "def above(bound: int):\n    return lambda number: number > bound\n\nABOVE = [above(3), above(5)]"
    module = ModuleType("made")
    exec(compile(source, "made", "exec"), vars(module))
    assert [[one(number) for number in (3, 5)] for one in module.ABOVE] == [[False, True], [False, False]]
    mutant = next(mutant for mutant in mutants(source) if mutant.change == "number > bound → number >= bound")
    put_in_place(mutant, module, "made")
    assert [[one(number) for number in (3, 5)] for one in module.ABOVE] == [[True, True], [False, True]]


def test_a_default_acts_though_it_is_not_in_the_code_of_its_function() -> None:
    module = ModuleType("made")
    exec(compile(SOURCE, "made", "exec"), vars(module))
    mutant = next(mutant for mutant in mutants(SOURCE) if str(mutant) == "5: False → True")
    put_in_place(mutant, module, "made")
    assert module.eighth.__defaults__ == (True,)


@pytest.mark.parametrize("module", EQUIVALENT)
def test_every_declared_equivalent_is_a_mutant(module: str) -> None:
    assert any(module in subject.modules for subject in SUBJECTS.values())
    assert figures.stale(module) == []


def test_the_mutants_of_chosen_numbers_are_those_of_all() -> None:
    found = list(changes(SOURCE))
    assert [(mutant.line, mutant.change) for mutant in mutants(SOURCE)] == found
    chosen = [2, 5, len(found) - 1]
    assert [(mutant.line, mutant.change) for mutant in mutants(SOURCE, chosen)] == [found[n] for n in chosen]


def test_a_sample_is_the_same_for_a_seed() -> None:
    subject = SUBJECTS[ARCHITECTURES]
    every = figures.places(subject.modules, None)
    first, second = (figures.places(subject.modules, Draw(40, seed)) for seed in (1, 2))
    assert len(first) == len(second) == 40
    assert first == figures.places(subject.modules, Draw(40, 1)) != second
    assert first.items() <= every.items()
    assert figures.places(subject.modules, Draw(len(every) + 1, 1)) == every


MODULE = """
def part(count: int) -> int:
    if count > 9:
        count = 9
    return count * 3

def endless(count: int) -> int:
    n = 0
    while n < count:
        n += 1
    return n

def never(count: int) -> int:
    return count + 1
"""
TESTS = """
from planted.counting import endless, part

def test_part() -> None:
    assert [part(n) for n in (1, 20)] == [3, 27]

def test_endless() -> None:
    assert endless(7) == 7
"""


def test_the_figures_of_a_small_module(tmp_path: Path) -> None:
    """Killed are wrong results and an endless loop; what no test reaches survives."""
    package = tmp_path / "planted"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "counting.py").write_text(MODULE)
    (tmp_path / "test_counting.py").write_text(TESTS)
    script = (
        "from tests.mutation.runner import Job, run\n"
        "outs = []\n"
        "wanted = lambda path, number, line, change: 'count' in line or change == '1 → 0'\n"
        "run([Job(['planted/counting.py'], outs.append, wanted)], ['test_counting.py'], print)\n"
        "print(outs[0].total, outs[0].killed, outs[0].unreached)\n"
        "print(*sorted(mutant.change for _, mutant in outs[0].survivors), sep='|')"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    *_, counted, survivors = ran.stdout.strip().splitlines()
    assert survivors.split("|") == [
        "1 → 0",
        "1 → 2",
        "9 → 10",
        "9 → 8",
        "count + 1 → count - 1",
        "count > 9 → count >= 9",
    ]
    run = [change for line, change in changes(MODULE) if "count" in MODULE.splitlines()[line - 1]]
    assert counted == f"{len(run) + 1} {len(run) + 1 - 6} 3"


def test_tests_that_fail_without_a_mutant_give_no_figures(tmp_path: Path) -> None:
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "counting.py").write_text(MODULE)
    (tmp_path / "test_counting.py").write_text("import planted.counting\ndef test_no() -> None:\n    assert False\n")
    script = (
        "from tests.mutation.runner import Job, run\n"
        "run([Job(['planted/counting.py'], print)], ['test_counting.py'], print)"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert "test_counting.py::test_no fails without a mutant" in ran.stdout + ran.stderr


def test_the_page_shows_the_figures() -> None:
    assert figures.PAGE.read_text("utf-8") == figures.page(SUBJECTS, figures.read())


def test_the_page_says_what_is_a_sample() -> None:
    subject = SUBJECTS[ARCHITECTURES]
    survivors = (("gguf_tools/targets/gemma.py", "a | b", "1 → 2"),)
    found = Figures(total=40, killed=37, equivalent=2, survivors=survivors, drawn=Draw(40, 7), available=1017)
    shown = figures.page({ARCHITECTURES: subject}, {ARCHITECTURES: found, "gone.py": found})
    assert "| 37 | 38 | 97.4% | 2 |" in shown
    assert "In all 37 of 38 killed (97.4%)." in shown
    assert "a random sample was run: 40 of 1,017 mutants (`--sample 40 --seed 7`)" in shown
    assert "| `gguf_tools/targets/gemma.py` | `a \\| b` | `1 → 2` |" in shown
