"""Result types of the llama.cpp process, and the protocol that evaluation requires of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gguf_tools.errors import InputError
from gguf_tools.progress import CountProgress


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model's properties as llama.cpp reports them.

    `bytes` and `n_params` count tensor data and parameters (0 with vocab_only); `context_train` is the training context in
    tokens; `file_type` is llama.cpp's name for the type recipe; token ids are None if the vocabulary has no such token; `eog`
    are all end-of-generation tokens; `metadata` has every key except arrays, values as strings; `batch` is
    the number of tokens that are computed at once; `build` is the version of llama.cpp, with ggml's and its commit.
    """

    arch: str
    description: str
    n_vocab: int
    n_layer: int
    n_params: int
    bytes: int
    context_train: int
    file_type: str
    chat_template: str | None
    bos: int | None
    eos: int | None
    eot: int | None
    add_bos: bool
    eog: frozenset[int]
    metadata: Mapping[str, str]
    batch: int = 512
    build: str = ""

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data per parameter; 0 if the weights were not loaded."""
        return 8 * self.bytes / self.n_params if self.n_params else 0.0


@dataclass(frozen=True)
class Node:
    """A tensor of llama.cpp's graph: its name, shape (numpy order), whether it is float32, and the places of what it is
    computed from in the order of computation (weights and inputs left out)."""

    name: str
    shape: tuple[int, ...]
    floating: bool
    sources: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Intermediate:
    """A tensor of llama.cpp's graph as it was computed for one batch of tokens.

    `name` is without the layer (None outside the layers); `occurrence` counts the tensors of the same name and operation `op`
    in the graph, from 0. `values` are in numpy order, (ne[3], ne[2], ne[1], ne[0]), ids as floats.
    """

    name: str
    layer: int | None
    op: str
    occurrence: int
    batch: int
    values: npt.NDArray[np.float32]


@dataclass(frozen=True)
class GreedyResult:
    """A greedy continuation: token ids, and for each the difference of the two largest logits (margin)."""

    tokens: tuple[int, ...]
    margins: tuple[float, ...]


@dataclass(frozen=True)
class LogLikelihood:
    """The log-probability of a continuation in nats, and whether greedy decoding would give it."""

    value: float
    greedy: bool


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen: the largest logit at a temperature of 0, else drawn as llama.cpp's samplers do it.

    In this order: the `top_k` most likely tokens (0: all), of these the fewest with at least `top_p` of the probability, of these
    those with at least `min_p` of the largest probability, drawn at `temperature` with `seed`.
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise InputError, naming the option, for a value out of range."""
        for name, most in (("temperature", 100.0), ("top_p", 1.0), ("min_p", 1.0)):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise InputError(f"{name.replace('_', '-')} is {value}; expected a number from 0 to {most:g}")
        for name, most in (("top_k", 1 << 30), ("seed", (1 << 32) - 2)):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= most:
                raise InputError(f"{name.replace('_', '-')} is {value}; expected a whole number from 0 to {most}")


@dataclass(frozen=True)
class Speed:
    """Tokens per second when reading a prompt of `n_prompt` tokens and when generating `n_generate` one by one (medians)."""

    prompt_tok_s: float
    generate_tok_s: float
    n_prompt: int
    n_generate: int


@dataclass(frozen=True)
class Memory:
    """Bytes of llama.cpp's buffers as its log reports them (to 0.01 MiB), for its default settings and `context` tokens.

    `cache` counts keys, values and recurrent states; `compute` the compute and output buffers.
    """

    context: int
    weights: float
    cache: float
    compute: float

    @property
    def total(self) -> float:
        """Bytes of all buffers."""
        return self.weights + self.cache + self.compute


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """What each layer, and each expert, does to the residual stream, as means over the tokens of a text.

    `update_norm` is ‖out - in‖ / ‖in‖ and `influence` 1 minus the cosine of in and out (block influence, Men et al. 2024),
    a value a layer. `saliency` is ‖router weight · output‖ by layer and expert, over the `routed` tokens that were sent to it
    (REAP, Lasby et al. 2025), 0 for an expert that got none.
    """

    update_norm: tuple[float, ...]
    influence: tuple[float, ...]
    saliency: Mapping[int, tuple[float, ...]]
    routed: Mapping[int, tuple[int, ...]]


Message = Mapping[str, Any]


class RuntimeLike(Protocol):
    """The methods of `process.Runtime` that evaluation uses."""

    @property
    def info(self) -> ModelInfo:
        """The model's properties."""

    @property
    def context_limit(self) -> int:
        """Most tokens of a sequence."""

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids of a text."""

    def detokenize(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of token ids."""

    def render_chat(self, messages: Sequence[Message], **options: Any) -> str:
        """The text of a conversation, rendered by the file's own chat template."""

    def iter_logits(self, sequences: Sequence[Sequence[int]]) -> Iterator[npt.NDArray[np.float32]]:
        """For each sequence, its logits at every position, (T, n_vocab) float32."""

    def greedy(
        self,
        prompts: Sequence[Sequence[int]],
        n_tokens: int | Sequence[int],
        stop: frozenset[int] = frozenset(),
        progress: CountProgress | None = None,
    ) -> list[GreedyResult]:
        """The greedy continuation of each prompt."""

    def log_likelihoods(
        self, requests: Sequence[tuple[Sequence[int], Sequence[int]]], progress: CountProgress | None = None
    ) -> list[LogLikelihood]:
        """The log-likelihood of each continuation after its context."""


class BlockRuntime(RuntimeLike, Protocol):
    """A runtime that also reads a sequence block by block."""

    def block_size(self, sequence: Sequence[int]) -> int:
        """Tokens of a block of `iter_blocks`."""

    def iter_blocks(self, sequence: Sequence[int]) -> Iterator[npt.NDArray[np.float32]]:
        """One sequence's logits, `block_size` positions at a time."""
