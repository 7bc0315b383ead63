"""Runs a checkpoint with the transformers library: an oracle that interprets the config independently of tinyq.

Nothing is downloaded and no code of the checkpoint is run: only the installed library's class for the config's model_type,
on local files, with the hub disabled.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gguf_tools.errors import InputError
from gguf_tools.evaluation.float64 import in_float64
from gguf_tools.evaluation.oracle_check import transformers_name
from gguf_tools.formats.remote import bring
from gguf_tools.machine import available_memory
from gguf_tools.sources.adapters.adapter import Adapter
from gguf_tools.sources.checkpoint import CONFIG, Checkpoint
from gguf_tools.text import one_line, shortened

OLDEST = 5
"""The first major version of transformers with the interface used here."""
FLOAT64, FLOAT32 = 1e-18, 1e-9
"""Largest NMSE between two computations of the same model in float64 (1e-24 is usual), and in float32 (1e-13)."""
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tiktoken.model",
    "tekken.json",
)
"""Files of tokenizers; without any of them transformers creates an empty tokenizer for some models."""
SLACK = 1 << 28
"""Bytes of memory reserved for everything except weights."""
MOST_EXTRA = 1 << 22
"""Maximum number of elements in parameters and buffers of a class beyond those in the file."""


def why_not(checkpoint: Checkpoint) -> str | None:
    """Why transformers cannot run this checkpoint, or None if it can be tried."""
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed (pip install 'tinyq[oracle]')"
    if int(importlib.import_module("importlib.metadata").version("transformers").split(".")[0]) < OLDEST:
        return f"{transformers_name()} is too old; expected at least {OLDEST}.0"
    folder, config = checkpoint.folder, checkpoint.config
    kind = config.get("model_type")
    if not checkpoint.path.is_dir() or not (folder / CONFIG).exists():
        return f"transformers reads only folders with {CONFIG}"
    if not isinstance(kind, str):
        return f"{CONFIG} has no model_type, which transformers needs"
    if not _is_causal(kind):
        return f"{transformers_name()} has no decoder for model_type {shortened(kind)!r}"
    if (folder / "adapter_config.json").exists():
        return "the folder has an adapter_config.json, which makes transformers load another model"
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    if any("quantization_config" in part for part in parts):
        return "its weights are quantized (quantization_config)"
    if checkpoint.metadata.get("format") == "mlx":
        return "it was saved by MLX, whose layout transformers would misread"
    if adapters := _adapters(checkpoint):
        if len(adapters) > 1:
            return "several adapters are merged into it"
        if importlib.util.find_spec("peft") is None:
            return "peft, which computes its adapter, is not installed (pip install peft)"
    depth = max([0, *(n for part in parts if isinstance(n := part.get("num_hidden_layers"), int))])
    if depth > len(checkpoint.tensors):
        return f"{CONFIG} states {depth} layers, but there are only {len(checkpoint.tensors)} tensors"
    return None


def parameters_of(checkpoint: Checkpoint) -> int:
    """Number of elements of all tensors in the checkpoint."""
    return sum(prod(tensor.shape) for tensor in checkpoint.tensors.values())


def fits(parameters: int, width: int) -> bool:
    """Whether that many weights of `width` bytes each fit into the available memory; True if that is unknown."""
    left = available_memory()
    return left is None or parameters * width * 1.1 + SLACK < left


class TransformersModel:
    """The checkpoint loaded into its transformers class, in float64 if memory allows, else in float32; stateless when run.

    Raises InputError if transformers cannot run it (see `why_not`), if its class has other tensors than the file, if it does
    not fit into memory, or if transformers fails.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Load the checkpoint with eager attention and experts; errors as for the class."""
        self.path = checkpoint.path
        if reason := why_not(checkpoint):
            raise InputError(f"{self.path}: {reason}")
        self.name = transformers_name()
        count = parameters_of(checkpoint)
        if not fits(count, 4):
            raise InputError(f"{self.path}: {count:,} weights in float32 do not fit into the available memory")
        bring(checkpoint.weight_files)
        self.dtype = torch.float64 if fits(count, 8) else torch.float32
        self.notes: tuple[str, ...] = ()
        self.rounded: set[str] = set()
        self._adapted = bool(_adapters(checkpoint))
        if "auto_map" in checkpoint.config:
            self.notes += (
                f"{CONFIG} names the checkpoint's own code (auto_map), which is not run; transformers' class is used",
            )
        with self._running(), _arithmetic(self.dtype):
            library = importlib.import_module("transformers")
            self._check_size(library, count)
            model, info = library.AutoModelForCausalLM.from_pretrained(
                self.path.resolve(),
                local_files_only=True,
                trust_remote_code=False,
                weights_only=True,
                attn_implementation="eager",
                experts_implementation="eager",
                dtype=self.dtype,
                output_loading_info=True,
            )
            self._model = model
            self._check_loading(info)
            for adapter in _adapters(checkpoint):
                self._model = _with_adapter(model, adapter)
                self.name += f" with peft {importlib.import_module('importlib.metadata').version('peft')}"
            self._model = self._model.to(self.dtype).eval()

    @property
    def bound(self) -> float:
        """The largest NMSE that rounding in `dtype`, and that of merged weights to float32, explains."""
        return FLOAT64 if self.dtype == torch.float64 and not self.rounded and not self._adapted else FLOAT32

    @property
    def arithmetic(self) -> str:
        """The arithmetic in words."""
        if self.dtype == torch.float64 and self.rounded:
            return "float64, with float32 in some operations"
        return str(self.dtype).removeprefix("torch.")

    @property
    def vocab_size(self) -> int:
        """Number of logits per position."""
        return int(self._model.get_output_embeddings().weight.shape[0])

    def setting(self, key: str) -> Any:
        """The value of a config key in the class; None if the class has no such key."""
        return getattr(self._model.config.get_text_config(decoder=True), key, None)

    def logits(self, sequences: Sequence[Sequence[int]]) -> list[NDArray[np.floating[Any]]]:
        """Logits of every position of each sequence, as arrays of shape (length, vocabulary)."""
        found = []
        for sequence in sequences:
            with self._running(), torch.inference_mode(), _arithmetic(self.dtype) as mode:
                tokens = torch.tensor([list(sequence)])
                logits = self._model(input_ids=tokens, use_cache=False).logits[0].to(self.dtype)
            self.rounded |= mode.rounded if mode else set()
            found.append(logits.numpy())
        return found

    def _check_size(self, library: Any, count: int) -> None:
        """Before allocation, refuse a config whose class has many more parameters than the file (`MOST_EXTRA`)."""
        config = library.AutoConfig.from_pretrained(self.path.resolve(), local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            empty = library.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        needed = sum(tensor.numel() for part in (empty.parameters(), empty.buffers()) for tensor in part)
        if needed > 2 * count + MOST_EXTRA:
            raise InputError(
                f"{self.path}: the class that {CONFIG} names has {needed:,} weights, but the file has {count:,}; "
                f"check {CONFIG}"
            )

    def _check_loading(self, info: Mapping[str, Any]) -> None:
        """Refuse tensors that transformers would initialise or ignore; missing biases are set to zero instead."""
        own = dict(self._model.named_parameters())
        missing = sorted(map(str, info["missing_keys"]))
        zero = [name for name in missing if name.endswith("bias") and name in own and not own[name].any()]
        problems = {
            "lacks": [name for name in missing if name not in zero],
            "does not use": sorted(map(str, info["unexpected_keys"])),
            "expects another shape for": sorted(str(key[0]) for key in info.get("mismatched_keys", ())),
        }
        kind = type(self._model).__name__
        for what, names in problems.items():
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                subject = f"the file lacks {names[0]}{more}, which transformers' {kind} has"
                if what != "lacks":
                    subject = f"transformers' {kind} {what} {names[0]}{more} of the file"
                raise InputError(f"{self.path}: {subject}, so it does not compute this model")
        if zero:
            self.notes += (f"transformers' {kind} has {len(zero)} biases that the file lacks; they are set to zero",)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """A context for transformers' code: without log output or hub, and with errors as one-line InputErrors."""
        with _without_hub(), warnings.catch_warnings(), _silent():
            warnings.simplefilter("ignore")
            try:
                yield
            except InputError:
                raise
            except Exception as error:
                text = shortened(one_line(str(error)), 200)
                raise InputError(f"{self.path}: {self.name} cannot run it ({type(error).__name__}: {text})") from error


def _adapters(checkpoint: Checkpoint) -> tuple[Adapter, ...]:
    return (*checkpoint.merged, *checkpoint.adapters)


def _with_adapter(model: Any, adapter: Adapter) -> Any:
    """PEFT's model of the adapter, which is applied beside the base's weights and not merged into them."""
    peft = importlib.import_module("peft")
    made = peft.PeftModel.from_pretrained(model, str(adapter.path.resolve()), autocast_adapter_dtype=False)
    if adapter.scale != 1.0:
        for module in made.modules():
            if hasattr(module, "scale_layer"):
                module.scale_layer(adapter.scale)
    return made


def transformers_encoder(checkpoint: Checkpoint) -> Callable[[str, bool], Sequence[int]]:
    """The checkpoint's tokenizer loaded by transformers: (text, whether to add special tokens) → ids.

    Raises InputError if the folder has no tokenizer or transformers cannot read it.
    """
    if not any((checkpoint.folder / name).exists() for name in TOKENIZERS):
        raise InputError(f"{checkpoint.folder}: has no tokenizer files")
    try:
        with _without_hub(), _silent():
            library = importlib.import_module("transformers")
            tokenizer = library.AutoTokenizer.from_pretrained(
                checkpoint.folder.resolve(), local_files_only=True, trust_remote_code=False
            )
            tokenizer.encode("a")
    except Exception as error:
        text = shortened(one_line(str(error)), 160)
        raise InputError(f"{checkpoint.folder}: transformers cannot read the tokenizer ({text})") from error
    return lambda text, add_special: list(tokenizer.encode(text, add_special_tokens=add_special))


def _is_causal(kind: str) -> bool:
    with _without_hub():
        auto = importlib.import_module("transformers.models.auto.modeling_auto")
        configs = importlib.import_module("transformers.models.auto.configuration_auto")
    return kind in configs.CONFIG_MAPPING_NAMES and kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


@contextmanager
def _arithmetic(dtype: torch.dtype) -> Iterator[Any]:
    if dtype == torch.float64:
        with in_float64() as mode:
            yield mode
    else:
        yield None


@contextmanager
def _without_hub() -> Iterator[None]:
    """A context without requests to the hub and without kernels from it, which are not the library's code."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    offline, kernels = constants.HF_HUB_OFFLINE, os.environ.get("USE_HUB_KERNELS")
    constants.HF_HUB_OFFLINE = True
    os.environ["USE_HUB_KERNELS"] = "NO"  # transformers reads it when it is imported
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        if kernels is None:
            del os.environ["USE_HUB_KERNELS"]
        else:
            os.environ["USE_HUB_KERNELS"] = kernels


@contextmanager
def _silent() -> Iterator[None]:
    """A context without transformers' log and progress bars; restores their settings."""
    logs = importlib.import_module("transformers.utils.logging")
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity(logs.CRITICAL)
    logs.disable_progress_bar()
    with contextlib.ExitStack() as stack:
        stack.callback(logs.set_verbosity, level)
        stack.callback(logs.enable_progress_bar if bars else logs.disable_progress_bar)
        yield
