"""Opening a LoRA adapter that PEFT saved: its factors by module, and the tensors that it replaces.

PEFT names a tensor `base_model.model.` + the module's path in the model + what it is (`lora_A.weight`, …); the adapter's own name
is not saved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from gguf_tools.errors import CheckpointError, InputError, UnsupportedError
from gguf_tools.formats.digest import FileDigest
from gguf_tools.formats.links import refuse_links_out
from gguf_tools.formats.remote import present
from gguf_tools.formats.safetensors import read_safetensors
from gguf_tools.formats.state_dict import read_state_dict
from gguf_tools.sources.adapters.config import CONFIG, AdapterConfig, read_config
from gguf_tools.sources.hub import Reading, local_source
from gguf_tools.sources.names import WRAPPERS
from gguf_tools.tensors.base import Tensor
from gguf_tools.text import shortened

WEIGHTS, TORCH_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
PART = re.compile(
    r"(?P<module>.+)\.(?P<what>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.default)?(?P<leaf>\.weight|\.bias)?"
)
TOKENS = ".token_adapter.trainable_tokens_delta"
"""How the name of trained rows of an embedding ends; despite the name they are the rows themselves."""
EXPERTS = re.compile(r"(?P<module>.+\.experts)(\.base_layer)*")
"""Names of modules that hold all experts as parameters; there is a `base_layer` for each parameter but the last."""
SAVED = re.compile(r"(\.modules_to_save(\.default)?|\.base_layer)(?=\.)")
"""Components that PEFT adds to the names of tensors that it saves whole."""


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The factors of one module: A and B, the bias of B and DoRA's magnitudes, if there are any.

    A linear module has A of shape (rank, inputs) and B of (outputs, rank). An embedding (`embedding`) has A of shape (rank,
    vocabulary) and B of (hidden, rank).
    """

    a: Tensor
    b: Tensor
    embedding: bool = False
    bias: Tensor | None = None
    magnitude: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An opened adapter. `factors` are by module, `replaced` are tensors by name that stand in place of the base's, and `rows`
    trained rows by the embedding's module; `experts` are factors of the parameters of fused experts, by the module that has
    these. Names are the model's own. `scale` is the user's, 1 by default.
    """

    path: Path
    config: AdapterConfig
    files: tuple[Path, ...]
    factors: Mapping[str, Factors]
    replaced: Mapping[str, Tensor]
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    experts: Mapping[str, tuple[Factors, ...]] = field(default_factory=dict)
    scale: float = 1.0

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) over the names and bytes of its files. Raises CheckpointError if one cannot be read."""
        total = FileDigest()
        for path in self.files:
            total.add(path.name.encode("utf-8", "surrogateescape") + b"\0")
            try:
                total.add_file(path)
            except OSError as error:
                raise CheckpointError(
                    f"{path}: can no longer be read ({error.strerror}); run the command again"
                ) from error
        return total.hexdigest()

    @property
    def text(self) -> str:
        """The adapter as --lora names it."""
        return f"{self.path}" if self.scale == 1.0 else f"{self.path}@{self.scale:g}"


@dataclass(frozen=True)
class GivenAdapter:
    """An adapter as the user named it: its folder, and the factor that its terms are multiplied with."""

    path: Path
    scale: float = 1.0


def parse_adapter(text: str) -> GivenAdapter:
    """The adapter that `--lora` names, DIR[@SCALE] or ORG/NAME[@REVISION][@SCALE] on the hub: a number at the end is SCALE."""
    if not text:
        raise InputError(
            "--lora is empty; expected the folder of an adapter, such as --lora adapter/ or --lora adapter/@0.5"
        )
    path, at, scale = text.rpartition("@")
    if not at or not path or Path(text).exists():
        return GivenAdapter(_place(text))
    try:
        number = float(scale)
    except ValueError:
        return GivenAdapter(_place(text))
    if not abs(number) <= 1e6:
        raise InputError(f"--lora {text}: the scale is {scale}; expected a number such as 0.5")
    return GivenAdapter(_place(path), number)


def _place(text: str) -> Path:
    """The folder of an adapter; one on the hub is downloaded, since it is small."""
    return local_source(text, Reading.WHOLE)


def is_adapter(path: Path) -> bool:
    """Whether the folder holds an adapter of PEFT."""
    return path.is_dir() and (path / CONFIG).exists()


def adapter_files(path: Path) -> tuple[Path, ...]:
    """The files that opening an adapter reads, those that exist."""
    return tuple(file for name in (CONFIG, WEIGHTS, TORCH_WEIGHTS) if present(file := path / name))


def open_adapter(given: GivenAdapter) -> Adapter:
    """Open the adapter in a folder; tensors stay lazy.

    Raises CheckpointError for a missing or broken file and for factors that do not fit together, UnsupportedError for what is
    not LoRA, or a variant or tensor of it that is not supported.
    """
    path = given.path
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "no such folder"
        raise CheckpointError(
            f"{path}: {what}; expected a folder with {CONFIG} and {WEIGHTS}, as PEFT saves an adapter"
        )
    if not (path / CONFIG).exists():
        raise CheckpointError(f"{path}: has no {CONFIG}; expected an adapter that PEFT saved")
    files = [path / CONFIG, *(path / name for name in (WEIGHTS, TORCH_WEIGHTS) if present(path / name))][:2]
    if len(files) < 2:
        raise CheckpointError(f"{path}: has no {WEIGHTS} (or {TORCH_WEIGHTS}); download the file")
    refuse_links_out(path, files)
    config = read_config(path)
    weights = files[1]
    tensors: Mapping[str, Tensor]
    tensors = read_safetensors(weights)[0] if weights.name == WEIGHTS else read_state_dict(weights).tensors
    opened = assigned(path, config, tuple(files), tensors)
    return replace(opened, scale=given.scale)


def assigned(path: Path, config: AdapterConfig, files: tuple[Path, ...], tensors: Mapping[str, Tensor]) -> Adapter:
    """The adapter with its tensors assigned to modules by their names."""
    parts: dict[str, dict[str, Tensor]] = {}
    replaced: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}
    for full, tensor in tensors.items():
        name = ".".join(part for part in full.split(".") if part not in WRAPPERS).removeprefix(PREFIX)
        if match := PART.fullmatch(name):
            module, key = match["module"], match["what"] + (match["leaf"] or ".weight")
            if module.endswith(".base_layer") and not EXPERTS.fullmatch(module):
                raise UnsupportedError(
                    f"{files[1]}: tensor {shortened(full)} is a second parameter of one module (target_parameters), which is not "
                    "supported; merge the adapter with peft (merge_and_unload, then save_pretrained) and convert the result"
                )
            if parts.setdefault(module, {}).setdefault(key, tensor) is not tensor:
                raise CheckpointError(
                    f"{files[1]}: has two tensors {key} of {shortened(module)}; download the file again"
                )
        elif name.endswith(TOKENS):
            rows[name.removesuffix(TOKENS)] = tensor
        elif ".lora_" in name or "lora" in name.rpartition(".")[2]:
            raise UnsupportedError(
                f"{files[1]}: tensor {shortened(full)} is of a variant of LoRA that is not supported; merge the adapter with "
                "peft (merge_and_unload, then save_pretrained) and convert the result"
            )
        else:
            replaced[SAVED.sub("", name)] = tensor
    paired = {module: _factors(files[1], module, found) for module, found in parts.items()}
    factors = {module: found for module, found in paired.items() if not EXPERTS.fullmatch(module)}
    experts: dict[str, tuple[Factors, ...]] = {}
    for module, found in paired.items():
        if match := EXPERTS.fullmatch(module):
            experts[match["module"]] = (*experts.get(match["module"], ()), found)
    if not (paired or replaced or rows):
        raise CheckpointError(f"{files[1]}: holds no tensors; download the file again")
    return Adapter(
        path=path, config=config, files=files, factors=factors, replaced=replaced, rows=rows, experts=experts
    )


def _factors(file: Path, module: str, found: Mapping[str, Tensor]) -> Factors:
    """The factors of one module, whose shapes fit each other. Raises CheckpointError otherwise."""
    embedding = any(key.startswith("lora_embedding") for key in found)
    a, b = (f"lora_embedding_{x}.weight" if embedding else f"lora_{x}.weight" for x in "AB")
    known = {a, b, "lora_magnitude_vector.weight"} | (set() if embedding else {"lora_B.bias"})
    for key in (a, b):
        if key not in found:
            raise CheckpointError(
                f"{file}: {shortened(module)} has no {key.removesuffix('.weight')}; download the file again"
            )
    extra = sorted(set(found) - known)
    if extra:
        raise CheckpointError(
            f"{file}: {shortened(module)} has an unexpected tensor {extra[0]}; download the file again"
        )
    left, right = found[b], found[a]
    if not left.size or not right.size:
        raise CheckpointError(
            f"{file}: the factors of {shortened(module)} are empty, saved from one shard of a distributed run; gather the "
            "parameters before save_pretrained"
        )
    if len(left.shape) != 2 or len(right.shape) != 2:
        raise UnsupportedError(
            f"{file}: {shortened(module)} has factors of shapes {right.shape} and {left.shape} (LoRA on a convolution); expected "
            "matrices; merge the adapter with peft (merge_and_unload, then save_pretrained) and convert the result"
        )
    if left.shape[1] != right.shape[0]:
        raise CheckpointError(
            f"{file}: {shortened(module)} has A of shape {right.shape} and B of shape {left.shape}; expected B to have as many "
            "columns as A has rows; download the file again"
        )
    return Factors(
        a=right,
        b=left,
        embedding=embedding,
        bias=found.get("lora_B.bias"),
        magnitude=found.get("lora_magnitude_vector.weight"),
    )
