"""The one setting that pyproject.toml cannot hold: the environment variable TINYQ_PURE, which says what becomes of the C kernels.

Unset, they are built where a C compiler does it. `1` leaves them out, for a wheel that every platform can install, in which ggml
encodes. `0` demands them, for wheels that are given to others: a compiler that fails then ends the build.
"""

from __future__ import annotations

import os
from typing import Any

import setuptools

SETTING = "TINYQ_PURE"


class Distribution(setuptools.Distribution):
    """tinyq's distribution, its extension modules as the setting says."""

    def parse_config_files(self, *args: Any, **options: Any) -> None:
        """Read pyproject.toml, then leave out or demand the kernels."""
        super().parse_config_files(*args, **options)
        wanted = os.environ.get(SETTING, "")
        if wanted not in ("", "0", "1"):
            raise SystemExit(
                f"{SETTING} is {wanted!r}; expected 1 (without the C kernels), 0 (never without them) or nothing"
            )
        if wanted == "1":
            self.ext_modules = []
        for extension in self.ext_modules or ():
            extension.optional = extension.optional and not wanted


setuptools.setup(distclass=Distribution)
