"""The public function `describe`."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.api.checked import checked
from gguf_tools.api.options import at_least, optional_path
from gguf_tools.api.results.description import DescribeResult
from gguf_tools.description.describe import Found, find, text_of
from gguf_tools.description.solver.moves import starts
from gguf_tools.errors import InputError
from gguf_tools.formats.output import atomic_output, check_outputs
from gguf_tools.formats.watch import Watch
from gguf_tools.machine import MOST_COUNT
from gguf_tools.progress import StageProgress
from gguf_tools.sources.checkpoint import Checkpoint, open_checkpoint
from gguf_tools.sources.hub import Reading, local_source
from gguf_tools.sources.inputs import source_files
from gguf_tools.sources.restore import restore


@checked
def describe(
    checkpoint: str | Path,
    out: str | Path | None = None,
    *,
    golden: str | Path | None = None,
    oracle: str | None = None,
    context_length: int | None = None,
    force: bool = False,
    progress: StageProgress | None = None,
) -> DescribeResult:
    """Describe a checkpoint that no family knows: which tensor has which role, and how the decoder computes: `tinyq describe`.

    Names and shapes tell the structure; what they do not tell has a usual value, with the other candidates in comments. With
    `golden` (a .npz or .safetensors file of token sequences and their logits) or `oracle` (MODULE:FUNCTION, the model's own
    code) it is solved: the description is the one under which the torch reference computes these logits. The result's `text`
    is the description; with `out` it is written there, unless evidence was given that no description explains.

    `progress` is called with (stage, done, total).

    Raises InputError or a subclass for a checkpoint whose tensors match no decoder, and for unusable evidence.
    """
    at_least("--context-length", context_length, 1, MOST_COUNT)
    if golden is not None and oracle is not None:
        raise InputError("--golden and --oracle exclude each other; give one of them")
    path, target = local_source(checkpoint, Reading.WHOLE), optional_path(out)
    read = [*source_files(path), *([Path(golden)] if golden is not None else [])]
    if target is not None:
        check_outputs({"OUT": target}, read, force=force)
    watch = Watch.over(read)
    opened = restore(open_checkpoint(path, described=True))
    if golden is None and oracle is None:
        found = find(opened, context=context_length)
        text = text_of(opened, found, starts(found.assignment)[0], solved=False)
        result = DescribeResult(path=path, text=text, solution=None, left=found.left)
    else:
        result = _solved(opened, path, optional_path(golden), oracle, context_length, progress)
    watch.check()
    if target is not None and result.usable:
        with atomic_output(target, force=force) as stream:
            stream.write(result.text.encode("utf-8"))
    return result


def _solved(
    opened: Checkpoint,
    path: Path,
    golden: Path | None,
    oracle: str | None,
    context: int | None,
    progress: StageProgress | None,
) -> DescribeResult:
    """The description solved from golden logits."""
    # torch, which the reference runs on, takes seconds to load.
    from gguf_tools.description.build import build
    from gguf_tools.description.solver.evidence import Evidence, evidence, solving_sequences
    from gguf_tools.description.solver.proof import prove
    from gguf_tools.description.solver.solve import solve
    from gguf_tools.description.toml import parse_description
    from gguf_tools.evaluation.golden_logits import read_golden
    from gguf_tools.evaluation.oracle import called

    found: Found
    given: Evidence
    if golden is not None:
        read = read_golden(golden)
        given = evidence(
            [one.tokens for one in read], [one.logits for one in read], [one.dtype for one in read], str(golden)
        )
        found = find(opened, given.logits[0].shape[1], context)
    else:
        found = find(opened, None, context)
        sequences = solving_sequences(found.assignment.structure.vocabulary, found.context)
        given = evidence(sequences, *called(oracle or "", sequences), f"oracle {oracle}")
    solution = solve(found.assignment, opened, given, found.context, progress or (lambda *_: None))
    text = text_of(opened, found, solution.choices, solved=True, head=solution.lines)
    if solution.solved:
        solution = prove(solution, build(parse_description(text, path / "description"), opened), given)
    return DescribeResult(path=path, text=text, solution=solution, left=found.left)
