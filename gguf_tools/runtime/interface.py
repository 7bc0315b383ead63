"""What llama.cpp in its process says and takes: types, and the protocol that evaluation needs of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gguf_tools.progress import CountProgress


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What llama.cpp says about a file.

    `bytes` and `n_params` count the tensors (0 with vocab_only); `file_type` is llama.cpp's name for the mix of types;
    ids are None where the vocabulary has no such token; `eog` are all tokens that end a generation; `metadata` has
    every key/value pair but arrays, as text.
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

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data a parameter; 0 where the weights were not loaded."""
        return 8 * self.bytes / self.n_params if self.n_params else 0.0


@dataclass(frozen=True)
class GreedyResult:
    """A greedy continuation: token ids, and each one's lead in logits over the second choice (in the same order)."""

    tokens: tuple[int, ...]
    margins: tuple[float, ...]


@dataclass(frozen=True)
class Speed:
    """Tokens a second, reading a prompt and generating one token after the other (medians of the counted runs)."""

    prompt_tok_s: float
    generate_tok_s: float
    n_prompt: int
    n_generate: int


@dataclass(frozen=True)
class Memory:
    """Bytes of llama.cpp's buffers as it reports them (to 0.01 MiB), with its own defaults, at a context length.

    `cache` counts keys, values and recurrent states, `compute` the scratch and output buffers.
    """

    context: int
    weights: float
    cache: float
    compute: float

    @property
    def total(self) -> float:
        """All buffers together."""
        return self.weights + self.cache + self.compute


Message = Mapping[str, Any]


class RuntimeLike(Protocol):
    """What the suite needs of `runtime.Runtime`."""

    @property
    def info(self) -> ModelInfo:
        """The model's facts."""

    @property
    def context_limit(self) -> int:
        """The most tokens that a sequence may have."""

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids of a text."""

    def detokenize(self, ids: Sequence[int], special: bool = False) -> str:
        """Text of token ids."""

    def render_chat(self, messages: Sequence[Message], **options: Any) -> str:
        """Text of a conversation by the file's own chat template."""

    def iter_logits(self, sequences: Sequence[Sequence[int]]) -> Iterator[npt.NDArray[np.float32]]:
        """Logits at every position of each sequence, (T, n_vocab)."""

    def greedy(
        self,
        prompts: Sequence[Sequence[int]],
        n_tokens: int | Sequence[int],
        stop: frozenset[int] = frozenset(),
        progress: CountProgress | None = None,
    ) -> list[GreedyResult]:
        """The most likely continuations."""
