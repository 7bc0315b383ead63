"""Whether the lm-evaluation-harness that is needed is installed."""

from __future__ import annotations

import re
from importlib.util import find_spec

from gguf_tools.errors import InputError

OLDEST = (0, 4, 13)
"""The oldest version whose command line and model class are used."""


def require_harness() -> None:
    """Raise InputError unless an lm-evaluation-harness that is new enough is installed."""
    from importlib.metadata import PackageNotFoundError, version

    needed = ".".join(map(str, OLDEST))
    advice = f"{needed} or later is needed to run its tasks; run `pip install 'lm_eval>={needed}'`"
    if find_spec("lm_eval") is None:
        raise InputError(f"lm-evaluation-harness is not installed; {advice}")
    try:
        found = version("lm_eval")
    except PackageNotFoundError:  # imported from its source folder
        return
    if tuple(int(number) for number in re.findall(r"\d+", found)[: len(OLDEST)]) < OLDEST:
        raise InputError(f"lm-evaluation-harness {found} is too old; {advice}")
