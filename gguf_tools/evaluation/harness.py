"""The model class `tinyq` of lm-evaluation-harness: GGUF files, run by llama.cpp in a child process.

Importing this module registers the class; afterwards `lm_eval.simple_evaluate(model="tinyq", model_args={"pretrained": …})` works
as for the harness's own classes. Texts are tokenized by the file's own tokenizer through llama.cpp; context and continuation are
told apart as by the harness's `TemplateLM._encode_pair` (both tokenized together, cut at the length of the context alone, whose
trailing spaces belong to the continuation).
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gguf_tools import __version__
from gguf_tools.errors import InputError
from gguf_tools.evaluation.harness_installed import require_harness
from gguf_tools.runtime.process import KVType, Runtime, RuntimeOptions

require_harness()

from lm_eval.api.model import TemplateLM  # noqa: E402
from lm_eval.api.registry import register_model  # noqa: E402
from lm_eval.models.utils import (  # noqa: E402
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # noqa: E402
from tqdm import tqdm  # noqa: E402

NAME = "tinyq"
_MARKER = "\ue000the message goes on here\ue000"
"""Stands at the end of a message that the model is to continue, while the conversation is rendered."""
_NEUTRAL: Mapping[str, object] = {
    "do_sample": False,
    "temperature": 0.0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
}
"""Generation options with the only value that greedy decoding can honour."""
_WITHOUT_EFFECT = ("top_k", "top_p", "min_p", "typical_p", "seed", "use_cache", "early_stopping")
"""Generation options that do not change a greedy text."""

Instance = Any
"""lm_eval.api.instance.Instance: a request, whose `args` are its strings and options."""


@register_model(NAME)
class TinyqLM(TemplateLM):  # type: ignore[misc]
    """A GGUF file as a model of lm-evaluation-harness.

    `pretrained` is the file; `kv_type`, `flash_attn`, `gpu_layers` and `threads` are the settings of `RuntimeOptions`;
    `max_length` is the most tokens of context and continuation together (by default the file's training context);
    `add_bos_token` puts BOS before every text that has a context (by default as the file says; never twice);
    `prefix_token_id` is what an empty context is replaced by (by default BOS, or EOS where the file has none);
    `max_gen_toks` is used by tasks that state no number; `enable_thinking` is passed to the chat template; `think_end_token` is
    the string after which the answer begins. `batch_size`, `max_batch_size` and `device` are accepted and ignored: the memory
    decides how much is decoded together. Raises InputError or LlamaError.
    """

    def __init__(
        self,
        pretrained: str | Path,
        *,
        kv_type: KVType = "f32",
        flash_attn: bool = False,
        gpu_layers: int = 0,
        threads: int | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        max_gen_toks: int = 256,
        enable_thinking: bool | None = None,
        think_end_token: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        """Start llama.cpp's process and load the file."""
        super().__init__()
        self.options = RuntimeOptions(
            kv_type=kv_type,
            flash_attn=flash_attn,
            gpu_layers=gpu_layers,
            threads=threads,
            context_length=max_length,
        )
        self.runtime = Runtime(Path(pretrained), self.options)
        self.runtime.__enter__()
        self.close = weakref.finalize(self, self.runtime.close)
        """Ends the llama.cpp process; called when the model is no longer used."""
        info = self.runtime.info
        self._bos = info.bos if "tokenizer.ggml.bos_token_id" in info.metadata else None
        self._bos_text = "" if self._bos is None else self.runtime.detokenize([self._bos], special=True)
        self._add_bos = info.add_bos if add_bos_token is None else add_bos_token
        if self._add_bos and self._bos is None:
            raise InputError(f"{pretrained}: has no BOS token to put before texts; give add_bos_token=False")
        self._prefix = prefix_token_id
        self._thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self._think_end = think_end_token
        self._template: str | None = None
        self.max_gen_toks = max_gen_toks
        self._tokenize = lru_cache(maxsize=1024)(lambda text: tuple(self.runtime.tokenize(text, parse_special=True)))

    # -- what the harness asks about the model -------------------------------------------------------------------

    @property
    def max_length(self) -> int:
        """Most tokens of context and continuation together."""
        return self.runtime.context_limit

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text. Raises InputError if the file has none."""
        eos = self.runtime.info.eos
        if eos is None:
            raise InputError(f"{self.runtime.path}: has no EOS token; give prefix_token_id=ID for empty contexts")
        return eos

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context."""
        if self._prefix is not None:
            return self._prefix
        return self.eot_token_id if self._bos is None else self._bos

    @property
    def tokenizer_name(self) -> str:
        """The file's path, for the names of cached requests."""
        return str(self.runtime.path.resolve()).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness records of the model, for its `config`."""
        info = self.runtime.info
        settings = {name: asdict(self.options)[name] for name in ("kv_type", "flash_attn", "gpu_layers", "threads")}
        return {
            "model_num_parameters": info.n_params,
            "model_dtype": info.file_type,
            "tinyq": {
                **settings,
                "max_length": self.max_length,
                "add_bos_token": self._add_bos,
                "version": __version__,
                "llama_cpp_python": version("llama-cpp-python"),
                "arch": info.arch,
                "bytes": info.bytes,
            },
        }

    # -- texts ---------------------------------------------------------------------------------------------------

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text; special tokens in it are read as such.

        BOS comes first if `add_special_tokens`; if that is None, as the model was set up, unless the text begins with it.
        """
        add = add_special_tokens
        if add is None:
            add = self._add_bos and not (self._bos_text and string.startswith(self._bos_text))
        return [*([self._bos] if add and self._bos is not None else []), *self._tokenize(string)]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The file's chat template, or the one that it has under a name. Raises InputError if it has none."""
        if chat_template is False or chat_template is None:
            return None
        template = self.runtime.info.chat_template
        if isinstance(chat_template, str):
            template = self.runtime.info.metadata.get(f"tokenizer.chat_template.{chat_template}")
        if template is None:
            name = f" named {chat_template!r}" if isinstance(chat_template, str) else ""
            raise InputError(
                f"{self.runtime.path}: has no chat template{name}; run the tasks without --apply_chat_template"
            )
        self._template = template
        return template

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """A conversation as text, by the file's template; without a generation prompt, the last message is left open.

        A template that refuses a system message is asked again without it, as the harness's `hf` does.
        """
        messages = [dict(message) for message in chat_history]
        if not add_generation_prompt:
            messages[-1]["content"] += _MARKER
        options: dict[str, Any] = {
            "add_generation_prompt": add_generation_prompt,
            "template": self._template,
            **self._thinking,
        }
        try:
            text = self.runtime.render_chat(messages, **options)
        except InputError:
            others = [message for message in messages if message["role"] != "system"]
            if len(others) == len(messages):
                raise
            text = self.runtime.render_chat(others, **options)
        if add_generation_prompt:
            return text
        before, marker, _ = text.rpartition(_MARKER)
        if not marker:
            raise InputError(
                f"{self.runtime.path}: the chat template does not show the last message, which the model is to continue"
            )
        return before

    # -- requests ------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy) of each (context, continuation); see `TemplateLM.loglikelihood`."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm or not sys.stderr.isatty())
        return found

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy) of each continuation; contexts are cut on the left where too long."""
        pairs = []
        for _strings, context, continuation in requests:
            kept = (context + continuation)[-(self.max_length + 1) :]
            pairs.append((kept[: len(kept) - len(continuation)], continuation))
        with _Bar("log-likelihoods (tokens)", disable_tqdm) as bar:
            answers = [(found.value, found.greedy) for found in self.runtime.log_likelihoods(pairs, bar.show)]
        for (strings, _context, _continuation), answer in zip(requests, answers, strict=True):
            if strings is not None:
                self.cache_hook.add_partial("loglikelihood", strings, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, in the windows of `lm_eval.utils.get_rolling_token_windows`."""
        texts = [request.args[0] for request in requests]
        windows = []
        for index, text in enumerate(texts):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((index, make_disjoint_window(window)))
        found = self._loglikelihood_tokens([(None, *window) for _, window in windows], disable_tqdm)
        sums = [0.0] * len(texts)
        for (index, _), (value, _greedy) in zip(windows, found, strict=True):
            sums[index] += value
        for text, value in zip(texts, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), value)
        return sums

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The greedy continuation of each context, up to a stop string, an end-of-generation token or the number of tokens."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(index)
        texts: dict[int, str] = {}
        for indices in groups.values():
            options = requests[indices[0]].args[1]
            contexts = [requests[index].args[0] for index in indices]
            for index, text in zip(indices, self._generate(contexts, options, disable_tqdm), strict=True):
                texts[index] = text
                self.cache_hook.add_partial("generate_until", requests[index].args, text)
        return [texts[index] for index in range(len(requests))]

    def _generate(self, contexts: Sequence[str], options: Mapping[str, Any], disable_tqdm: bool) -> list[str]:
        """Continue contexts that have the same generation options."""
        chosen = normalize_gen_kwargs(dict(options), self.max_gen_toks)
        most = chosen.pop("max_gen_toks")
        eos = self.runtime.info.eos
        end = None if eos is None else self.runtime.detokenize([eos], special=True)
        until = handle_stop_sequences(list(chosen.pop("until")), eos=end)
        _check_greedy(chosen)
        room = self.max_length - most
        if room < 1:
            raise InputError(
                f"{self.runtime.path}: {most} tokens to generate leave no room for a prompt in a context of"
                f" {self.max_length}; give --gen_kwargs max_gen_toks=N or a longer context"
            )
        prompts = [self.tok_encode(context)[-room:] for context in contexts]
        with _Bar("generated tokens, at most", disable_tqdm) as bar:
            found = self.runtime.greedy(prompts, most, self.runtime.info.eog, bar.show, until)
        texts = [self.runtime.detokenize(result.tokens) for result in found]
        return [postprocess_generated_text(text, until, self._think_end) for text in texts]


def _check_greedy(options: Mapping[str, Any]) -> None:
    """Raise InputError for generation options that greedy decoding cannot honour."""
    for name, value in options.items():
        if name in _WITHOUT_EFFECT or value is None:
            continue
        if name not in _NEUTRAL:
            raise InputError(f"the task asks to generate with {name}={value}, which tinyq does not have")
        if value != _NEUTRAL[name]:
            raise InputError(
                f"the task asks to generate with {name}={value}, but tinyq decodes greedily; give --gen_kwargs"
                f" {name}={_NEUTRAL[name]}"
            )


class _Bar:
    """The harness's kind of progress bar, for a total that is known when work begins."""

    def __init__(self, label: str, disable: bool) -> None:
        self._bar = tqdm(desc=label, disable=disable or None)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, done: int, total: int) -> None:
        """Show `done` of `total`."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)
