"""What mutation testing covers: modules, and groups of modules, with the tests that are held to notice a fault in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Subject:
    """Modules (paths from the repository's root) that are measured together, and their tests as pytest's arguments."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


REWRITES = "gguf_tools/rewrites"
TOKENIZERS = "gguf_tools/tokenizers"
TARGETS = "gguf_tools/targets"
ARCHITECTURES = "targets, one file for each architecture"
_BYTES = "tests/quant/test_bytes.py"
_RECIPES = (
    "tests/quant/test_recipes.py",
    f"{_BYTES}::test_values_of_a_70b_model",
    f"{_BYTES}::test_the_first_layers_of_a_deep_model_with_an_importance_matrix",
)
_REWRITES = ("tests/rewrites", "tests/surgery/test_rewrites.py")
_TARGETS = tuple(
    f"tests/targets/test_{name}.py" for name in ("each_target", "lifting", "lift_checks", "limits", "planner", "bounds")
)
"""Those of tests/targets that need no llama.cpp."""
_OWN: dict[str, tuple[str, ...]] = {
    "quant/rules.py": _RECIPES,
    "quant/recipes.py": (
        "tests/quant/test_recipes.py",
        "tests/quant/test_types.py",
        "--deselect=tests/quant/test_recipes.py::test_every_layer_of_a_model_of_any_depth",  # for the rules
    ),
    "surgery/gguf/positions.py": ("tests/surgery/test_positions.py",),
    "gguf_tools/evaluation/metrics.py": ("tests/evaluation/test_metrics.py",),
    "gguf_tools/evaluation/card/statistics.py": (
        "tests/evaluation/card/test_card_statistics.py",
        "tests/evaluation/comparison/test_compare.py",
    ),
    f"{TOKENIZERS}/byte_level.py": ("tests/tokenizers/test_byte_level.py",),
    f"{TOKENIZERS}/piece_model.py": ("tests/tokenizers/test_piece_fields.py", "tests/tokenizers/test_piece_model.py"),
    f"{TOKENIZERS}/rank_model.py": ("tests/tokenizers/test_rank_model.py",),
    f"{TOKENIZERS}/added_tokens.py": ("tests/tokenizers/test_added_tokens.py",),
    **{
        f"{TOKENIZERS}/{name}.py": (
            "tests/tokenizers/test_byte_level_rules.py",
            "tests/tokenizers/test_added_tokens.py",
        )
        for name in ("backend", "byte_level_bpe", "digits")
    },
    f"{TOKENIZERS}/pretokenizers.py": ("tests/tokenizers/test_pretokenizers.py",),
    f"{TOKENIZERS}/probe.py": ("tests/tokenizers/test_probe.py",),
    f"{TOKENIZERS}/characters.py": ("tests/tokenizers/test_characters.py",),
    f"{TOKENIZERS}/model_name.py": (
        "tests/tokenizers/test_model_name.py",
        *(
            f"--deselect=tests/tokenizers/test_model_name.py::test_{name}"  # commands
            for name in ("convert", "a_load_that_fails", "quantize_and_surgery", "surgery_in_place")
        ),
    ),
    f"{TOKENIZERS}/pickled_encoding.py": (
        "tests/tokenizers/test_pickled_encoding.py",
        "--deselect=tests/tokenizers/test_pickled_encoding.py::test_only_if_the_user_accepts_it",
    ),
    f"{TOKENIZERS}/form.py": ("tests/tokenizers/test_byte_level_rules.py",),
    f"{TOKENIZERS}/files.py": ("tests/tokenizers/test_reading_files.py",),
    f"{TOKENIZERS}/slow.py": ("tests/tokenizers/test_slow_rules.py",),
    f"{TOKENIZERS}/unigram.py": ("tests/tokenizers/test_unigram_rules.py",),
    f"{TOKENIZERS}/vocabulary.py": (
        "tests/tokenizers/test_vocabulary_rules.py",
        "tests/tokenizers/test_unigram_rules.py",
    ),
    f"{TOKENIZERS}/special.py": ("tests/tokenizers/test_special.py",),
    f"{TOKENIZERS}/sentencepiece.py": (
        "tests/tokenizers/test_sentencepiece_rules.py",
        "tests/tokenizers/test_added_tokens.py",
    ),
}
_SHARED = ("base", "lift_checks", "lifting", "limits", "lowering", "names", "planner", "registry")
"""The modules of the targets' package that are not one architecture's."""


def _in_folder(folder: str) -> list[str]:
    """The modules of a package, by name."""
    return sorted(f"{folder}/{path.name}" for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py")


def _subjects() -> dict[str, Subject]:
    """Every module by its path, and the groups by their names. A module joins its package's by existing."""
    tests = dict(_OWN)
    tests |= {module: ("tests/tokenizers",) for module in _in_folder(TOKENIZERS) if module not in tests}
    tests |= dict.fromkeys(_in_folder(REWRITES), _REWRITES)
    shared = [f"{TARGETS}/{name}.py" for name in _SHARED]
    tests |= dict.fromkeys(shared, _TARGETS)
    single = {module: Subject((module,), found) for module, found in tests.items()}
    others = tuple(module for module in _in_folder(TARGETS) if module not in shared)
    return {**single, ARCHITECTURES: Subject(others, _TARGETS)}


SUBJECTS = _subjects()
