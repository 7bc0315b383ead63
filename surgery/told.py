"""The surgery that a GGUF records, told for the readers of its model card."""

from __future__ import annotations

from gguf_tools.errors import InputError
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import GGUFHeader
from gguf_tools.formats.gguf.surgery import recorded_surgery
from gguf_tools.publishing.model_card.surgery import SurgeryTold
from gguf_tools.sources.checkpoint import BY_FILE
from surgery.algebra import Original, Stack
from surgery.draw import draw
from surgery.recipe import MAX_LAYERS, Recipe, parse_file_text, parse_text

UNKNOWN = "·"
"""The letter of a layer of the original that is not in the file, unless all of the file's layers are of one type."""


def tell_surgery(header: GGUFHeader, layers: int, pattern: str | None) -> SurgeryTold | None:
    """The surgery on the file's checkpoint (its recipe is in the file) and on the file; None if there was none.

    `layers` is the file's number of layers, `pattern` their letters if they are known. Of a recipe that cannot be parsed,
    which another program wrote, only the text is told.
    """
    try:
        return _told(header, layers, pattern)
    except InputError:
        text = "; ".join(str(header.get(key)) for key in (keys.SOURCE_RECIPE, keys.SURGERY) if header.get(key))
        return SurgeryTold(recipe=text, sentences=(), donors=(), before=None, after=layers, drawing="")


def _told(header: GGUFHeader, layers: int, pattern: str | None) -> SurgeryTold | None:
    """As `tell_surgery`. Raises InputError for a recipe that cannot be parsed."""
    recipe, donors = Recipe(), []
    earlier = header.get(keys.SOURCE_RECIPE)
    if isinstance(earlier, str):
        recipe = parse_file_text(earlier, header.path)
        donors += [_donor(donor.name, donor.path.name, donor.digest or "") for donor in recipe.donors]
    recorded = recorded_surgery(header)
    if recorded:
        recipe = recipe.then(parse_text(recorded.text))
        donors += [_donor(donor.name, donor.path.name, donor.digest) for donor in recorded.donors]
    if not recipe:
        return None
    before = _count_before(recipe, layers)
    stack = _stack(recipe, before) if before is not None else None
    return SurgeryTold(
        recipe=str(recipe),
        sentences=tuple(op.sentence for op in recipe.ops),
        donors=tuple(dict.fromkeys(donors)),
        before=before,
        after=layers,
        drawing="" if stack is None or before is None else _drawing(stack, before, pattern),
    )


def _donor(name: str, place: str, digest: str) -> str:
    return f"{name} is {place}" + (f" (SHA-256 {digest.removeprefix(BY_FILE)[:16]}…)" if digest else "")


def _count_before(recipe: Recipe, after: int) -> int | None:
    """The number of layers that the recipe makes `after` of: the stated one, or the only one that gives it."""
    if recipe.layers is not None:
        return recipe.layers if _length(recipe, recipe.layers) == after else None
    # Most ops change the number by a constant; of a path, any sufficient number gives the same.
    found = [count for count in range(1, min(2 * after + 64, MAX_LAYERS)) if _length(recipe, count) == after]
    return found[0] if len(found) == 1 else None


def _length(recipe: Recipe, count: int) -> int | None:
    stack = _stack(recipe, count)
    return None if stack is None else len(stack)


def _stack(recipe: Recipe, count: int) -> Stack | None:
    names = {origin.source for op in recipe.ops for origin in op.donors}
    try:
        return recipe.apply(count, dict.fromkeys(names, MAX_LAYERS))
    except InputError:
        return None


def _drawing(stack: Stack, count: int, pattern: str | None) -> str:
    """Old and new layers side by side; the old layers' letters are those of the new ones that they became."""
    new = list(pattern) if pattern and len(pattern) == len(stack) else [UNKNOWN] * len(stack)
    usual = new[0] if len(set(new)) == 1 else UNKNOWN
    old = [usual] * count
    for layer, letter in zip(stack, new, strict=True):
        if isinstance(layer, Original) and not layer.source:
            old[layer.index] = letter
    return draw(stack, count, old, new)
