"""One sequence that is read and continued token by token. For the worker process only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np

from gguf_tools.errors import LlamaError
from gguf_tools.runtime.engine import Engine, Tokens


class Continuation:
    """The sequence in the engine's context, which nothing else may use meanwhile, and the sampler of the current answer."""

    def __init__(self, engine: Engine, context: int) -> None:
        """Make the context empty, with room for `context` tokens. Raises LlamaError."""
        self._engine = engine
        self._length = 0
        self._sampler: Any = None
        engine.prepare(1, context)

    def read(self, start: int, tokens: Tokens) -> bool:
        """Read tokens (one batch at most) from position `start` on, forgetting what followed it.

        False, with nothing read, if the model's state cannot go back (recurrent layers). Raises LlamaError.
        """
        if start < self._length and not self._engine.truncate(start):
            return False
        wanted = np.zeros(len(tokens), dtype=np.int8)
        wanted[-1] = 1
        positions = np.arange(start, start + len(tokens), dtype=np.int32)
        self._engine.decode(tokens, positions, np.zeros_like(tokens), wanted)
        self._length = start + len(tokens)
        return True

    def begin(self, sampling: Mapping[str, Any]) -> None:
        """Choose the tokens that follow by these fields of `interface.Sampling`."""
        self.end()
        if not sampling["temperature"]:
            return
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if sampling["top_k"]:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(sampling["top_k"]))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_p(sampling["top_p"], 1))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_min_p(sampling["min_p"], 1))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(sampling["temperature"]))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(sampling["seed"]))
        self._sampler = chain

    def next(self, previous: int | None) -> int:
        """The next token, after `previous` has been read if it is given. Raises LlamaError for logits that are not finite."""
        if previous is not None:
            self.read(self._length, np.array([previous], dtype=np.int32))
        row = self._engine.outputs(1)[0]
        if not np.isfinite(row).all():
            raise LlamaError(f"the logits after {self._length} tokens are not finite")
        return int(row.argmax()) if self._sampler is None else self._engine.draw(self._sampler)

    def end(self) -> None:
        """Free the sampler."""
        if self._sampler is not None:
            lib.llama_sampler_free(self._sampler)
            self._sampler = None
