"""The public function `evaluate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast, get_args

from gguf_tools.api.checked import checked
from gguf_tools.api.options import adapters_of, at_least, card_options, one_of, refuse_card_options, refuse_of_suite
from gguf_tools.api.results.evaluation import EvaluateResult
from gguf_tools.errors import InputError, LlamaError
from gguf_tools.evaluation.prompts import load_prompts
from gguf_tools.evaluation.tables import ordered
from gguf_tools.evaluation.text_files import read_text
from gguf_tools.machine import MOST_COUNT, MOST_THREADS
from gguf_tools.progress import StageProgress
from gguf_tools.runtime.process import KVType, RuntimeOptions
from gguf_tools.sources.hub import Reading, local_source

SUITES = ("fidelity", "card", "all")
DTYPES = ("f32", "f64")
_FIDELITY_ONLY = {
    "--reference": None,
    "--lora": (),
    "--oracle": "auto",
    "--prompts": None,
    "--dtype": "f32",
    "--no-speed": True,
}


@checked
def evaluate(
    models: str | Path | Sequence[str | Path],
    *,
    reference: str | Path | None = None,
    lora: str | Path | Iterable[str | Path] = (),
    oracle: str = "auto",
    suite: str = "fidelity",
    prompts: str | Path | None = None,
    text: str | Path | None = None,
    tokens: int = 100,
    kv_type: str = "f32",
    flash_attn: bool = False,
    gpu_layers: int = 0,
    context: int | None = None,
    dtype: str = "f32",
    speed: bool = True,
    questions: str | Path = "general",
    repeat_set: int = 1,
    held_out: str | Path | None = None,
    weights: Mapping[str, float] | None = None,
    thinking: bool = False,
    answer_tokens: int = 128,
    think_tokens: int = 1024,
    threads: int | None = None,
    progress: StageProgress | None = None,
) -> EvaluateResult:
    """Run each GGUF with llama.cpp, in a child process, and score it: `tinyq eval`.

    Suite `fidelity` compares it with the torch reference, built from `reference` (a checkpoint or a GGUF), else from the
    checkpoint recorded in the file or in its folder, if unchanged, else from the file's own tensors. `lora` names adapters that
    are merged into `reference`, as in `convert`; by default those that the file records. `oracle` is independent
    code to check the reference against: `transformers`, MODULE:FUNCTION, a file of golden logits, `none`, or `auto`
    (transformers on one short prompt, if it supports the source). Suite `card` asks questions with the model's own chat template
    (options `questions` to `think_tokens`) and gives a score from 0 to 100; `all` runs both. Several models are ordered best
    first; files on which llama.cpp failed are in the result's `failed`. The result's `require` checks thresholds.

    `context` limits sequences, in tokens, and is the length of the pieces in which suite `fidelity` compares `text` (512 without
    it); long pieces are compared block by block, in memory that their length hardly changes.

    `progress` is called with (stage, done, total); of several files, the stage begins with the file's name and number.

    Raises InputError or CheckpointError for a broken file or an invalid option, LlamaError if llama.cpp fails on every file.
    """
    one_of("--suite", suite, SUITES)
    one_of("--kv-type", kv_type, get_args(KVType))
    one_of("--dtype", dtype, DTYPES)
    at_least("--tokens", tokens)
    at_least("--context", context, 1, MOST_COUNT)
    at_least("--threads", threads, 1, MOST_THREADS)
    if suite == "card":
        refuse_of_suite(_FIDELITY_ONLY, (reference, lora, oracle, prompts, dtype, speed), "fidelity")
    if suite == "fidelity":
        given = (questions, repeat_set, held_out, weights, thinking, answer_tokens, think_tokens)
        refuse_card_options(given)
    named = [models] if isinstance(models, str | Path) else list(models)
    paths = [local_source(model, Reading.WHOLE) for model in named]
    if not paths:
        raise InputError("there is no file to score; give at least one GGUF")
    twice = next((path for n, path in enumerate(paths) if path in paths[:n]), None)
    if twice:
        raise InputError(f"{twice}: is given twice; give each file once")
    # torch, which the reference runs on, takes seconds to load.
    from gguf_tools.evaluation.run import FidelityRequest, FileFailure, measure_files
    from surgery.donors import operate_recorded

    fidelity = asked = None
    if suite != "card":
        fidelity = FidelityRequest(
            reference=None if reference is None else local_source(reference, Reading.WHOLE),
            adapters=adapters_of(lora),
            operate=operate_recorded,
            dtype=dtype,
            prompts=load_prompts(Path(prompts)) if prompts else None,
            text=read_text(Path(text)) if text else None,
            n_generate=tokens,
            speed=speed,
            oracle=oracle,
        )
    if suite != "fidelity":
        asked = card_options(
            questions=questions,
            repeat_set=repeat_set,
            held_out=held_out,
            weights=weights,
            thinking=thinking,
            answer_tokens=answer_tokens,
            think_tokens=think_tokens,
            text=text,
            completion_tokens=tokens,
        )
    options = RuntimeOptions(
        kv_type=cast(KVType, kv_type),
        flash_attn=flash_attn,
        gpu_layers=gpu_layers,
        threads=threads,
        context_length=context,
    )
    failed: list[FileFailure] | None = [] if len(paths) > 1 else None
    scores = list(measure_files(paths, options, fidelity, asked, progress, failed))
    result = EvaluateResult(tuple(ordered(scores)), tuple(failed or ()))
    if not scores:
        raise LlamaError(result.failures)
    return result
