"""`tinyq card`: write a model card, and an Ollama Modelfile, for quantized files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gguf_tools.commands.card_options import CARD_OPTION_NAMES, card_options, page_options, parsed_card_options
from gguf_tools.commands.common import (
    check_outputs,
    examples,
    output_options,
    refuse_given,
    show,
    stage_bars,
    takes_stdout,
    timeout_option,
    write_json,
)
from gguf_tools.commands.engine_options import engine_options
from gguf_tools.commands.sources import whole_source
from gguf_tools.commands.values import FilePath, Text

CARD = "README.md"
MODELFILE = "Modelfile"


@click.command("card", epilog=examples("card hf/ q8_0.gguf q4_k_m.gguf --modelfile"))
@click.argument("source", type=whole_source())
@click.argument("files", nargs=-1, required=True, metavar="FILES…", type=FilePath())
@click.option(
    "--out",
    type=FilePath(),
    metavar="FILE",
    help=f"The model card to write; by default {CARD} in the first file's folder.",
)
@click.option(
    "--modelfile", is_flag=True, help=f"Also write an Ollama {MODELFILE} for the first file, in the card's folder."
)
@click.option(
    "--baseline",
    "baselines",
    type=FilePath(),
    multiple=True,
    metavar="FILE",
    help="Compare the first of FILES with this GGUF (the original, an earlier version) on the same questions; repeatable.",
)
@click.option(
    "--study",
    type=Text(),
    metavar="STUDY",
    help="Add the leaderboard of a search (tinyq search), by its file or storage URL.",
)
@click.option("--study-name", type=Text(), metavar="NAME", help="Which study, where STUDY holds several.")
@click.option(
    "--base-model", type=Text(), metavar="OWNER/NAME", help="Hub id of the model that the files were converted from."
)
@page_options
@engine_options
@timeout_option
@card_options
@output_options
def card(
    source: Path,
    files: tuple[Path, ...],
    out: Path | None,
    modelfile: bool,
    baselines: tuple[Path, ...],
    study: str | None,
    study_name: str | None,
    base_model: str | None,
    quantized_by: str | None,
    suite: str,
    context: int | None,
    kv_type: Any,
    flash_attn: bool,
    gpu_layers: int,
    force: bool,
    threads: int | None,
    json_path: str | None,
    quiet: bool,
    **asked: Any,
) -> None:
    """Measure FILES, converted from SOURCE, and write a model card that the hub accepts.

    It states each file's measured bits per weight, size, error against SOURCE, memory and score, the layer surgery and other
    provenance from its header, and how to use it. Anything unknown or not measured is left out.
    """
    from gguf_tools.evaluation.run import FidelityRequest
    from gguf_tools.formats.output import atomic_outputs
    from gguf_tools.formats.watch import Watch
    from gguf_tools.publishing.model_card import card_page, gather
    from gguf_tools.publishing.model_card.front_matter import checked_front_matter
    from gguf_tools.runtime.process import RuntimeOptions
    from gguf_tools.sources.inputs import source_files
    from surgery.donors import operate_recorded
    from surgery.told import tell_surgery

    if suite not in ("card", "all"):
        refuse_given(("baselines", *CARD_OPTION_NAMES), "needs --suite card or all")
    if study is None:
        refuse_given(("study_name",), "needs --study")
    found = "" if study is None else _search_section(study, study_name)
    page = out or files[0].parent / CARD
    second = page.parent / MODELFILE if modelfile else None
    outputs = [path for path in (page, second) if path]
    check_outputs({"--json": json_path}, force=force, outputs={"--out": page, "--modelfile": second})
    watch = Watch.over(file for path in (source, *files, *baselines) for file in source_files(path))
    with stage_bars(quiet, files[0].name if len(files) == 1 else "") as progress:
        facts = gather(
            source,
            files,
            page.parent,
            RuntimeOptions(kv_type=kv_type, flash_attn=flash_attn, gpu_layers=gpu_layers, threads=threads),
            tell_surgery,
            baselines=baselines,
            fidelity=FidelityRequest(reference=source, operate=operate_recorded, speed=False)
            if suite in ("fidelity", "all")
            else None,
            card=parsed_card_options(**asked) if suite in ("card", "all") else None,
            context=context,
            base_model=base_model,
            quantized_by=quantized_by,
            progress=progress,
        )
    _, notes = checked_front_matter(facts)
    texts = [text.encode("utf-8", errors="replace") for text in (card_page(facts, second, found), facts.modelfile.text)]
    sizes = [(path, len(text)) for path, text in zip(outputs, texts, strict=False)]
    with atomic_outputs(sizes, force=force, check=watch.check) as streams:
        for stream, text in zip(streams, texts, strict=False):
            stream.write(text)
    write_json(
        {
            "outputs": [str(path) for path in outputs],
            "models": [file.measured.as_dict() | {"memory": vars(file.memory)} for file in facts.files],
            "baselines": [file.measured.as_dict() | {"memory": vars(file.memory)} for file in facts.baselines],
            "modelfile": {"template": facts.modelfile.layout is not None, "reason": facts.modelfile.reason},
            "notes": list(notes),
        },
        json_path,
        force=force,
    )
    if not quiet and not takes_stdout(json_path):
        for note in notes:
            show(f"note: {note}")
        for path in outputs:
            show(f"wrote {path}")
        if second and facts.modelfile.reason:
            show(f"{second} has no TEMPLATE: {facts.modelfile.reason}")


def _search_section(study: str, name: str | None) -> str:
    """The section on a study; InputError where it is not there."""
    from surgery.search.leaderboard import read_board
    from surgery.search.ledger import Ledger
    from surgery.search.storage import storage_url
    from surgery.search.told import search_section

    return search_section(read_board(Ledger.open(storage_url(study), name)))
