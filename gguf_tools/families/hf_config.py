"""Reads config.json in the way of the transformers class that its model_type names."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from gguf_tools.errors import CheckpointError
from gguf_tools.families.hf_classes import CLASSES, QUIET, ClassRules, Windows
from gguf_tools.families.reading import Config
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.text import shortened

AT_ITS_WORD = ClassRules(partial=True)
"""Rules without defaults: every value that the config states is used."""


class ClassConfig(Config):
    """A config with the defaults of its transformers class; a note records each default that is used.

    `types` are the family's values of model_type. The rules for any other model_type, or for none, are `bare`.
    """

    def __init__(self, checkpoint: Checkpoint, types: Collection[str] = (), bare: ClassRules = AT_ITS_WORD) -> None:
        super().__init__(checkpoint)
        stated = self.values.get("model_type")
        self.kind = stated if isinstance(stated, str) and stated in types else None
        self.rules = CLASSES[self._class_name()] if self.kind else bare
        self.replaced = checkpoint.replaced
        if stated is not None and self.kind is None and types:
            self.note(
                f"config.json says model_type {shortened(repr(stated))}; the model is converted as the family that its "
                "tensors match"
            )

    def _class_name(self) -> str:
        """The model_type whose rules apply: transformers' AutoConfig reads a mistral with layer_types as a ministral."""
        return "ministral" if self.kind == "mistral" and "layer_types" in self.values else str(self.kind)

    def number(self, key: str, default: float | None = None) -> float:
        """As in Config, with the class's default for an absent key."""
        self.fill(key)
        return super().number(key, default)

    def integer(self, key: str, default: int | None = None) -> int:
        """As in Config, with the class's default for an absent key."""
        self.fill(key)
        return super().integer(key, default)

    def flag(self, key: str, default: bool) -> bool:
        """As in Config, with the class's default for an absent key."""
        self.fill(key)
        return super().flag(key, default)

    def fill(self, key: str) -> None:
        """Use the class's default for `key` if it is absent, and note it."""
        if key not in self.values and key in self.rules.defaults:
            value = self.rules.defaults[key]
            self.values = {**self.values, key: value}
            if key not in QUIET and value is not None:
                self.assumed(key, value)

    def assumed(self, key: str, value: Any) -> None:
        """Note that `key` is absent, and the value used for it."""
        self.note(f"config.json does not give {key}: {value} is assumed, as transformers does for {self.kind}")

    def unheeded(self, key: str, value: Any) -> None:
        """Note that the class ignores `key`, which the config states."""
        self.note(f"config.json says {key} {shortened(repr(value))}, which transformers ignores for {self.kind}")

    def trained_context(self) -> int:
        """max_position_embeddings in tokens as the file states it, without the user's override: YaRN depends on it."""
        key = "max_position_embeddings"
        value = self.replaced.get(key)
        if value is None:
            return int(self.rules.defaults.get(key, 0)) if key in self.replaced and self.kind else self.integer(key)
        if type(value) is not int or value < 1:
            raise self.wrong(key, value, "a whole number above 0")
        return value

    def head_dim(self, wide: int, keys: int, hidden: int) -> int:
        """The head dimension, if no q_norm shows it: `wide` is heads * head_dim, `keys` is kv_heads * head_dim.

        It is head_dim from the config, or else the class's default, if num_attention_heads times it equals `wide`. If the
        config has no head_dim, `wide` / num_attention_heads comes next. Raises CheckpointError if neither fits.
        """
        heads = self.integer("num_attention_heads")
        stated = self.values.get("head_dim")
        if stated is not None:
            size = self.integer("head_dim")
        else:
            default = self.rules.defaults.get("head_dim") if "head_dim" not in self.values else None
            size = default or hidden // heads
        kv_heads = self.values.get("num_key_value_heads")
        if heads * size == wide:
            return size
        size, rest = divmod(wide, heads)
        if stated is None and not rest and keys % size == 0 and kv_heads in (None, keys // size):
            self.note(
                f"config.json does not give head_dim: {size} follows from the tensors and num_attention_heads {heads}"
            )
            return size
        raise CheckpointError(
            f"{self.path}: num_attention_heads {heads} and head_dim {'(missing)' if stated is None else stated} do not fit the "
            f"tensors, which have {wide} query rows and {keys} key rows; set head_dim to the value used in training"
        )

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer in tokens; None for full attention. Raises CheckpointError for unusable values."""
        windows = self.rules.windows
        if windows is None:
            if self.kind and self.values.get("sliding_window") is not None:
                self.unheeded("sliding_window", self.values["sliding_window"])
            return None
        if windows.switch and not self.flag("use_sliding_window", False):
            self._refuse_window_of(layer, "use_sliding_window is false")
            return None
        self.fill("sliding_window")
        value = self.values.get("sliding_window")
        if value is None or (value == 0 and windows.zero_is_none):
            self._refuse_window_of(layer, f"sliding_window is {value}")
            return None
        size = self.integer("sliding_window")
        if self.kind:
            self._note_unheeded(windows)
        return size if self._limited(layer) else None

    def _refuse_window_of(self, layer: int, why: str) -> None:
        """Raise CheckpointError if layer_types gives `layer` a sliding window although the config states no window size."""
        kinds = self.values.get("layer_types")
        windows = self.rules.windows
        if (
            self.kind
            and windows
            and windows.listed
            and isinstance(kinds, list)
            and "sliding_attention" in kinds[layer:][:1]
        ):
            raise CheckpointError(
                f"{self.path}: layer_types[{layer}] is sliding_attention, but {why}; correct one of the two"
            )

    def _note_unheeded(self, windows: Windows) -> None:
        """Note the keys that this class ignores, but with which other classes would turn the window off."""
        if not windows.switch and self.values.get("use_sliding_window") is False:
            self.unheeded("use_sliding_window", False)
        kinds = self.values.get("layer_types")
        if not windows.listed and isinstance(kinds, list) and "full_attention" in kinds:
            self.unheeded("layer_types", kinds)

    def _limited(self, layer: int) -> bool:
        """Whether `layer` has the sliding window: by layer_types if present, else by the class's own rule."""
        windows = self.rules.windows
        kinds = self.values.get("layer_types")
        if windows is None or not windows.listed:
            return True
        if kinds is None:
            return windows.limited(layer, self._max_window_layers())
        if not isinstance(kinds, list) or layer >= len(kinds):
            raise self.wrong("layer_types", kinds, "a list with an entry for each layer")
        if kinds[layer] not in ("full_attention", "sliding_attention"):
            raise self.wrong(f"layer_types[{layer}]", kinds[layer], "full_attention or sliding_attention")
        return bool(kinds[layer] == "sliding_attention")

    def _max_window_layers(self) -> int:
        self.fill("max_window_layers")
        if "max_window_layers" not in self.rules.defaults:
            return 0  # the rule of such a class does not use it
        first = self.values.get("max_window_layers")
        if type(first) is not int or first < 0:
            raise self.wrong("max_window_layers", first, "a whole number from 0")
        return first
