"""Writes a publication: all types from one reading, measured together, with card, Modelfiles and checksums, in one folder."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from gguf_tools.conversion.write import Converted, Prove, execute_all
from gguf_tools.errors import TinyqError
from gguf_tools.formats.digest import FileDigest
from gguf_tools.formats.output import Check, atomic_folder, atomic_output
from gguf_tools.formats.temporary import scratch_folder
from gguf_tools.progress import ByteProgress, StageProgress
from gguf_tools.publishing.folder import CARD, CHECKSUMS, checksums_text
from gguf_tools.publishing.measure import Measured, Suites, measure_together
from gguf_tools.publishing.model_card import CardFacts, card_page
from gguf_tools.publishing.model_card.facts import card_file, facts_of_card
from gguf_tools.publishing.model_card.front_matter import checked_front_matter
from gguf_tools.publishing.model_card.published import Published
from gguf_tools.publishing.model_card.surgery import TellSurgery
from gguf_tools.publishing.plan import PublicationPlan
from gguf_tools.runtime.process import RuntimeOptions


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A written publication: its folder, SHA-256 by name of its files, and what was measured."""

    folder: Path
    digests: dict[str, str]
    written: tuple[Converted, ...]
    measured: tuple[Measured, ...]
    facts: CardFacts
    notes: tuple[str, ...]


def write_publication(
    plan: PublicationPlan,
    out: Path,
    suites: Suites,
    options: RuntimeOptions,
    tell_surgery: TellSurgery,
    *,
    force: bool = False,
    threads: int = 1,
    allow_nonfinite: bool = False,
    prove_header: Prove | None = None,
    check: Check | None = None,
    writing: ByteProgress = lambda _: None,
    progress: StageProgress | None = None,
) -> Publication:
    """Write the folder `out`, which appears when all is measured and complete.

    Errors as `execute_all`, `measure_together` and `atomic_folder`; they name the files as they would have lain in `out`.
    """
    # Beside the folder rather than in it: files cannot be written atomically in a folder that is itself an output.
    with scratch_folder(out.with_name(f"{out.name}-in-progress")) as work, _named_in(work, out):
        paths = [work / name for name in plan.names]
        written = execute_all(
            list(zip(plan.conversions, paths, strict=True)),
            threads=threads,
            progress=writing,
            prove_header=prove_header,
            allow_nonfinite=allow_nonfinite,
            home=out,
        )
        measured, chat = measure_together(paths, suites, options, work, progress)
        files = [
            card_file(path, path.name, path.name, found.scores, found.memory, tell_surgery)
            for path, found in zip(paths, measured, strict=True)
        ]
        facts = facts_of_card(files, chat, base_models=plan.base_models, quantized_by=plan.quantized_by)
        published = Published(
            repository=plan.repository,
            tags=plan.tags,
            digests=tuple(found.digest for found in measured),
            modelfiles=plan.modelfiles,
            source=plan.source,
            imatrix=plan.matrix_name,
        )
        texts = {name: chat.modelfile.at(file) for name, file in zip(plan.modelfiles, plan.names, strict=True)}
        texts[CARD] = card_page(facts, None, published=published)
        digests = dict(zip(plan.names, published.digests, strict=True))
        for name, text in texts.items():
            digests[name] = _put(work / name, BytesIO(text.encode("utf-8", errors="replace")))
        if plan.imatrix and plan.matrix_name:
            with plan.imatrix.open("rb") as stream:
                digests[plan.matrix_name] = _put(work / plan.matrix_name, stream)
        digests[CHECKSUMS] = _put(work / CHECKSUMS, BytesIO(checksums_text(digests).encode()))
        with atomic_folder(out, force=force, check=check, marks=(CHECKSUMS,)) as folder:
            for name in digests:
                os.rename(work / name, folder / name)
    places = [out / name for name in plan.names]
    return Publication(
        folder=out,
        digests=digests,
        written=tuple(replace(one, path=place) for one, place in zip(written, places, strict=True)),
        measured=tuple(_at(found, place) for found, place in zip(measured, places, strict=True)),
        facts=facts,
        notes=checked_front_matter(facts)[1],
    )


def _put(path: Path, content: BinaryIO) -> str:
    """Write a file; returns its SHA-256."""
    with atomic_output(path) as stream:
        shutil.copyfileobj(content, stream)
    digest = FileDigest()
    digest.add_file(path)
    return digest.hexdigest()


def _at(found: Measured, place: Path) -> Measured:
    """The measurements, with the path at which the file lies now."""
    scores = found.scores
    model = replace(scores.model, path=str(place))
    evaluation = scores.evaluation and replace(scores.evaluation, model=model)
    return replace(found, scores=replace(scores, model=model, evaluation=evaluation))


@contextlib.contextmanager
def _named_in(work: Path, out: Path) -> Iterator[None]:
    """Errors name files in `out` instead of those in the folder where they are made."""
    try:
        yield
    except TinyqError as error:
        message = str(error).replace(f"{work.resolve()}{os.sep}", f"{out}{os.sep}").replace(str(work), str(out))
        if message == str(error):
            raise
        raise type(error)(message) from error
