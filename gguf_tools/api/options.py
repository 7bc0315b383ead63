"""Checking the arguments of the public functions, and converting them to the types that the packages use.

Errors name an argument by its command-line option.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_tools.allocation.target import SizeTarget
from gguf_tools.errors import BITS, InputError
from gguf_tools.progress import ByteProgress, StageProgress
from gguf_tools.sources.adapters.adapter import GivenAdapter, parse_adapter
from gguf_tools.sources.hub import Reading, local_source
from gguf_tools.text import expected, shortened
from quant.options import Override, TypeOptions, writable_type

if TYPE_CHECKING:
    from gguf_tools.evaluation.card.suite import CardOptions
    from surgery.recipe import Recipe

TensorTypes = Mapping[str, str] | Iterable[str] | str
"""Types by regular expression: a mapping, or strings REGEX=TYPE; the last that matches a tensor's name wins."""

_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?) *(?P<unit>[KMGT]?)(?P<binary>i?)B?", re.IGNORECASE)


def optional_path(path: str | Path | None) -> Path | None:
    """`path` as a Path, or None."""
    return None if path is None else Path(path)


def at_least(option: str, value: int | None, least: int = 1, most: int | None = None) -> None:
    """Raise InputError unless `value` is None or an integer from `least` to `most`."""
    if value is None:
        return
    if type(value) is not int or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{option} is {value!r}; expected an integer {bounds}")


def one_of(option: str, value: str, known: Sequence[str]) -> None:
    """Raise InputError unless `value` is one of `known`."""
    if value not in known:
        raise InputError(f"{option} is {value!r}; {expected(str(value), known)}")


def adapters_of(lora: str | Path | Iterable[str | Path]) -> tuple[GivenAdapter, ...]:
    """The adapters to merge, from folders, names on the hub, or strings of these with @SCALE; those on the hub are downloaded.

    Raises InputError for a scale that is not a finite number, HubError for a name that cannot be read from the hub.
    """
    listed = [lora] if isinstance(lora, str | Path) else list(lora)
    return tuple(
        GivenAdapter(local_source(one, Reading.WHOLE)) if isinstance(one, Path) else parse_adapter(one)
        for one in listed
    )


def type_options(
    tensor_types: TensorTypes, output_type: str | None, embedding_type: str | None, pure: bool
) -> TypeOptions:
    """The user's changes to a type recipe. Raises InputError for an invalid regex or a type that cannot be written."""
    if isinstance(tensor_types, Mapping):
        texts = [f"{pattern}={name}" for pattern, name in tensor_types.items()]
    else:
        texts = [tensor_types] if isinstance(tensor_types, str) else list(tensor_types)
    return TypeOptions(
        pure=pure,
        output_type=writable_type(output_type) if output_type else None,
        embedding_type=writable_type(embedding_type) if embedding_type else None,
        overrides=tuple(map(Override.parse, texts)),
    )


def size_target(
    target_bpw: float | None,
    target_size: str | int | None,
    calibration: str | Path | None,
    sensitivity: str | Path | None = None,
) -> SizeTarget | None:
    """The requested size, or None. Raises InputError if both are given or the number is not positive and finite."""
    if target_bpw is None and target_size is None:
        if sensitivity is not None:
            raise InputError("--sensitivity needs --target-bpw or --target-size; give one of them")
        return None
    if target_bpw is not None and target_size is not None:
        raise InputError("--target-bpw and --target-size exclude each other; give one of them")
    BITS.check("--target-bpw", target_bpw)
    size = None if target_size is None else byte_count(target_size, "--target-size")
    return SizeTarget(target_bpw, size, optional_path(calibration), optional_path(sensitivity))


def byte_count(size: str | int, option: str) -> int:
    """Bytes from a number or a string such as 500M, 1.5G or 2GiB (powers of 1000; with an i, of 1024). Raises InputError."""
    match = _SIZE.fullmatch(str(size).strip())
    if not match or (match["binary"] and not match["unit"]):
        raise InputError(f"{option} is {size!r}; expected a size such as 500M, 1.5G or 2GiB")
    power = " KMGT".index(match["unit"].upper() or " ")
    exact = float(match["number"]) * (1024 if match["binary"] else 1000) ** power
    if exact >= 1 << 63:
        raise InputError(f"{option} is {shortened(str(size))!r}; expected less than 2^63 bytes")
    count = int(exact)
    if count < 1:
        raise InputError(f"{option} is {size!r}; expected at least one byte")
    return count


Donors = Mapping[str, "str | Path"]
"""Other models that a recipe takes layers from: name in the recipe → path."""


def recipe_of(given: str | Path | Recipe, donors: Donors | None = None) -> Recipe:
    """A surgery recipe from itself, from text such as `swap(1:3) + delete(5)`, or from a bundled recipe's name or a TOML file.

    Raises InputError for a donor that the recipe does not use, and for one that it uses but that is not given.
    """
    from surgery.recipe import Recipe, load_recipe, read_file
    from surgery.sources import Donor

    if not isinstance(given, Recipe):
        given = read_file(given) if isinstance(given, Path) else load_recipe(given)
    return given.with_donors(Donor(name, local_source(path)) for name, path in (donors or {}).items())


def card_options(
    *,
    questions: str | Path,
    repeat_set: int,
    held_out: str | Path | None,
    weights: Mapping[str, float] | None,
    thinking: bool,
    answer_tokens: int,
    think_tokens: int,
    text: str | Path | None = None,
    completion_tokens: int = 100,
) -> CardOptions:
    """The options of the card suite. Raises InputError for a broken file or an unknown component of the score."""
    from gguf_tools.evaluation.card.parts import checked_weights
    from gguf_tools.evaluation.card.questions import choose
    from gguf_tools.evaluation.card.suite import CardOptions

    at_least("--repeat-set", repeat_set)
    at_least("--answer-tokens", answer_tokens)
    at_least("--think-tokens", think_tokens)
    return CardOptions(
        choice=choose(str(questions), repeat_set, None if held_out is None else str(held_out), optional_path(text)),
        thinking=thinking,
        answer_tokens=answer_tokens,
        think_tokens=think_tokens,
        completion_tokens=completion_tokens,
        weights=checked_weights(dict(weights or {})),
    )


CARD_DEFAULTS = {
    "--questions": "general",
    "--repeat-set": 1,
    "--held-out": None,
    "--weight": None,
    "--thinking": False,
    "--answer-tokens": 128,
    "--think-tokens": 1024,
}
"""The options of the card suite, and the values that they have when they are not given."""


def refuse_card_options(given: Sequence[object]) -> None:
    """Raise InputError for an option of the card suite (in the order of `CARD_DEFAULTS`), because that suite is not run."""
    refuse_of_suite(CARD_DEFAULTS, given, "card")


def refuse_of_suite(defaults: Mapping[str, object], given: Sequence[object], suite: str) -> None:
    """Raise InputError for an option of `suite` that differs from its default, because that suite is not run."""
    for (option, default), value in zip(defaults.items(), given, strict=True):
        if value != default:
            raise InputError(f"{option} needs --suite {suite} or all")


def counted(progress: StageProgress | None, stage: str, total: int) -> ByteProgress:
    """A ByteProgress callback for one stage, which calls `progress` with the sum so far; without a total it does nothing."""
    if progress is None or not total:
        return lambda _: None
    tell, done = progress, 0
    tell(stage, 0, total)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        tell(stage, done, total)

    return advance
