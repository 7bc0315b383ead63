"""Servers that are held to golden values: llama.cpp's own, and OpenAI-compatible ones."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np

from gguf_tools.errors import InputError
from gguf_tools.evaluation.golden.check import Check, Compared, FirstBad, check_greedy
from gguf_tools.evaluation.golden.read import GoldenFiles, GoldenPrompt, finite
from gguf_tools.evaluation.golden.values import Doubles
from gguf_tools.evaluation.metrics import log_softmax
from gguf_tools.runtime.silence import current_limit
from gguf_tools.sources.hub.addresses import has_user, is_server
from gguf_tools.sources.hub.threads import within
from gguf_tools.text import one_line, shortened

MOST_ANSWER = 1 << 26
"""Most bytes of a server's answer."""
TOP = 5
"""Largest log probabilities that are asked for."""


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the prompts are for the server that was named."""

    def redirect_request(self, *_: Any) -> None:
        """None, so that the redirect is answered as an error."""


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay())
"""Asks the given server itself, and no proxy."""
CLOSE = 0.02
"""Largest difference of log probabilities: servers run F16 caches, and print few digits."""
REFUSALS = (400, 401, 403, 413, 500, 503)
"""Statuses of a server that knows the address, and does not answer the request; its message says why."""
AROUND = 20
"""Characters of a text that are shown before and after the first that differs."""


def check_server(golden: GoldenFiles, url: str, model: str) -> Check:
    """Ask a server for the most probable next tokens after each prompt.

    llama.cpp's own server (`/completion` with `n_probs`) is given token ids, and returns ids; an OpenAI-compatible one
    (`/v1/completions` with `logprobs`) is given the prompt's text, and its log probabilities are compared by their size; if it
    returns none, its greedy text is compared. Raises InputError if there is no such server, or it refuses a prompt.
    """
    url = _address(url)
    status, answer = _post(f"{url}/completion", _body(golden.prompts[0], 1))
    if status == 200 and isinstance(answer, dict) and ("completion_probabilities" in answer or answer.get("tokens")):
        return _by_ids(golden, url)
    if status in REFUSALS and (said := _message(answer)):
        raise InputError(f"{url}/completion: the server refuses prompt 0 (status {status}: {said})")
    return by_text(golden, url, model)


def _address(url: str) -> str:
    """The address of a server, without slashes at its end. Raises InputError for one that no request can be sent to."""
    if has_user(url):
        raise InputError("--server has a user name in its address, which is not supported; expected http://HOST:PORT")
    if not is_server(url):
        raise InputError(f"{url}: is no address of a server; expected http://HOST:PORT")
    return url.rstrip("/")


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
        top, ids, said = _next_tokens(url, n, prompt)
        expected = _log_softmax(golden, n)
        if any(not 0 <= token < len(expected) for token in (*top, *ids)):
            raise InputError(
                f"{url}: has token ids outside the vocabulary of {len(expected)} tokens; is it this model?"
            )
        largest = np.sort(expected)[::-1]
        # The values must be those of the tokens, and the largest that there are.
        gaps = {
            token: max(abs(expected[token] - value), abs(largest[place] - value))
            for place, (token, value) in enumerate(sorted(top.items(), key=lambda pair: -pair[1]))
        }
        worst = max(gaps, key=lambda token: gaps[token], default=None)
        if worst is None:
            unsaid.append(str(n))
        else:
            compared.append(Compared(name=f"log probabilities after prompt {n}", nmse=gaps[worst], tolerance=CLOSE))
        if worst is not None and first is None and gaps[worst] > CLOSE:
            place = list(gaps).index(worst)
            words = f"{expected[worst]:.4f} for token {worst}, {largest[place]:.4f} as number {place + 1} by size"
            first = FirstBad(
                prompt=n, position=len(prompt.tokens) - 1, point="logits", expected=words, found=f"{top[worst]:.4f}"
            )
        total += said
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


def _next_tokens(url: str, n: int, prompt: GoldenPrompt) -> tuple[dict[int, float], list[int], int]:
    """The largest log probabilities of the token after a prompt by id, the ids of the greedy continuation, and how many of
    them the server returned.

    llama.cpp's server gives no log probabilities of a token that ends within a character, and stops after an end-of-text token,
    after which the golden tokens are taken as they are (`tools/server/server-context.cpp`, `process_token`).
    """
    try:
        answers = []
        for count in (1, max(len(prompt.greedy), 1)):
            status, answer = _post(f"{url}/completion", _body(prompt, count))
            if status != 200 or not isinstance(answer, dict):
                said = _message(answer) or "no JSON"
                raise InputError(f"{url}/completion: the server refuses prompt {n} (status {status}: {said})")
            answers.append(answer)
        steps = answers[0].get("completion_probabilities") or []
        top = {int(one["id"]): finite(one["logprob"]) for one in steps[0]["top_logprobs"]} if steps else {}
        ids = [int(token) for token in answers[1]["tokens"]]
        if prompt.greedy and not ids:
            raise ValueError("no tokens")
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise InputError(
            f"{url}/completion: answers without ids and log probabilities for prompt {n} ({shortened(repr(error), 160)}); "
            "expected llama.cpp's server with return_tokens and n_probs"
        ) from error
    returned = len(ids)
    if answers[1].get("stop_type") == "eos":
        ids += prompt.greedy[returned:]
    return top, ids, returned


def by_text(golden: GoldenFiles, url: str, model: str) -> Check:
    """An OpenAI-compatible server: the largest log probabilities after each prompt that has a text, or its greedy text."""
    given = [(n, prompt) for n, prompt in enumerate(golden.prompts) if prompt.text]
    if not given:
        raise InputError(f"{golden.folder}: has no prompt with a text, which {url} needs; write it with --prompts")
    notes = []
    if len(given) < len(golden.prompts):
        notes.append(f"{len(golden.prompts) - len(given)} prompts have no text, and were left out")
    compared: list[Compared] = []
    firsts: list[FirstBad] = []
    plain: list[str] = []
    unsaid: list[str] = []
    for n, prompt in given:
        _, top = _completed(url, model, prompt, 1)
        if top is None:
            (unsaid if prompt.continuation is None else plain).append(str(n))
            firsts += _other_text(n, prompt, _completed(url, model, prompt, max(len(prompt.greedy), 1))[0])
            continue
        expected = np.sort(_log_softmax(golden, n))[::-1][: len(top)]
        gap = float(np.abs(expected - top).max())
        compared.append(Compared(name=f"log probabilities after prompt {n}", nmse=gap, tolerance=CLOSE))
        if gap > CLOSE:
            words = [", ".join(f"{value:.3f}" for value in values) for values in (expected, top)]
            at = len(prompt.tokens) - 1
            firsts.append(FirstBad(prompt=n, position=at, point="logits", expected=words[0], found=words[1]))
    if compared:
        notes.insert(
            0,
            f"compared: the {TOP} largest log probabilities after each prompt, by size (largest difference instead of an NMSE): "
            "the server takes text and returns text, so that neither its tokens nor their ids are known",
        )
    if len(unsaid) == len(given):
        raise InputError(
            f"{url}: returns no log probabilities, and {golden.folder} has no text of a continuation to compare instead; start "
            "the server with log probabilities, or give other --prompts to tinyq golden"
        )
    if unsaid:
        notes.append(f"the server says nothing to compare after prompt {', '.join(unsaid)}")
    if plain:
        listed = ", ".join(map(str, plain))
        notes.insert(
            0, f"compared: the greedy text after prompt {listed}, of which the server returns no log probabilities"
        )
    return Check(
        engine=f"server at {url}", compared=tuple(compared), first=next(iter(firsts), None), notes=tuple(notes)
    )


def _other_text(n: int, prompt: GoldenPrompt, found: str) -> list[FirstBad]:
    """Where a server's greedy text is not the golden one, if that is known."""
    expected = prompt.continuation or ""
    if found.startswith((expected, expected.lstrip(" "))):  # some servers drop a space at the start
        return []
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), len(found))
    words = [repr(text[max(0, at - AROUND) : at + AROUND]) for text in (expected, found)]
    last = len(prompt.tokens) - 1
    said = f"{words[0]} from character {max(0, at - AROUND)} of the continuation"
    return [FirstBad(prompt=n, position=last, point="text", expected=said, found=words[1])]


def _completed(url: str, model: str, prompt: GoldenPrompt, count: int) -> tuple[str, Doubles | None]:
    """A server's greedy text of `count` tokens after a prompt's text, and the largest log probabilities of a single token in
    descending order.

    The latter are None if it returns none. They are asked for as OpenAI's completions are; llama.cpp's server answers in the
    form of chat completions, without those of a token that ends within a character.
    """
    body = {
        "model": model,
        "prompt": prompt.text,
        "max_tokens": count,
        "temperature": 0.0,
        "logprobs": TOP,
    }
    status, answer = _post(f"{url}/v1/completions", body)
    try:
        choice = answer["choices"][0]
        text, said = str(choice["text"]), choice.get("logprobs")
        if count > 1 or not said or said.get("content") == []:
            return text, None
        if "content" in said:
            values = [finite(one["logprob"]) for one in said["content"][0]["top_logprobs"]]
        else:
            values = [finite(value) for value in said["top_logprobs"][0].values()]
        if not values:
            return text, None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
        shown = _message(answer) or shortened(one_line(json.dumps(answer) if answer is not None else "nothing"), 160)
        raise InputError(
            f"{url}/v1/completions: returned no completion (status {status}: {shown}); expected an OpenAI-compatible server"
        ) from None
    # Some servers add the token that was chosen to the ones asked for; two tokens of one text leave one.
    return text, np.array(sorted(values, reverse=True)[:TOP], np.float64)


def _message(answer: Any) -> str:
    """The message of a server's error; "" if it has none."""
    error = answer.get("error") if isinstance(answer, dict) else None
    said = error.get("message") if isinstance(error, dict) else error
    return shortened(one_line(said), 200) if isinstance(said, str) else ""


def _log_softmax(golden: GoldenFiles, n: int) -> Doubles:
    """The log probabilities of the token after prompt n."""
    return log_softmax(golden.arrays[f"logits_{n}"][-1])


def _post(url: str, body: Mapping[str, Any]) -> tuple[int, Any]:
    """The status and the JSON of the answer, None if it is no JSON. Raises InputError if nothing answers within --timeout."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    limit = current_limit()

    def answered() -> tuple[int, Any]:
        try:
            with _DIRECT.open(request, timeout=limit) as response:
                return int(response.status), _json(_bounded(response, url))
        except urllib.error.HTTPError as error:
            if 300 <= error.code < 400 and (place := error.headers.get("Location")):
                raise InputError(
                    f"{url}: the server redirects to {shortened(one_line(place), 120)}; give the address of a server that answers"
                ) from error
            return int(error.code), _json(_bounded(error, url))

    try:
        return within(limit, answered)
    except TimeoutError as error:
        raise InputError(
            f"{url}: the server gave no complete answer within {limit:g} s; give a longer --timeout, or check the server"
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        said = shortened(one_line(str(error) or repr(error)), 160)
        raise InputError(f"{url}: no server answers ({said}); start it, or give another address") from error


def _bounded(response: Any, url: str) -> bytes:
    """The bytes of an answer. Raises InputError if there are more than an answer can have."""
    data = bytes(response.read(MOST_ANSWER + 1))
    if len(data) > MOST_ANSWER:
        raise InputError(f"{url}: the answer has more than {MOST_ANSWER >> 20} MiB; check the server")
    return data


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
