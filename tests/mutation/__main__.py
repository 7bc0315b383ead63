"""`python -m tests.mutation [MODULE…]`: plants small faults in modules and says which of them no test notices."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.mutation.runner import run

MODULES: dict[str, tuple[str, ...]] = {
    "quant/rules.py": ("tests/quant/test_recipes.py",),
    "quant/recipes.py": ("tests/quant/test_recipes.py", "tests/quant/test_types.py"),
    "surgery/gguf/positions.py": ("tests/surgery/test_gguf.py", "tests/surgery/test_architectures.py"),
    "gguf_tools/evaluation/metrics.py": ("tests/evaluation/test_metrics.py",),
    "gguf_tools/evaluation/card/statistics.py": ("tests/evaluation/card/test_card_statistics.py",),
    "gguf_tools/tokenizers/sentencepiece.py": ("tests/tokenizers/test_sentencepiece.py",),
}
"""The modules, each with the tests that are held to notice."""


def main(arguments: list[str]) -> None:
    """Run the modules given, each in a process of its own; a table at the end."""
    if len(arguments) == 2 and arguments[0] == "--one":
        one(arguments[1])
        return
    for module in arguments or MODULES:
        subprocess.run([sys.executable, "-m", "tests.mutation", "--one", module], check=True)


def one(module: str) -> None:
    """Run one module here, and print its figures."""
    found = run(Path(module), MODULES[module], lambda line: print(line, flush=True))
    share = found.killed / found.total if found.total else 1.0
    print(
        f"{module}: {found.killed} of {found.total} killed ({share:.1%}), {found.unreached} not reached by any test",
        flush=True,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
