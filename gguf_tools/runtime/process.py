"""Running llama.cpp in a child process (`child.py`), because its assertions abort the process that opens a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gguf_tools.errors import InputError, LlamaError
from gguf_tools.formats.gguf.header import GGUFHeader, is_gguf
from gguf_tools.formats.gguf.split import read_parts
from gguf_tools.machine import MOST_COUNT, MOST_THREADS, physical_cores
from gguf_tools.progress import CountProgress
from gguf_tools.runtime.channel import Array, Frame
from gguf_tools.runtime.child import Child
from gguf_tools.runtime.interface import (
    GreedyResult,
    Intermediate,
    LayerStatistics,
    LogLikelihood,
    Memory,
    Message,
    ModelInfo,
    Node,
    Sampling,
    Speed,
)
from gguf_tools.runtime.log import buffer_sizes
from gguf_tools.runtime.prefix_plan import sorted_order
from gguf_tools.runtime.silence import current_limit
from gguf_tools.tokenizers.model_name import refused_name
from quant.imatrix import Statistics

KVType = Literal["f32", "f16", "q8_0"]

_REQUEST_TOKENS = 1 << 18
"""Most tokens whose log-likelihoods are asked for in one message, unless one request has more."""
_RENDER_SECONDS = 60.0
"""Seconds after which a rendering is killed; needed if a single operation of the template never ends (see `chat`)."""


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Settings of llama.cpp. The defaults are for fidelity measurements: the most exact settings, on the CPU.

    `kv_type`: type of the key/value cache; with f32 the NMSE of the logits is about 1e-12, with f16 (llama.cpp's default) 5e-8.
    `flash_attn`: the fused attention kernel, off by default (llama.cpp's own default is "auto").
    `gpu_layers`: layers on the GPU; 0 offloads nothing at all, -1 offloads all layers.
    `threads`: None means the physical cores that this process may use.
    `context_length`: most tokens of a sequence; None means the model's training context.
    `vocab_only`: load tokenizer and metadata, but no weights.
    `no_alloc`: check metadata and tensors as for a model that is run, but load no weights; nothing can be computed.
    `lora`: paths of adapters (GGUF) that are applied to the model.
    `timeout`: seconds without a message from the process after which it is killed; None means never. The default is 600, or
    the value set by `silence_limit`.
    """

    kv_type: KVType = "f32"
    flash_attn: bool = False
    gpu_layers: int = 0
    threads: int | None = None
    context_length: int | None = None
    vocab_only: bool = False
    no_alloc: bool = False
    lora: tuple[str, ...] = ()
    timeout: float | None = field(default_factory=current_limit)

    def __post_init__(self) -> None:
        """Raise InputError, naming the setting, for values that llama.cpp does not support."""
        if self.kv_type not in ("f32", "f16", "q8_0"):
            raise InputError(f"cache type is {self.kv_type!r}; expected f32, f16 or q8_0")
        if self.kv_type == "q8_0" and not self.flash_attn:
            raise InputError("cache type q8_0 needs flash attention in llama.cpp; turn flash attention on")
        for name, least, most in (
            ("threads", 1, MOST_THREADS),
            ("context_length", 1, MOST_COUNT),
            ("gpu_layers", -1, MOST_COUNT),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InputError(f"{name} is {value}; expected a whole number from {least} to {most}")


def headers_to_run(path: Path) -> tuple[GGUFHeader, ...]:
    """The headers of the shards of a file that llama.cpp is to run; `path` may be any of them.

    Raises InputError if `path` is not a GGUF file, CheckpointError for one that is broken or half changed, or whose shards are
    not of one model, all of which llama.cpp may run.
    """
    if not path.is_file():
        other = "is not a regular file" if path.exists() else "does not exist"
        found = "is a folder" if path.is_dir() else other
        raise InputError(f"{path}: {found}; give a GGUF file")
    if not is_gguf(path):
        raise InputError(f"{path}: does not start with 'GGUF'; give a GGUF file")
    return read_parts(path)


class Runtime:
    """One model in a llama.cpp process; a context manager. Not thread-safe.

    Every method raises LlamaError if llama.cpp fails or its process dies or times out, and InputError for an invalid request.
    After the process has died or a call was interrupted, every call fails; create a new Runtime then.
    """

    def __init__(self, path: Path, options: RuntimeOptions | None = None) -> None:
        """The process starts when the context is entered. Raises what `headers_to_run` raises."""
        self.path = Path(path)
        self.options = options or RuntimeOptions()
        self._child = Child(self.path)
        self._info: ModelInfo | None = None
        headers_to_run(self.path)

    def __enter__(self) -> Runtime:
        """Start the worker process and load the model. If that fails, the process is ended and LlamaError raised."""
        try:
            self._child.start()
            self.reload()
        except BaseException:
            self.close()
            raise
        return self

    def reload(self) -> None:
        """Load the file again after it has changed. Raises LlamaError."""
        options = asdict(replace(self.options, threads=self.threads))
        start = self._child.log_size()
        try:
            info = self._call("load", {"path": str(self.path.resolve()), "options": options}).header["info"]
        except LlamaError as error:
            why = refused_name(self.path)  # a cause that llama.cpp does not report
            raise LlamaError(f"{error}; {why}") if why else error from None
        self._info = ModelInfo(**{**info, "eog": frozenset(info["eog"])})
        self._load_log = (start, self._child.log_size())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the process; it has nothing to save."""
        self._child.close()

    def stop(self) -> None:
        """Kill the process, from any thread: a call that is running then fails with LlamaError."""
        self._child.stop()

    @property
    def info(self) -> ModelInfo:
        """The model's properties."""
        if self._info is None:
            raise LlamaError(f"{self.path}: llama.cpp is not running; use the Runtime in a `with` block")
        return self._info

    @property
    def threads(self) -> int:
        """The number of threads that compute."""
        return self.options.threads or min(physical_cores(), MOST_THREADS)

    @property
    def pid(self) -> int | None:
        """The process id of the worker, or None if it is not running."""
        return self._child.pid

    @property
    def context_limit(self) -> int:
        """Most tokens of a sequence: `context_length`, or else the model's training context."""
        return self.options.context_length or self.info.context_train or 1 << 31

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        `add_special` adds BOS and EOS if the file's metadata say so; `parse_special` reads special tokens in the text
        ("<|…|>") as one token. Raises InputError for a text with a lone surrogate.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text has a lone surrogate at character {error.start}; expected valid Unicode"
            ) from error
        header = {"text": text, "add_special": add_special, "parse_special": parse_special}
        return [int(i) for i in _array(self._call("tokenize", header))]

    def detokenize(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of token ids, with special tokens if `special`; bytes that are not UTF-8 become U+FFFD."""
        return str(self._call("detokenize", {"special": special}, self._ids([ids], "detokenize")).header["text"])

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        template: str | None = None,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> str:
        """The text of a conversation, rendered by llama-cpp-python with `template` or the file's own chat template.

        `options` are passed to the template (`enable_thinking=False`, `tools=[…]`); they and the messages must be plain JSON.
        Raises InputError if there is no template, or, with the template's message, if it refuses the messages.
        """
        template = template or self.info.chat_template
        if template is None:
            raise InputError(f"{self.path}: has no chat template to render messages; give the prompt as text")
        bos, eos = ("" if i is None else self.detokenize([i], special=True) for i in (self.info.bos, self.info.eos))
        request = {
            "template": template,
            "messages": list(messages),
            "bos_token": bos,
            "eos_token": eos,
            "add_generation_prompt": add_generation_prompt,
            "options": options,
        }
        return str(self._call("render", {"request": request}, most=_RENDER_SECONDS).header["text"])

    def iter_logits(self, sequences: Sequence[Sequence[int]]) -> Iterator[npt.NDArray[np.float32]]:
        """For each sequence in turn, its logits at every position: (T, n_vocab) float32.

        A sequence's logits do not depend on the other sequences. They are computed lazily, one array at a time.
        """
        self._check_lengths(sequences, 0)
        context = max(map(len, sequences), default=0)
        for sequence in sequences:
            yield _array(self._call("logits", {"context": context}, self._ids([sequence], "logits")))

    def block_size(self, sequence: Sequence[int]) -> int:
        """Tokens of a block of `iter_blocks`: `info.batch`, or fewer in a long context."""
        return int(self._call("block_size", {"context": len(sequence)}).header["size"])

    def iter_blocks(self, sequence: Sequence[int]) -> Iterator[npt.NDArray[np.float32]]:
        """One sequence's logits, `block_size` positions at a time: (T, n_vocab) float32 each, the last with fewer positions.

        Computed lazily, so that memory holds one block. No other request may come between two blocks; LlamaError then.
        """
        self._check_lengths([sequence], 0)
        ids, size = self._ids([sequence], "blocks"), self.block_size(sequence)
        for start in range(0, len(ids), size):
            header = {"start": start, "context": len(ids)}
            yield _array(self._call("block", header, ids[start : start + size]))

    def logits(self, sequences: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
        """`iter_logits` as a list, which takes 4 bytes × tokens × vocabulary of memory."""
        return list(self.iter_logits(sequences))

    def greedy(
        self,
        prompts: Sequence[Sequence[int]],
        n_tokens: int | Sequence[int],
        stop: frozenset[int] = frozenset(),
        progress: CountProgress | None = None,
        until: Sequence[str] = (),
    ) -> list[GreedyResult]:
        """The greedy continuation of each prompt: the largest raw logit, the lowest id among equals; no sampler.

        `n_tokens` is one number, or one per prompt; a continuation ends early after a token of `stop`, or when its text
        (special tokens included) has one of the strings in `until`; it includes what ended it. Prompts are decoded together,
        and a beginning that all have in common once, so logits may differ from those of `logits` in the last bits. `progress`
        is called with (tokens done, tokens in total).
        """
        counts = [n_tokens] * len(prompts) if isinstance(n_tokens, int) else list(n_tokens)
        if len(counts) != len(prompts):
            raise InputError(f"n_tokens has {len(counts)} numbers; expected one or {len(prompts)} (one per prompt)")
        if not prompts:
            return []
        needed = self._check_lengths(prompts, counts)
        header = {
            "lengths": [len(p) for p in prompts],
            "n_tokens": counts,
            "stop": sorted(stop),
            "until": [text for text in until if text],
            "context": needed,
        }
        answer = self._call("greedy", header, self._ids(prompts, "greedy"), progress).header
        return [
            GreedyResult(tuple(tokens), tuple(margins))
            for tokens, margins in zip(answer["tokens"], answer["margins"], strict=True)
        ]

    def log_likelihoods(
        self, requests: Sequence[tuple[Sequence[int], Sequence[int]]], progress: CountProgress | None = None
    ) -> list[LogLikelihood]:
        """The log-likelihood of each continuation after its context; a request is (context, continuation) in token ids.

        Requests are decoded together, prefixes that they share once; log-probabilities may therefore differ from those of
        `logits` in the last bits. A request needs as many tokens of the context as both have together, less one. `progress` is
        called with (tokens done, tokens in total), tokens of the requests. Raises InputError for an empty context or
        continuation.
        """
        sequences = []
        for index, (context, continuation) in enumerate(requests):
            if not len(context) or not len(continuation):
                what = "continuation" if len(context) else "context"
                raise InputError(f"{self.path}: the {what} of request {index} is empty; expected at least one token")
            sequences.append([*context, *continuation])
        self._check_lengths([sequence[:-1] for sequence in sequences], 0)
        order = sorted_order(sequences)
        total, gone = sum(map(len, sequences)), 0
        found: dict[int, LogLikelihood] = {}
        while order:
            count = _count_within(sequences, order, _REQUEST_TOKENS)
            now, order = order[:count], order[count:]
            chosen = [sequences[index] for index in now]
            header = {"lengths": list(map(len, chosen)), "scored": [len(requests[index][1]) for index in now]}
            size = sum(map(len, chosen))

            def advance(done: int, planned: int, start: int = gone, size: int = size) -> None:
                if progress is not None:
                    progress(start + size * done // max(planned, 1), total)

            answer = self._call("log_likelihoods", header, self._ids(chosen, "log_likelihoods"), advance).header
            for index, value, greedy in zip(now, answer["sums"], answer["greedy"], strict=True):
                found[index] = LogLikelihood(value, greedy)
            gone += size
        return [found[index] for index in range(len(requests))]

    def read_tokens(self, start: int, tokens: Sequence[int], context: int) -> bool:
        """Read tokens, `info.batch` at most, as the sequence's positions from `start` on; what followed `start` is forgotten.

        A sequence starts at 0, with room for `context` tokens; `session.Session` keeps one. False if the model cannot go back to
        `start`, or has forgotten the sequence by another computation: then start at 0.
        """
        header = {"start": start, "context": context}
        return bool(self._call("read", header, self._one_batch(tokens, "read")).header["done"])

    def next_token(self, previous: int | None, sampling: Sampling | None) -> int:
        """The token after the sequence, into which `previous` is read first; `sampling` is given for the first of a text."""
        header = {"previous": previous, "sampling": sampling and asdict(sampling)}
        return int(self._call("next", header).header["token"])

    def speed(
        self, n_prompt: int = 512, n_generate: int = 64, repeat: int = 3, progress: CountProgress | None = None
    ) -> Speed:
        """Measure speed in tokens per second: an uncounted run, then the medians of `repeat` runs (fewer after 20 seconds).

        If the context is shorter than `n_prompt + n_generate` tokens, both are reduced in proportion.
        """
        limit = self.context_limit
        if n_prompt + n_generate > limit:
            share = limit / (n_prompt + n_generate)
            n_prompt, n_generate = max(1, int(n_prompt * share)), max(1, int(n_generate * share))
        header = {"n_prompt": n_prompt, "n_generate": n_generate, "repeat": repeat}
        answer = self._call("speed", header, progress=progress).header
        return Speed(answer["prompt_tok_s"], answer["generate_tok_s"], n_prompt, n_generate)

    def memory(self, context: int) -> Memory:
        """The memory that llama.cpp reserves for `context` tokens with its default settings (an F16 cache)."""
        self._check_weights()
        if context > self.context_limit:
            raise InputError(
                f"{self.path}: the model's context has {self.context_limit} tokens, but {context} are requested; give fewer"
            )
        start = self._child.log_size()
        self._call("reserve", {"context": context})
        loaded = buffer_sizes(self._child.read_log(*self._load_log))
        reserved = buffer_sizes(self._child.read_log(start, self._child.log_size()))
        if "model" not in loaded or "compute" not in reserved:
            raise LlamaError(
                f"{self.path}: llama.cpp did not log the sizes of its buffers; install llama-cpp-python 0.3.36"
            )
        cache = reserved.get("KV", 0.0) + reserved.get("RS", 0.0)
        return Memory(context, loaded["model"], cache, reserved["compute"] + reserved.get("output", 0.0))

    def activations(
        self, chunks: Sequence[Sequence[int]], process_output: bool = False, progress: CountProgress | None = None
    ) -> dict[str, Statistics]:
        """Statistics of the input activations of each weight matrix, over chunks of tokens decoded one by one.

        `process_output` includes the output matrix. `progress` is called with (tokens done, tokens in total).
        """
        self._check_lengths(chunks, 0)
        header = {"lengths": [len(chunk) for chunk in chunks], "process_output": process_output}
        answer = self._call("activations", header, self._ids(chunks, "activations"), progress)
        found: dict[str, Statistics] = {}
        sums, at = _array(answer), 0
        for tensor in answer.header["tensors"]:
            counts = np.array(tensor["counts"], np.int64)
            found[tensor["name"]] = Statistics(sums[at : at + tensor["size"]].reshape(len(counts), -1), counts)
            at += tensor["size"]
        return found

    def nodes(self, tokens: Sequence[int]) -> list[Node]:
        """The nodes of the graph in which these tokens, at most `info.batch`, are read at once, in order of computation."""
        answer = self._call("nodes", {}, self._one_batch(tokens, "nodes")).header["nodes"]
        return [Node(n["name"], tuple(n["shape"]), bool(n["float"]), tuple(n["sources"])) for n in answer]

    def intermediates(
        self,
        tokens: Sequence[int],
        names: Iterable[str],
        step: int | None = None,
        progress: CountProgress | None = None,
    ) -> list[Intermediate]:
        """The named tensors of the graphs in which one sequence is read, in order of computation.

        `names` are without layers: `Qcur` stands for `Qcur-0`, `Qcur-1` … The sequence is read `step` tokens at a time, by
        default as many at once as the engine takes (`info.batch`).
        """
        self._check_lengths([tokens], 0)
        header = {"names": sorted(names), "step": step or self.info.batch}
        answer = self._call("intermediates", header, self._ids([tokens], "intermediates"), progress)
        flat, at, found = _array(answer), 0, []
        for record in answer.header["records"]:
            shape = tuple(record.pop("shape"))
            found.append(Intermediate(values=flat[at : at + math.prod(shape)].reshape(shape), **record))
            at += math.prod(shape)
        return found

    def exchange(
        self, tokens: Sequence[int], read: Sequence[int], write: Mapping[int, npt.NDArray[np.float32]]
    ) -> tuple[list[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
        """Read tokens (at most `info.batch`) while nodes of the graph, by their place in `nodes`, are read and replaced.

        A node in both is read first. Returns the nodes in `read`, flat, and the logits of all positions, (T, n_vocab). The same
        nodes must be replaced by as many float32 numbers as they hold.
        """
        ids = self._one_batch(tokens, "exchange")
        parts = [np.ascontiguousarray(part, np.float32).reshape(-1) for part in write.values()]
        header = {
            "tokens": len(ids),
            "read": list(read),
            "write": list(write),
            "sizes": [part.size for part in parts],
        }
        answer = self._call("exchange", header, np.concatenate([ids.astype(np.float32), *parts]))
        *found, logits = np.split(_array(answer), np.cumsum(answer.header["sizes"]))
        return found, logits.reshape(len(ids), -1)

    def _one_batch(self, tokens: Sequence[int], what: str) -> npt.NDArray[np.int32]:
        self._check_lengths([tokens], 0)
        if len(tokens) > self.info.batch:
            raise InputError(f"{what}: {len(tokens)} tokens given, at most {self.info.batch} are computed at once")
        return self._ids([tokens], what)

    def layer_changes(self, chunks: Sequence[Sequence[int]], progress: CountProgress | None = None) -> LayerStatistics:
        """What each layer and expert does to the residual stream while each chunk is read by itself.

        Raises LlamaError for an architecture whose graph does not name its layers' outputs.
        """
        self._check_lengths(chunks, 0)
        header = {"lengths": [len(chunk) for chunk in chunks]}
        found = self._call("layer_changes", header, self._ids(chunks, "layers"), progress).header
        if found["layers"] != list(range(len(found["layers"]))) or not found["layers"]:
            raise LlamaError(f"{self.path}: the graph of {self.info.arch} does not name the output of every layer")
        saliency, routed = ({int(n): tuple(row) for n, row in found[key].items()} for key in ("saliency", "routed"))
        return LayerStatistics(
            update_norm=tuple(found["update_norm"]),
            influence=tuple(found["influence"]),
            saliency=saliency,
            routed=routed,
        )

    def _call(
        self,
        op: str,
        header: dict[str, Any],
        array: Array | None = None,
        progress: CountProgress | None = None,
        most: float | None = None,
    ) -> Frame:
        """The answer to a request; the process is killed if it says nothing for `timeout` seconds, or for `most` if given."""
        limits = [limit for limit in (self.options.timeout, most) if limit is not None]
        return self._child.call(op, header, array, progress, min(limits, default=None))

    def _ids(self, sequences: Sequence[Sequence[int]], what: str) -> npt.NDArray[np.int32]:
        flat = np.array([token for sequence in sequences for token in sequence], dtype=np.int64)
        bad = flat[(flat < 0) | (flat >= self.info.n_vocab)]
        if bad.size:
            raise InputError(
                f"{self.path}: token id {bad[0]} ({what}) is outside the vocabulary of {self.info.n_vocab} tokens"
            )
        return flat.astype(np.int32)

    def _check_weights(self) -> None:
        if self.options.vocab_only or self.options.no_alloc:
            raise InputError(f"{self.path}: no weights were loaded (vocab_only, no_alloc); load them to compute")

    def _check_lengths(self, sequences: Sequence[Sequence[int]], more: int | Sequence[int]) -> int:
        """Tokens of the longest sequence, each plus the `more` that follow it.

        Raises InputError for an empty sequence or one longer than the context.
        """
        self._check_weights()
        extra = [more] * len(sequences) if isinstance(more, int) else more
        needed = 0
        for index, (sequence, count) in enumerate(zip(sequences, extra, strict=True)):
            if not len(sequence):
                raise InputError(f"sequence {index} is empty; expected at least one token")
            if len(sequence) + count > self.context_limit:
                raise InputError(
                    f"{self.path}: sequence {index} needs {len(sequence) + count} tokens, but the context has"
                    f" {self.context_limit}; shorten it or give a longer context"
                )
            needed = max(needed, len(sequence) + count)
        return needed


def _count_within(sequences: Sequence[Sequence[int]], order: Sequence[int], most: int) -> int:
    """How many sequences, taken in `order`, have at most `most` tokens together; at least one."""
    size = 0
    for count, index in enumerate(order):
        size += len(sequences[index])
        if count and size > most:
            return count
    return len(order)


def _array(frame: Frame) -> npt.NDArray[Any]:
    if frame.array is None:
        raise LlamaError("the llama.cpp process sent an answer without the requested array")
    return frame.array
