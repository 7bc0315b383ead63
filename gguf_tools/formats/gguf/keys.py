"""Every metadata key of tinyq's own: what a file says of where it comes from.

All begin with `tinyq.`; llama.cpp and the other converters leave such keys alone.
"""

from __future__ import annotations

VERSION = "tinyq.version"
"""tinyq's version that wrote the file."""
FAMILY = "tinyq.family"
"""The family that the checkpoint was recognised as."""
AS_FAMILY = "tinyq.as"
"""The family or model_type whose mathematics the user accepted for a model_type that no family declares."""
TARGET = "tinyq.target"
"""The llama.cpp architecture that the planner chose."""
TYPE = "tinyq.type"
"""The type recipe (q4_k_m …), or the size that was asked for."""
NOTES = "tinyq.notes"
"""Array of sentences: where config and tensors disagree, and what was assumed."""

REWRITES = "tinyq.rewrites"
"""Array of the names of the exact rewrites that were applied, in order."""
REWRITES_EXTRA_PARAMETERS = "tinyq.rewrites.extra_parameters"
REWRITES_EXTRA_CACHE = "tinyq.rewrites.extra_cache"

APPROXIMATE = "tinyq.approximate"
"""Array with the name of the approximation, where one was accepted; the four that follow have a value a layer."""
APPROXIMATE_LAYERS = "tinyq.approximate.layers"
APPROXIMATE_AGREEMENT = "tinyq.approximate.routing_agreement"
APPROXIMATE_WEIGHT_ERROR = "tinyq.approximate.weight_error"
APPROXIMATE_SLOPE = "tinyq.approximate.slope"

SOURCE_PATH = "tinyq.source.path"
"""The checkpoint, relative to the file's folder."""
SOURCE_DIGEST = "tinyq.source.digest"
"""SHA-256 of the checkpoint's config and weights."""
SOURCE_RECIPE = "tinyq.source.recipe"
"""The surgery that had made the checkpoint (its tinyq-recipe.toml)."""
TOKENIZER_PATH = "tinyq.tokenizer.path"
"""The tokenizer's folder where it is not the checkpoint's, relative to the file's folder."""

SURGERY = "tinyq.surgery"
"""The layer surgery that was done, as the text of a recipe."""
RESERVE = "tinyq.reserve"
"""Spaces that leave surgery in place room to record what it did."""

SPLIT_ID = "tinyq.split.id"
"""In each part of a split file: SHA-256 of all parts' headers, zeros in place of it, and tensor data; one for the set."""
