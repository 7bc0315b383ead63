"""Log-likelihoods of multiple-choice questions through lm-evaluation-harness: `tinyq`, against llama-cpp-python's server.

The harness's own `gguf` model asks the server for one continuation at a time (`/v1/completions` with `echo` and `logprobs`);
`tinyq` decodes in a child process, shared prefixes once and many continuations in a batch. Both get the same requests, the same
F32 file, an F32 cache, no flash attention and as many threads, in turns in one run; the answers are compared. Needs
`pip install lm_eval 'llama-cpp-python[server]'`.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from gguf_tools import convert
from gguf_tools.machine import physical_cores
from gguf_tools.tables import text_table

BUNDLED = Path(__file__).resolve().parents[1] / "gguf_tools" / "bundled"
TEXT = "the cat sat on a mat and her old dog ran in the park under the sun with a friend who had a blue boat near the house"
WORDS = TEXT.split()
Answers = list[tuple[float, bool]]


def requests(questions: int, shots: int, choices: int) -> list[tuple[str, str]]:
    """(context, continuation): each question after the same worked examples, with several short answers."""
    examples = "".join(f"Question: {_text(n, 9)}?\nAnswer: {_text(n + 1, 3)}\n\n" for n in range(shots))
    return [
        (f"{examples}Question: {_text(100 + n, 12)}?\nAnswer:", f" {_text(1000 + 7 * n + choice, 4)}")
        for n in range(questions)
        for choice in range(choices)
    ]


def _text(seed: int, count: int) -> str:
    return " ".join(WORDS[(seed * 7 + 11 * n + seed * n) % len(WORDS)] for n in range(count))


@contextmanager
def server(path: Path, threads: int, context: int) -> Iterator[str]:
    """llama-cpp-python's server with the settings of a measurement; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "model": path, "port": port, "n_threads": threads, "n_threads_batch": threads, "n_ctx": context,
        "logits_all": True, "type_k": 0, "type_v": 0, "flash_attn": False, "verbose": False,
    }  # fmt: skip
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    child = subprocess.Popen(
        [sys.executable, "-m", "llama_cpp.server", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            if child.poll() is not None:
                raise SystemExit("the server ended; is llama-cpp-python[server] installed?")
            with suppress(OSError), urllib.request.urlopen(f"{address}/v1/models", timeout=5):
                break
            time.sleep(0.1)
        yield address
    finally:
        child.kill()
        child.wait()


def timed(ask: Callable[[], Answers]) -> tuple[float, Answers]:
    """Seconds on the wall, and the answers."""
    start = time.perf_counter()
    answers = ask()
    return time.perf_counter() - start, answers


def measure(path: Path, asked: Sequence[tuple[str, str]], repeat: int, threads: int, context: int | None) -> None:
    """Ask all in turns, and print medians, ratios and the largest difference of an answer."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.gguf import GGUFLM

    from gguf_tools.evaluation.harness import TinyqLM

    instances = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(asked)]
    ours = TinyqLM(path, threads=threads, max_length=context)
    with server(path, threads, ours.max_length) as address:
        theirs = GGUFLM(base_url=address)
        ways: dict[str, Callable[[], Answers]] = {
            "tinyq": lambda: ours.loglikelihood(instances, disable_tqdm=True),
            "tinyq, one request at a time": lambda: [
                ours.loglikelihood([one], disable_tqdm=True)[0] for one in instances
            ],
            "server, one request at a time": lambda: theirs.loglikelihood(instances, disable_tqdm=True),
        }
        for ask in ways.values():
            ask()  # loads what is loaded at first use
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        answers: dict[str, Answers] = {}
        for _ in range(repeat):
            for name, ask in ways.items():
                took, answers[name] = timed(ask)
                seconds[name].append(took)
    ours.close()
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    slowest = medians["server, one request at a time"]
    rows = [
        (name, f"{took:.2f}", f"{len(asked) / took:.1f}", f"{slowest / took:.1f} ×") for name, took in medians.items()
    ]
    tokens = sum(len(ours_tokens) for ours_tokens in (context + continuation for context, continuation in asked))
    print(f"{path.name}: {len(asked)} requests, {tokens:,} characters, {threads} threads, medians of {repeat}")
    print(text_table(("way", "seconds", "requests/s", "speed"), rows, "<>"))
    one = answers["tinyq"]
    for name in list(ways)[1:]:
        largest = max(abs(a[0] - b[0]) for a, b in zip(one, answers[name], strict=True))
        print(f"largest difference of a log-likelihood from {name}: {largest:.1e}")


def main() -> None:
    """Measure the bundled dense model, or a file."""
    parser = argparse.ArgumentParser(prog=f"python -m {' '.join(sys.argv[:1])}", description=__doc__)
    parser.add_argument("--model", type=Path, help="a GGUF; default: the bundled dense model in F32")
    parser.add_argument("--context", type=int, help="context length; default: the training context")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--shots", type=int, default=3)
    parser.add_argument("--choices", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=physical_cores())
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    asked = requests(options.questions, options.shots, options.choices)
    if options.model:
        measure(options.model, asked, options.repeat, options.threads, options.context)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense-f32.gguf"
        convert(BUNDLED / "dense", path, type="f32")
        measure(path, asked, options.repeat, options.threads, options.context)


if __name__ == "__main__":
    main()
