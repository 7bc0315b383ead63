"""Family × variant × type: every family of this package, found by its existing."""

from __future__ import annotations

from gguf_tools.evaluation.conformance import FamilyTests
from gguf_tools.families.registry import own_families


class TestFamilies(FamilyTests):
    families = own_families()
