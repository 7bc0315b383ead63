"""Engines that are held to golden values: llama.cpp on a GGUF, a server, and a command that prints token ids."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gguf_tools.errors import InputError
from gguf_tools.evaluation.golden.check import Check, Compared, FirstBad, check_arrays, check_greedy
from gguf_tools.evaluation.golden.read import GoldenFiles, GoldenPrompt, finite
from gguf_tools.evaluation.golden.values import Array, Doubles
from gguf_tools.evaluation.metrics import log_softmax
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.targets.registry import all_targets
from gguf_tools.text import one_line, shortened

SECONDS = 120.0
MOST_ANSWER = 1 << 26
"""Most bytes of a server's answer."""
TOP = 5
"""Largest log probabilities that are asked for."""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks the given server itself, and no proxy."""
CLOSE = 0.02
"""Largest difference of log probabilities: servers run F16 caches, and print few digits."""


def check_gguf(golden: GoldenFiles, path: Path, kind: str, most: float | None, threads: int | None) -> Check:
    """Run a GGUF in llama.cpp with its most exact settings, and compare logits and continuations.

    Where llama.cpp's own arithmetic is coarser than float32's, as for GELU, the architecture's bound counts.
    """
    dump: dict[str, Array] = {}
    notes: tuple[str, ...] = ()
    with Runtime(path, RuntimeOptions(threads=threads)) as runtime:
        if runtime.info.n_vocab != golden.vocab_size:
            raise InputError(f"{path}: has {runtime.info.n_vocab} tokens, the golden values {golden.vocab_size}")
        target = next((one for one in all_targets() if one.name == runtime.info.arch and one.nmse), None)
        if target and most is None:
            most = max(target.nmse, golden.tolerances.get(kind, {}).get("logits", 0.0))
            notes = (f"an NMSE up to {most:.0e} is allowed: {target.why}",)
        prompts = [list(prompt.tokens) for prompt in golden.prompts]
        counts = [len(prompt.greedy) for prompt in golden.prompts]
        for n, logits in enumerate(runtime.iter_logits(prompts)):
            dump[f"logits_{n}"] = logits
        for n, result in enumerate(runtime.greedy(prompts, counts)):
            dump[f"greedy_{n}"] = np.array(result.tokens, np.int64)
    found = check_arrays(golden, dump, f"llama.cpp on {path}", kind, most)
    return replace(found, notes=(*notes, *found.notes))


def check_command(golden: GoldenFiles, command: str, model: str) -> Check:
    """Run a program for each prompt; the token ids on its stdout must be the golden continuation, after the prompt or without.

    `{model}`, `{tokens}` (ids joined by commas) and `{count}` in the command are replaced. Raises InputError if the program
    fails, or prints no numbers.
    """
    parts = shlex.split(command)
    if not any("{tokens}" in part for part in parts):
        raise InputError(f"the command {command!r} has no {{tokens}}, where the ids of the prompt are put; give it one")
    first: FirstBad | None = None
    total = 0
    for n, prompt in enumerate(golden.prompts):
        values = {"{model}": model, "{tokens}": ",".join(map(str, prompt.tokens)), "{count}": str(len(prompt.greedy))}
        line = [_filled(part, values) for part in parts]
        try:
            ran = subprocess.run(line, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            raise InputError(f"the command {line[0]} cannot be run ({one_line(str(error))})") from error
        if ran.returncode:
            last = shortened(one_line((ran.stderr.strip().splitlines() or [""])[-1]), 200)
            raise InputError(f"the command {line[0]} ended with exit code {ran.returncode}: {last}")
        ids = [int(text) for text in re.findall(r"\d{1,9}", ran.stdout)]
        if not ids and prompt.greedy:
            raise InputError(
                f"the command {line[0]} printed no token ids for prompt {n}; expected {len(prompt.greedy)}"
            )
        if tuple(ids[: len(prompt.tokens)]) == prompt.tokens and len(ids) > len(prompt.tokens):
            ids = ids[len(prompt.tokens) :]
        total += len(ids)
        first = first or check_greedy(golden, n, ids)
    notes = ("only the greedy continuation is compared, since a command prints token ids",)
    return Check(engine=f"command {parts[0]}", compared=(), first=first, notes=notes, greedy=total)


def _filled(part: str, values: Mapping[str, str]) -> str:
    for key, value in values.items():
        part = part.replace(key, value)
    return part


def check_server(golden: GoldenFiles, url: str, model: str) -> Check:
    """Ask a server for the most probable next tokens after each prompt.

    llama.cpp's own server (`/completion` with `n_probs`) is given token ids, and returns ids; an OpenAI-compatible one
    (`/v1/completions` with `logprobs`) is given the prompt's text, and its log probabilities are compared by their size. Raises
    InputError if there is no such server, or it returns no log probabilities.
    """
    if not url.startswith(("http://", "https://")):
        raise InputError(f"{url}: is no address of a server; expected http://HOST:PORT")
    url = url.rstrip("/")
    status, answer = _post(f"{url}/completion", _body(golden.prompts[0], 1))
    if status == 200 and isinstance(answer, dict) and ("completion_probabilities" in answer or answer.get("tokens")):
        return _by_ids(golden, url)
    return _by_text(golden, url, model)


def _body(prompt: GoldenPrompt, count: int) -> dict[str, Any]:
    """What llama.cpp's server is asked for: `count` greedy tokens after the prompt, with their ids and log probabilities."""
    return {
        "prompt": list(prompt.tokens),
        "n_predict": count,
        "n_probs": TOP,
        "return_tokens": True,
        "temperature": 0.0,
        "cache_prompt": False,
    }


def _by_ids(golden: GoldenFiles, url: str) -> Check:
    """llama.cpp's own server: the log probabilities after each prompt, and the ids of the greedy tokens."""
    compared, first, unsaid = [], None, []
    total = 0
    for n, prompt in enumerate(golden.prompts):
        top, ids = _next_tokens(url, n, prompt)
        expected = _log_softmax(golden, n)
        gaps = {token: abs(expected[token] - value) for token, value in top.items() if 0 <= token < len(expected)}
        worst = max(gaps, key=lambda token: gaps[token], default=None)
        if worst is None and top:
            raise InputError(f"{url}: its token ids are outside the vocabulary of {len(expected)} tokens")
        if worst is None:
            unsaid.append(str(n))
        else:
            compared.append(Compared(name=f"log probabilities after prompt {n}", nmse=gaps[worst], tolerance=CLOSE))
        if worst is not None and first is None and gaps[worst] > CLOSE:
            said = f"{expected[worst]:.4f} for token {worst}"
            first = FirstBad(
                prompt=n, position=len(prompt.tokens) - 1, point="logits", expected=said, found=f"{top[worst]:.4f}"
            )
        total += len(ids)
        first = first or check_greedy(golden, n, ids, CLOSE)
    notes = [
        f"compared: {TOP} log probabilities after each prompt (largest difference instead of an NMSE), and greedy tokens"
    ]
    if unsaid:
        notes.append(
            f"no log probabilities after prompt {', '.join(unsaid)}: the next token is a part of a character, of which the "
            "server gives none"
        )
    return Check(
        engine=f"llama.cpp's server at {url}", compared=tuple(compared), first=first, notes=tuple(notes), greedy=total
    )


def _next_tokens(url: str, n: int, prompt: GoldenPrompt) -> tuple[dict[int, float], list[int]]:
    """The largest log probabilities of the token after a prompt by id, and the ids of the greedy continuation.

    llama.cpp's server gives no log probabilities of a token that ends within a character, and stops after an end-of-text token,
    after which the golden tokens are taken as they are (`tools/server/server-context.cpp`, `process_token`).
    """
    try:
        answers = []
        for count in (1, max(len(prompt.greedy), 1)):
            status, answer = _post(f"{url}/completion", _body(prompt, count))
            if status != 200 or not isinstance(answer, dict):
                raise ValueError(f"status {status}")
            answers.append(answer)
        steps = answers[0].get("completion_probabilities") or []
        top = {int(one["id"]): finite(one["logprob"]) for one in steps[0]["top_logprobs"]} if steps else {}
        ids = [int(token) for token in answers[1]["tokens"]]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"{url}/completion: answers without ids and log probabilities for prompt {n} ({error!r})"
        ) from error
    if answers[1].get("stop_type") == "eos":
        ids += prompt.greedy[len(ids) :]
    return top, ids


def _by_text(golden: GoldenFiles, url: str, model: str) -> Check:
    """An OpenAI-compatible server: the largest log probabilities after each prompt that has a text."""
    compared: list[Compared] = []
    first: FirstBad | None = None
    given = [(n, prompt) for n, prompt in enumerate(golden.prompts) if prompt.text]
    if not given:
        raise InputError(f"{golden.folder}: has no prompt with a text, which {url} needs; write it with --prompts")
    for n, prompt in given:
        top = _largest(url, model, prompt)
        expected = np.sort(_log_softmax(golden, n))[::-1][: len(top)]
        gap = float(np.abs(expected - top).max())
        compared.append(Compared(name=f"log probabilities after prompt {n}", nmse=gap, tolerance=CLOSE))
        if first is None and gap > CLOSE:
            words = [", ".join(f"{value:.3f}" for value in values) for values in (expected, top)]
            first = FirstBad(
                prompt=n, position=len(prompt.tokens) - 1, point="logits", expected=words[0], found=words[1]
            )
    notes = [
        f"compared: the {TOP} largest log probabilities after each prompt, by size (largest difference instead of an NMSE): the "
        "server takes text and returns text, so that neither its tokens nor their ids are known"
    ]
    if len(given) < len(golden.prompts):
        notes.append(f"{len(golden.prompts) - len(given)} prompts have no text, and were left out")
    return Check(engine=f"server at {url}", compared=tuple(compared), first=first, notes=tuple(notes))


def _largest(url: str, model: str, prompt: GoldenPrompt) -> Doubles:
    """The largest log probabilities of the first token after a prompt's text, in descending order."""
    body = {"model": model, "prompt": prompt.text, "max_tokens": 1, "temperature": 0.0, "logprobs": TOP}
    status, answer = _post(f"{url}/v1/completions", body)
    try:
        values = [finite(value) for value in answer["choices"][0]["logprobs"]["top_logprobs"][0].values()]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        said = shortened(one_line(json.dumps(answer) if answer is not None else "nothing"), 160)
        raise InputError(
            f"{url}/v1/completions: returned no log probabilities (status {status}: {said}); expected an OpenAI-compatible "
            "server that was started with them"
        ) from None
    # Some servers add the token that was chosen to the ones asked for; two tokens of one text leave one.
    return np.array(sorted(values, reverse=True)[:TOP], np.float64)


def _log_softmax(golden: GoldenFiles, n: int) -> Doubles:
    """The log probabilities of the token after prompt n."""
    return log_softmax(golden.arrays[f"logits_{n}"][-1])


def _post(url: str, body: Mapping[str, Any]) -> tuple[int, Any]:
    """The status and the JSON of the answer, None if it is no JSON. Raises InputError if nothing answers."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with _DIRECT.open(request, timeout=SECONDS) as response:
            return int(response.status), _json(response.read(MOST_ANSWER))
    except urllib.error.HTTPError as error:
        return int(error.code), _json(error.read(MOST_ANSWER))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{url}: no server answers ({one_line(str(error))}); start it, or give another address"
        ) from error


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
