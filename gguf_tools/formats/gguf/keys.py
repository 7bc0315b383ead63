"""tinyq's own metadata keys, which record a file's provenance.

All begin with `tinyq.`; llama.cpp and other converters ignore such keys.
"""

from __future__ import annotations

VERSION = "tinyq.version"
"""The version of tinyq that wrote the file."""
FAMILY = "tinyq.family"
"""The family that the checkpoint was recognised as."""
AS_FAMILY = "tinyq.as"
"""The family or model_type whose mathematics the user accepted for a model_type that no family declares."""
DESCRIPTION = "tinyq.description"
"""The text of the description that the checkpoint was read by, if no family knows it."""
TARGET = "tinyq.target"
"""The llama.cpp architecture of the file."""
TYPE = "tinyq.type"
"""The type recipe (such as q4_k_m), or the requested size."""
NOTES = "tinyq.notes"
"""Array of strings: where config and tensors disagree, and what was assumed."""

REWRITES = "tinyq.rewrites"
"""Array of the names of the exact rewrites applied, in order."""
REWRITES_EXTRA_PARAMETERS = "tinyq.rewrites.extra_parameters"
REWRITES_EXTRA_CACHE = "tinyq.rewrites.extra_cache"

APPROXIMATE = "tinyq.approximate"
"""Array with the name of the accepted approximation, if any. The four keys below are arrays with one value per layer."""
APPROXIMATE_LAYERS = "tinyq.approximate.layers"
APPROXIMATE_AGREEMENT = "tinyq.approximate.routing_agreement"
APPROXIMATE_WEIGHT_ERROR = "tinyq.approximate.weight_error"
APPROXIMATE_SLOPE = "tinyq.approximate.slope"

SOURCE_PATH = "tinyq.source.path"
"""The checkpoint's path, relative to the file's folder."""
SOURCE_DIGEST = "tinyq.source.digest"
"""SHA-256 of the checkpoint's config and weights."""
SOURCE_RECIPE = "tinyq.source.recipe"
"""The surgery recipe that produced the checkpoint (its tinyq-recipe.toml)."""
TOKENIZER_PATH = "tinyq.tokenizer.path"
"""The tokenizer's folder relative to the file's folder, if it is not the checkpoint's."""
TOKENIZER_APPROXIMATE = "tinyq.tokenizer.approximate"
"""What of the tokenizer is approximated, if the user accepted that."""

SURGERY = "tinyq.surgery"
"""The layer surgery applied to this file, as recipe text."""
SURGERY_SOURCES = "tinyq.surgery.sources"
"""Array of the names that the recipe calls other models by, and "" for the model itself where no checkpoint is recorded."""
SURGERY_PATHS = "tinyq.surgery.sources.paths"
"""The path of each of them, relative to the file's folder."""
SURGERY_DIGESTS = "tinyq.surgery.sources.digests"
"""SHA-256 of each: of a checkpoint's config and weights, or of a GGUF's parts."""
RESERVE = "tinyq.reserve"
"""Spaces reserved so that in-place surgery can record what it did."""

SPLIT_ID = "tinyq.split.id"
"""The same in each shard of a split model: SHA-256 of all shards' headers (with zeros for this value) and tensor data."""
