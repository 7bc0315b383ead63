"""The modules that mutation testing covers, each with the tests that are held to notice a fault in it."""

from __future__ import annotations

MODULES: dict[str, tuple[str, ...]] = {
    "quant/rules.py": ("tests/quant/test_recipes.py",),
    "quant/recipes.py": ("tests/quant/test_recipes.py", "tests/quant/test_types.py"),
    "surgery/gguf/positions.py": ("tests/surgery/test_positions.py",),
    "gguf_tools/evaluation/metrics.py": ("tests/evaluation/test_metrics.py",),
    "gguf_tools/evaluation/card/statistics.py": ("tests/evaluation/card/test_card_statistics.py",),
    "gguf_tools/rewrites/activations.py": ("tests/rewrites/test_activations.py",),
    "gguf_tools/rewrites/delta.py": ("tests/rewrites/test_delta.py",),
    "gguf_tools/rewrites/gates.py": ("tests/rewrites/test_gates.py",),
    "gguf_tools/rewrites/heads.py": ("tests/rewrites/test_heads.py", "tests/rewrites/test_field_rewrites.py"),
    "gguf_tools/rewrites/scales.py": ("tests/rewrites/test_field_rewrites.py",),
    "gguf_tools/tokenizers/byte_level.py": ("tests/tokenizers/test_byte_level.py",),
    "gguf_tools/tokenizers/piece_model.py": (
        "tests/tokenizers/test_piece_fields.py",
        "tests/tokenizers/test_piece_model.py",
    ),
    "gguf_tools/tokenizers/rank_model.py": ("tests/tokenizers/test_rank_model.py",),
    "gguf_tools/tokenizers/sentencepiece.py": ("tests/tokenizers/test_sentencepiece.py",),
    "gguf_tools/tokenizers/vocabulary.py": ("tests/tokenizers/test_vocabulary.py",),
}
