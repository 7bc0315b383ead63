"""adapter_config.json of PEFT: read in full, so that nothing that changes the weights is missed.

Source: `LoraConfig` (`peft/tuners/lora/config.py`) of peft 0.21. A key that is not known here is accepted only with a value that
says nothing (null, false, an empty list …).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, TypeVar

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.formats.text_file import Kind, is_finite, parse_json, read_text
from gguf_tools.text import shortened

N = TypeVar("N", int, float)
CONFIG = "adapter_config.json"
METHODS = {
    "LOHA": "LoHa",
    "LOKR": "LoKr",
    "IA3": "IA3",
    "ADALORA": "AdaLoRA",
    "OFT": "OFT",
    "BOFT": "BOFT",
    "PROMPT_TUNING": "prompt tuning",
    "MULTITASK_PROMPT_TUNING": "prompt tuning",
    "P_TUNING": "p-tuning",
    "PREFIX_TUNING": "prefix tuning",
    "ADAPTION_PROMPT": "an adaption prompt",
    "VERA": "VeRA",
    "LN_TUNING": "layer norm tuning",
    "TRAINABLE_TOKENS": "trainable tokens alone",
}
"""PEFT's names for other methods, in words."""
WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "modules_to_save",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "target_parameters",  # the tensors say which parameters they belong to, or are refused by name
        "task_type",
    }
)
"""Keys that concern training, or that say again what the tensors show."""
READ = frozenset(
    {
        "alpha_pattern",
        "base_model_name_or_path",
        "bias",  # trained biases are saved under their own names
        "ensure_weight_tying",
        "fan_in_fan_out",
        "init_lora_weights",
        "lora_alpha",
        "lora_bias",
        "peft_type",
        "r",
        "rank_pattern",
        "trainable_token_indices",
        "use_dora",
        "use_rslora",
    }
)
REFUSED = {
    "alora_invocation_tokens": "Activated LoRA, which applies only after certain tokens",
    "arrow_config": "Arrow, which routes between several adapters",
    "invocation_string": "Activated LoRA, which applies only after certain tokens",
    "kasa_config": "KaSA",
    "layer_replication": "replicated layers; repeat the layers with `tinyq surgery` first",
    "megatron_config": "Megatron's parallel layers",
    "monteclora_config": "MonteCLoRA",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "quantization-aware LoRA (QALoRA)",
    "velora_config": "VeLoRA",
}
"""Keys → what their use is called."""
HARMLESS_INITS = ("gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base's weights as they are; others subtract the initial adapter from them."""
PATTERN = re.compile(r"(?:[\w.^$|()\[\]\-]|\\[.dw]|[.\]][*+]|\\[dw][*+])+")
"""The regular expressions that are run: without nested repetition, which could take exponential time."""
MOST_PATTERN, MOST_REPEATS = 200, 2


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What adapter_config.json says of the weights. `ranks` and `alphas` map patterns of module names to values.

    `tokens` are the ids whose rows were trained, by the name of the embedding's module ("" if none is named).
    """

    path: Path
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rslora: bool
    dora: bool
    transposed: bool
    tied: bool
    base: str
    tokens: Mapping[str, tuple[int, ...]]

    def rank_of(self, module: str) -> int:
        """The rank of a module's factors (`get_pattern_key` of `peft/utils/other.py`)."""
        return _matching(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """What the product of a module's factors is multiplied with: alpha / rank, or alpha / √rank with rsLoRA."""
        rank = self.rank_of(module)
        return _matching(self.alphas, module, self.alpha) / (sqrt(rank) if self.rslora else rank)


def _matching(patterns: Mapping[str, N], module: str, default: N) -> N:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def read_config(folder: Path) -> AdapterConfig:
    """The config of the adapter in a folder.

    Raises CheckpointError for a broken file or value, UnsupportedError for another method than LoRA, a variant of it that is
    not supported, and an unknown key that may mean something.
    """
    path = folder / CONFIG
    values = parse_json(read_text(path, Kind.CONFIG), path)
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{path}: holds a JSON {type(values).__name__}; expected an object; download the file again"
        )
    reader = _Reader(path, values)
    reader.check_keys()
    return AdapterConfig(
        path=path,
        rank=reader.positive("r", values.get("r", 8)),
        alpha=reader.number("lora_alpha", values.get("lora_alpha", 8)),
        ranks={key: reader.positive(f"rank_pattern.{key}", n) for key, n in reader.patterns("rank_pattern").items()},
        alphas={key: reader.number(f"alpha_pattern.{key}", n) for key, n in reader.patterns("alpha_pattern").items()},
        rslora=reader.flag("use_rslora"),
        dora=reader.flag("use_dora"),
        transposed=reader.flag("fan_in_fan_out"),
        tied=reader.flag("ensure_weight_tying"),
        base=str(values.get("base_model_name_or_path") or ""),
        tokens=reader.tokens(),
    )


@dataclass(frozen=True)
class _Reader:
    path: Path
    values: Mapping[str, Any]

    def check_keys(self) -> None:
        """Raise UnsupportedError for what is not LoRA, or a variant that is not supported."""
        kind = self.values.get("peft_type")
        if kind != "LORA":
            named = METHODS.get(kind, shortened(repr(kind))) if isinstance(kind, str) else shortened(repr(kind))
            raise UnsupportedError(
                f"{self.path}: peft_type is {named}, which is not supported; expected LORA; merge it with peft "
                "(merge_and_unload, then save_pretrained) and convert the result"
            )
        for key, value in self.values.items():
            if key in READ or key in WITHOUT_EFFECT or not value:
                continue
            what = REFUSED.get(key, "a setting that tinyq does not know, which may change the weights")
            raise UnsupportedError(
                f"{self.path}: {shortened(key)} is {shortened(repr(value), 40)} ({what}), which is not supported; merge the "
                "adapter with peft (merge_and_unload, then save_pretrained) and convert the result"
            )
        start = self.values.get("init_lora_weights", True)
        if isinstance(start, str) and start not in (*HARMLESS_INITS, "true", "false"):
            raise UnsupportedError(
                f"{self.path}: init_lora_weights is {shortened(repr(start))}, which changes the base's weights too; save the "
                "adapter as plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)"
            )

    def flag(self, key: str) -> bool:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._broken(key, value, "true or false")
        return bool(value)

    def number(self, key: str, value: object) -> float:
        if not is_finite(value):
            raise self._broken(key, value, "a number")
        return float(value)

    def positive(self, key: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._broken(key, value, "an integer of at least 1")
        return value

    def patterns(self, key: str) -> Mapping[str, Any]:
        """A mapping from patterns of module names, each of which is a regular expression that is safe to run."""
        value = self.values.get(key) or {}
        if not isinstance(value, dict):
            raise self._broken(key, value, "an object")
        for pattern in value:
            simple = len(pattern) <= MOST_PATTERN and len(re.findall(r"[*+]", pattern)) <= MOST_REPEATS
            try:
                good = simple and PATTERN.fullmatch(pattern) is not None and re.compile(pattern) is not None
            except (re.error, OverflowError, RecursionError):
                good = False
            if not good:
                raise UnsupportedError(
                    f"{self.path}: {key} has the pattern {shortened(repr(pattern))}; expected the name of a module, or a simple "
                    "regular expression without nested repetition"
                )
        return value

    def tokens(self) -> Mapping[str, tuple[int, ...]]:
        key = "trainable_token_indices"
        value = self.values.get(key)
        if not value:
            return {}
        lists = value if isinstance(value, dict) else {"": value}
        for ids in lists.values():
            if not isinstance(ids, list) or not all(type(n) is int and 0 <= n < 1 << 31 for n in ids):
                raise self._broken(key, value, "token ids, or an object with a list of them for each embedding")
        return {str(name): tuple(ids) for name, ids in lists.items()}

    def _broken(self, key: str, value: object, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: {shortened(key)} is {shortened(repr(value))}; expected {expected}; download the file again"
        )
