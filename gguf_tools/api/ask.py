"""The public function `ask`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args

from gguf_tools.api.checked import checked
from gguf_tools.api.options import at_least, one_of
from gguf_tools.api.results.conversation import AskResult
from gguf_tools.machine import MOST_COUNT, MOST_THREADS
from gguf_tools.runtime.interface import Sampling
from gguf_tools.runtime.process import KVType, RuntimeOptions
from gguf_tools.sources.hub import Reading, local_source


@checked
def ask(
    model: str | Path,
    question: str,
    *,
    system: str | None = None,
    thinking: bool = False,
    tokens: int = 512,
    temperature: float = 0.0,
    top_k: int = 40,
    top_p: float = 0.95,
    min_p: float = 0.05,
    seed: int = 0,
    kv_type: str = "f32",
    flash_attn: bool = False,
    gpu_layers: int = 0,
    context: int | None = None,
    threads: int | None = None,
    stream: Callable[[str, str], None] | None = None,
) -> AskResult:
    """Ask a GGUF one question with its own chat template, run by llama.cpp in a child process: `tinyq ask`.

    A model without a template is asked in plain text. `thinking` asks with its thinking mode on; `tokens` is the most that it may
    write. A `temperature` of 0 takes the most likely token each time, otherwise tokens are drawn (see `Sampling`) with `seed`.
    `stream` is called with ("thought" or "answer", text) as the text is written.

    Raises InputError for a broken file, an invalid option or a question that does not fit into the context, LlamaError if
    llama.cpp fails.
    """
    from gguf_tools.evaluation.conversation import Conversation, runtime_for

    one_of("--kv-type", kv_type, get_args(KVType))
    at_least("--tokens", tokens)
    at_least("--context", context, 1, MOST_COUNT)
    at_least("--threads", threads, 1, MOST_THREADS)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    options = RuntimeOptions(
        kv_type=cast(KVType, kv_type),
        flash_attn=flash_attn,
        gpu_layers=gpu_layers,
        threads=threads,
        context_length=context,
    )
    with runtime_for(local_source(model, Reading.WHOLE), options) as runtime:
        conversation = Conversation(runtime, system=system, thinking=thinking, sampling=sampling, most=tokens)
        for part, text in conversation.ask(question):
            if stream is not None:
                stream(part, text)
        return AskResult(str(model), conversation.turns[-1], sampling, conversation.context)
