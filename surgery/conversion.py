"""Layer surgery on the way from a checkpoint to a GGUF."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.conversion.request import Operation
from gguf_tools.errors import InputError
from gguf_tools.formats.gguf.surgery import RecordedSource
from gguf_tools.formats.gguf.values import Metadata
from gguf_tools.model.spec import Model
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.tokenizers.vocabulary import load_tokenizer
from surgery.donors import operate_with_donors, vocabulary_differences
from surgery.recipe import Recipe


def operation_of(recipe: Recipe, source: Path, tokenizer: Path | None, *, digests: bool) -> Operation:
    """The change that a conversion of `source`, with the tokenizer in its folder or in `tokenizer`, makes by the recipe.

    Without `digests` the donors are not read for theirs, which are empty then.
    """
    donors = [donor.checked() if digests else donor for donor in recipe.donors]
    sources = tuple(RecordedSource(donor.name, donor.path, donor.digest or "") for donor in donors)

    def apply(model: Model) -> Model:
        made = operate_with_donors(model, recipe)
        vocabulary = _vocabulary(tokenizer or source, source, model.spec.vocab_size) if donors else {}
        for donor in donors:
            theirs = _vocabulary(donor.path, donor.path, model.spec.vocab_size)
            if vocabulary and theirs:
                vocabulary_differences(vocabulary, theirs, donor.name).refuse(donor.name, donor.path)
        return made

    return Operation(str(recipe), apply, sources)


def _vocabulary(folder: Path, checkpoint: Path, vocab_size: int) -> Metadata:
    """The tokenizer's metadata; empty where there is none that can be read."""
    opened = open_checkpoint(checkpoint)
    place = folder if folder.is_dir() else folder.parent
    try:
        return load_tokenizer(place, vocab_size, config=opened.config, drop_tokens=True, approximate=True).metadata()
    except InputError:
        return {}
