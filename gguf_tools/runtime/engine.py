"""llama.cpp through its C API. For the worker process only, because llama.cpp's assertions abort the process.

The `Llama` class of llama-cpp-python is not used: evaluation needs raw logits at every position, many sequences in one
context, and settings (cache type, no flash attention, no offloading) applied exactly as requested. Source of the functions
and their contracts: `llama.h`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt

from gguf_tools.errors import LlamaError
from gguf_tools.progress import CountProgress
from gguf_tools.runtime.lora import apply_adapters, load_adapters

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]

_KV_TYPES: dict[str, tuple[int, float]] = {  # ggml's type number, bytes per value
    "f32": (lib.GGML_TYPE_F32, 4.0),
    "f16": (lib.GGML_TYPE_F16, 2.0),
    "q8_0": (lib.GGML_TYPE_Q8_0, 34 / 32),
}
_MAX_BATCH = 512
_MIN_BATCH = 64
_MIN_BLOCK = 32
_SCORE_BYTES = 128 << 20  # attention scores of one block, of which llama.cpp holds two or three
_OUTPUT_BYTES = 256 << 20  # logits of one batch, which llama.cpp holds twice (graph and output buffer)
_CACHE_BYTES = 1 << 30  # KV cache and recurrent states of the sequences that are decoded together
MAX_PARALLEL = 64
_SPEED_SECONDS = 20.0
_WARM_UP = 64


class Engine:
    """A loaded model, and the context of the last request, reused if the next one needs the same."""

    def __init__(self, path: str, options: Mapping[str, Any], progress: CountProgress) -> None:
        """Load the GGUF at `path` with `llama_model_load_from_file`; `progress` counts to 100.

        Raises LlamaError if llama.cpp cannot load it.
        """
        # llama-cpp-python's own callback would run Python inside llama.cpp's threads; with NULL, ggml writes to stderr.
        lib.llama_log_set(lib.llama_log_callback(), ctypes.c_void_p(None))
        lib.llama_backend_init()
        self._options = options
        self._context: Any = None
        self._context_size = (0, 0, False, 0)
        self._read = -1  # tokens of the sequence that `block` reads; -1 if there is none
        self._observer: Any = None
        params = lib.llama_model_default_params()
        params.n_gpu_layers = options["gpu_layers"]
        params.vocab_only = options["vocab_only"]
        if options["no_alloc"]:
            params.no_alloc, params.load_mode = True, lib.LLAMA_LOAD_MODE_NONE

        def on_progress(share: float, _: Any) -> bool:
            progress(int(share * 100), 100)
            return True

        params.progress_callback = callback = lib.llama_progress_callback(on_progress)
        self._model = lib.llama_model_load_from_file(os.fsencode(path), params)
        del callback  # the object had to exist until the model was loaded
        if not self._model:
            raise LlamaError("the model cannot be loaded")
        self._adapters = load_adapters(self._model, options["lora"])
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.n_vocab = int(lib.llama_vocab_n_tokens(self._vocab))
        self._metadata = self._read_metadata()
        room = _OUTPUT_BYTES // (4 * max(self.n_vocab, 1))
        self.n_batch = min(max(1 << max(room.bit_length() - 1, 0), _MIN_BATCH), _MAX_BATCH)

    # -- model information -----------------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """The fields of `interface.ModelInfo`, by name."""
        model, vocab = self._model, self._vocab
        description = ctypes.create_string_buffer(256)
        lib.llama_model_desc(model, description, len(description))
        arch = self._metadata.get("general.architecture", "")
        template = lib.llama_model_chat_template(model, None)
        return {
            "arch": arch,
            "description": _text(description.value),
            "n_vocab": self.n_vocab,
            "n_layer": self._hyperparameter("block_count", 0),
            "batch": self.n_batch,
            "build": _build(),
            "n_params": int(lib.llama_model_n_params(model)),
            "bytes": int(lib.llama_model_size(model)),
            "context_train": self._hyperparameter("context_length", 0),
            "file_type": _text(lib.llama_ftype_name(lib.llama_model_ftype(model)) or b""),
            "chat_template": None if template is None else _text(template),
            "bos": _id(lib.llama_vocab_bos(vocab)),
            "eos": _id(lib.llama_vocab_eos(vocab)),
            "eot": _id(lib.llama_vocab_eot(vocab)),
            "add_bos": bool(lib.llama_vocab_get_add_bos(vocab)),
            "eog": [i for i in range(self.n_vocab) if lib.llama_vocab_is_eog(vocab, i)],
            "metadata": self._metadata,
        }

    def _read_metadata(self) -> dict[str, str]:
        pairs: dict[str, str] = {}
        for index in range(lib.llama_model_meta_count(self._model)):
            key = _string(lib.llama_model_meta_key_by_index, self._model, index)
            pairs[key] = _string(lib.llama_model_meta_val_str_by_index, self._model, index)
        return pairs

    def _hyperparameter(self, name: str, default: int) -> int:
        text = self._metadata.get(f"{self._metadata.get('general.architecture', '')}.{name}", "")
        return int(text) if text.isdecimal() else default

    # -- tokens ----------------------------------------------------------------------------------------------------

    def tokenize(self, text: bytes, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of UTF-8 text, by `llama_tokenize`. Raises LlamaError if that fails."""
        room = len(text) + 8
        while True:
            ids = (lib.llama_token * room)()
            count = lib.llama_tokenize(self._vocab, text, len(text), ids, room, add_special, parse_special)
            if count >= 0:
                return list(ids[:count])
            if -count <= room:
                raise LlamaError("the text cannot be tokenized")
            room = -count

    def detokenize(self, ids: Sequence[int], special: bool) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD."""
        tokens = (lib.llama_token * len(ids))(*ids)
        room = 16 * len(ids) + 64
        while True:
            text = ctypes.create_string_buffer(room)
            count = lib.llama_detokenize(self._vocab, tokens, len(ids), text, room, False, special)
            if count >= 0:
                return _text(text.raw[:count])
            room = -count

    # -- decoding ------------------------------------------------------------------------------------------------

    def logits(self, tokens: Tokens, context: int, progress: CountProgress) -> Logits:
        """Logits at every position of one sequence, (T, n_vocab) float32.

        A sequence is decoded alone, so that its logits cannot depend on other sequences: llama.cpp splits batches where the
        shortest sequence ends, and selects the multiplication kernel by the number of rows. (On a CPU in F32, five sequences
        in one batch gave the same bits, for attention and hybrid models, but llama.cpp does not guarantee it.)
        """
        self.prepare(1, context)
        out = np.empty((len(tokens), self.n_vocab), dtype=np.float32)
        for start in range(0, len(tokens), self.n_batch):
            part = tokens[start : start + self.n_batch]
            positions = np.arange(start, start + len(part), dtype=np.int32)
            self.decode(part, positions, np.zeros_like(part), np.ones(len(part), dtype=np.int8))
            out[start : start + len(part)] = self.outputs(len(part))
            progress(start + len(part), len(tokens))
        return out

    def block(self, tokens: Tokens, start: int, context: int) -> Logits:
        """The logits of the next block of a sequence that is read block by block: (T, n_vocab) float32, valid until the next.

        `start` is the number of its tokens read before, `context` that of all. A block has `block_size` tokens at most. Raises
        LlamaError, also if another request came between.
        """
        if not start:
            self.prepare(1, context, batch=self.block_size(context))
            self._read = 0
        if start != self._read:
            raise LlamaError(f"the block begins at token {start}, but {self._read} tokens were read")
        positions = np.arange(start, start + len(tokens), dtype=np.int32)
        self.decode(tokens, positions, np.zeros_like(tokens), np.ones(len(tokens), dtype=np.int8))
        self._read += len(tokens)
        return self.outputs(len(tokens))

    def block_size(self, context: int) -> int:
        """Tokens of a block in a context of this length: fewer in a long one, so that the attention scores stay within bounds."""
        heads = max(int(lib.llama_model_n_head(self._model)), 1)
        room = _SCORE_BYTES // (4 * heads * max(context, 1))
        return min(max(1 << max(room.bit_length() - 1, 0), _MIN_BLOCK), self.n_batch)

    def _read_prompt(self, tokens: Tokens, sequence: int) -> Logits:
        for start in range(0, len(tokens), self.n_batch):
            part = tokens[start : start + self.n_batch]
            wanted = np.zeros(len(part), dtype=np.int8)
            wanted[-1] = start + len(part) == len(tokens)
            positions = np.arange(start, start + len(part), dtype=np.int32)
            self.decode(part, positions, np.full_like(part, sequence), wanted)
        row: Logits = self.outputs(1)[0]
        return row

    def speed(self, n_prompt: int, n_generate: int, repeat: int, progress: CountProgress) -> tuple[float, float]:
        """Tokens per second when reading a prompt, and when generating token by token (medians of the runs)."""
        tokens = np.random.default_rng(0).integers(0, self.n_vocab, n_prompt).astype(np.int32)
        reading: list[float] = []
        writing: list[float] = []
        begin = time.perf_counter()
        # The first run is short, loads the weights into memory, and is not counted.
        for run in range(repeat + 1):
            self.prepare(1, n_prompt + n_generate)
            start = time.perf_counter()
            row = self._read_prompt(tokens if run else tokens[:_WARM_UP], 0)
            middle = time.perf_counter()
            for step in range(n_generate if run else 1):
                position = np.array([(n_prompt if run else min(n_prompt, _WARM_UP)) + step], dtype=np.int32)
                token = np.array([row.argmax()], dtype=np.int32)
                self.decode(token, position, np.zeros(1, dtype=np.int32), np.ones(1, dtype=np.int8))
                row = self.outputs(1)[0]
            end = time.perf_counter()
            progress(run, repeat)
            if run:
                reading.append(n_prompt / (middle - start))
                writing.append(n_generate / (end - middle))
                if end - begin > _SPEED_SECONDS:
                    break
        return statistics.median(reading), statistics.median(writing)

    def activations(
        self, tokens: Tokens, lengths: Sequence[int], process_output: bool, progress: CountProgress
    ) -> tuple[list[dict[str, Any]], Logits]:
        """Statistics of the inputs of each weight matrix while the chunks in `tokens` (of `lengths` tokens) are decoded.

        Returns for each tensor its name, the number of tokens per matrix, and its number of sums; and one array with the sums
        of squares of all tensors, concatenated. Raises LlamaError for activations that are not finite.
        """
        from gguf_tools.runtime.activations import Collector

        collector = Collector(process_output)
        self._observed(collector, tokens, lengths, progress)
        found = [
            {"name": name, "counts": collector.counts[name].tolist(), "size": sums.size}
            for name, sums in collector.sums.items()
        ]
        flat = [sums.astype(np.float32).reshape(-1) for sums in collector.sums.values()]
        return found, np.concatenate([np.zeros(0, np.float32), *flat])

    def nodes(self, tokens: Tokens) -> list[dict[str, Any]]:
        """The nodes of the graph in which one batch of tokens is read, as `streams.Lister` notes them."""
        from gguf_tools.runtime.streams import Lister

        lister = Lister()
        self._observed(lister, tokens, [len(tokens)], lambda *_: None)
        return lister.nodes

    def exchange(
        self, tokens: Tokens, read: Sequence[int], write: Mapping[int, Logits]
    ) -> tuple[dict[int, Logits], Logits]:
        """Read one batch of tokens, replacing the nodes at the places in `write`; the nodes in `read`, and all logits."""
        from gguf_tools.runtime.streams import Exchange

        exchange = Exchange(read, write)
        logits = self._observed(exchange, tokens, [len(tokens)], lambda *_: None)
        return exchange.found, logits

    def intermediates(
        self, tokens: Tokens, names: Sequence[str], step: int, progress: CountProgress
    ) -> tuple[list[dict[str, Any]], Logits]:
        """The named tensors of the graphs that read `tokens`, `step` at a time: what `Recorder` notes, and all values, flat."""
        from gguf_tools.runtime.intermediates import Recorder

        recorder = Recorder(frozenset(names))
        self._observed(recorder, tokens, [len(tokens)], progress, recorder.begin, step)
        return recorder.records, np.concatenate([np.zeros(0, np.float32), *(c.reshape(-1) for c in recorder.copies)])

    def layer_changes(self, tokens: Tokens, lengths: Sequence[int], progress: CountProgress) -> dict[str, Any]:
        """What each layer and expert does while the chunks in `tokens`, `lengths` long, are read (`LayerChanges.answer`)."""
        from gguf_tools.runtime.layer_changes import LayerChanges

        collector = LayerChanges()
        self._observed(collector, tokens, lengths, progress, collector.begin)
        return collector.answer()

    def _observed(
        self,
        observer: Any,
        tokens: Tokens,
        lengths: Sequence[int],
        progress: CountProgress,
        begin: Callable[[], None] = lambda: None,
        step: int = _MAX_BATCH,
    ) -> Logits:
        """Read chunks of tokens while `observer` is shown the graph, `begin` called before each batch; the last one's logits.

        A batch has at most `step` tokens. LlamaError with the observer's error, if it noted one.
        """
        from gguf_tools.runtime.graph import GraphTensor

        def observe(address: int, ask: bool, _: Any) -> bool:
            return bool(observer.observe(GraphTensor.from_address(address), ask))

        self.close_context()
        self._observer = lib.ggml_backend_sched_eval_callback(observe)
        outputs: Logits = np.zeros((0, self.n_vocab), np.float32)
        try:
            done = 0
            for length in lengths:
                self.prepare(1, max(lengths))
                size = min(step, self.n_batch)
                for start in range(0, length, size):
                    part = tokens[done : done + min(size, length - start)]
                    positions = np.arange(start, start + len(part), dtype=np.int32)
                    begin()
                    # Logits are requested at every position: the last layer skips positions without.
                    self.decode(part, positions, np.zeros_like(part), np.ones(len(part), dtype=np.int8))
                    if observer.error:
                        raise LlamaError(str(observer.error)) from observer.error
                    done += len(part)
                    progress(done, len(tokens))
            outputs = self.outputs(len(part)).copy()
        finally:
            self.close_context()
            self._observer = None
        return outputs

    # -- the context ---------------------------------------------------------------------------------------------

    def parallel(self, wanted: int, context: int) -> int:
        """How many sequences of `context` tokens may be decoded together within `_CACHE_BYTES` for their caches."""
        heads = max(int(lib.llama_model_n_head(self._model)), 1)
        width = int(lib.llama_model_n_embd(self._model)) // heads
        key = self._hyperparameter("attention.key_length", width)
        value = self._hyperparameter("attention.value_length", width)
        kv_heads = self._hyperparameter("attention.head_count_kv", heads)
        layers = int(lib.llama_model_n_layer(self._model))
        state = self._hyperparameter("ssm.inner_size", 0) * self._hyperparameter("ssm.state_size", 0) * 4
        cache = context * kv_heads * (key + value) * _KV_TYPES[self._options["kv_type"]][1]
        room = int(_CACHE_BYTES // max(layers * (cache + state), 1))
        return max(1, min(wanted, room, MAX_PARALLEL, int(lib.llama_max_parallel_sequences())))

    def prepare(self, n_seq: int, context: int, shared: bool = False, batch: int | None = None) -> None:
        """Make the context empty, with room for `n_seq` sequences of `context` tokens each, or in total if `shared`.

        Sequences in a shared cache can have their first tokens in common (`copy_sequence` copies nothing there), but every
        token attends over all cells of the cache, those of other sequences masked. At most `batch` tokens are decoded at once, by
        default `n_batch`. Raises LlamaError.
        """
        self._read = -1
        batch = batch or max(self.n_batch, n_seq)
        have_seq, have_context, have_shared, have_batch = self._context_size
        enough = have_seq >= n_seq if shared else have_seq == n_seq
        alike = have_shared == shared and have_batch == batch
        if self._context is not None and alike and enough and have_context >= context:
            lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
            return
        self.close_context()
        options = self._options
        params = lib.llama_context_default_params()
        params.n_ctx = (
            (1 if shared else n_seq) * -(-context // 256) * 256
        )  # llama.cpp pads each sequence's share to 256
        params.n_seq_max = n_seq
        params.n_batch = params.n_ubatch = batch
        params.n_threads = params.n_threads_batch = options["threads"]
        params.type_k = params.type_v = _KV_TYPES[options["kv_type"]][0]
        params.flash_attn_type = (
            lib.LLAMA_FLASH_ATTN_TYPE_ENABLED if options["flash_attn"] else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        # Without layers on a GPU no operation may be offloaded either, so that all results are the CPU's.
        params.offload_kqv = params.op_offload = options["gpu_layers"] != 0
        params.kv_unified = shared
        params.no_perf = True
        if self._observer is not None:
            params.cb_eval = self._observer
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            self._context = None
            raise LlamaError(f"cannot create a context for {n_seq} sequences of {context} tokens")
        apply_adapters(self._context, self._adapters)
        self._context_size = (n_seq, context, shared, batch)

    def copy_sequence(self, source: int, target: int) -> None:
        """Make the empty sequence `target` start with all tokens of `source`."""
        lib.llama_memory_seq_cp(lib.llama_get_memory(self._context), source, target, -1, -1)

    def remove_sequence(self, sequence: int) -> None:
        """Make a sequence empty. Raises LlamaError."""
        if not lib.llama_memory_seq_rm(lib.llama_get_memory(self._context), sequence, -1, -1):
            raise LlamaError(f"llama_memory_seq_rm failed for sequence {sequence}")

    def truncate(self, length: int) -> bool:
        """Forget all tokens of sequence 0 from position `length` on; False if the model's state cannot go back so far."""
        return bool(lib.llama_memory_seq_rm(lib.llama_get_memory(self._context), 0, length, -1))

    def draw(self, sampler: Any) -> int:
        """A token drawn from the last batch's last logits by a llama.cpp sampler."""
        return int(lib.llama_sampler_sample(sampler, self._context, -1))

    def reserve(self, context: int) -> None:
        """Create and free a context with llama.cpp's default settings, so that its log states the buffers' sizes.

        Raises LlamaError if it cannot be created.
        """
        self.close_context()
        params = lib.llama_context_default_params()
        params.n_ctx = context
        made = lib.llama_init_from_model(self._model, params)
        if not made:
            raise LlamaError(f"cannot create a context of {context} tokens")
        lib.llama_free(made)

    def close_context(self) -> None:
        """Free the context; the next request creates another."""
        if self._context is not None:
            lib.llama_free(self._context)
            self._context = None

    def close(self) -> None:
        """Free the context and the model; the engine must not be used afterwards."""
        self.close_context()
        lib.llama_model_free(self._model)

    def decode(self, tokens: Tokens, positions: Tokens, sequences: Tokens, wanted: npt.NDArray[np.int8]) -> None:
        """Run `llama_decode` on one batch; all arrays are (tokens,), `wanted` marks positions whose logits are output.

        Raises LlamaError with llama.cpp's return code if it fails.
        """
        count = len(tokens)
        n_seq_id = np.ones(count, dtype=np.int32)
        addresses = sequences.ctypes.data + sequences.itemsize * np.arange(count, dtype=np.uintp)
        batch = lib.llama_batch(
            n_tokens=count,
            token=tokens.ctypes.data_as(ctypes.POINTER(lib.llama_token)),
            embd=None,
            pos=positions.ctypes.data_as(ctypes.POINTER(lib.llama_pos)),
            n_seq_id=n_seq_id.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=addresses.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(lib.llama_seq_id))),
            logits=wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        code = lib.llama_decode(self._context, batch)
        if code:
            raise LlamaError(f"llama_decode returned {code} for {count} tokens")

    def outputs(self, count: int) -> Logits:
        """The logits of the last batch's wanted positions, (count, n_vocab) in batch order; a view, valid until the next batch.

        Raises LlamaError if the model outputs no logits.
        """
        pointer = lib.llama_get_logits(self._context)
        if not pointer:
            raise LlamaError("the model outputs no logits (an embedding model?); expected a language model")
        return np.ctypeslib.as_array(pointer, shape=(count, self.n_vocab))


def _build() -> str:
    """The version of llama.cpp with that of ggml and its commit, as far as the library has the functions that tell them."""
    found = {}
    for name in ("llama_version", "ggml_version", "ggml_commit"):
        with contextlib.suppress(AttributeError):
            function = getattr(lib._lib, name)
            function.restype = ctypes.c_char_p
            found[name] = _text(function() or b"")
    ggml = ", ".join(found[name] for name in ("ggml_version", "ggml_commit") if found.get(name))
    return " ".join([found.get("llama_version") or "unknown", *([f"(ggml {ggml})"] if ggml else [])])


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")


def _id(token: int) -> int | None:
    return None if token < 0 else int(token)


def _string(function: Callable[..., int], model: Any, index: int) -> str:
    room = 256
    while True:
        buffer = ctypes.create_string_buffer(room)
        length = function(model, index, buffer, room)
        if length < 0:
            return ""
        if length < room:
            return _text(buffer.raw[:length])
        room = length + 1
