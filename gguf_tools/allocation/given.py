"""A sensitivity that was measured before, read from a JSON report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf_tools.errors import InputError
from gguf_tools.evaluation.sensitivity import Sensitivity, Sources, fitting_candidates, rms
from gguf_tools.formats.text_file import Kind, is_finite, parse_json, read_text
from quant.types import TensorType

SAME = 1e-3
"""Largest relative difference of the root mean square of a tensor's weights that counts as the same tensor."""


def read_sensitivity(path: Path, sources: Sources, free: frozenset[str]) -> Sensitivity:
    """The measurement in the JSON report of `tinyq trace --budget`, or of a run with a target size, of the tensors in `free`.

    Raises InputError if the file is no such report, has none of these tensors, or was measured on other weights.
    """
    document = parse_json(read_text(path, Kind.REPORT, InputError), path, InputError)
    report = next((part for key in ("budget", "allocation") if (part := _object(document).get(key))), None)
    found = _object(report).get("sensitivity")
    tokens, tensors = _object(found).get("tokens"), _object(_object(found).get("tensors"))
    runs = _object(found).get("runs", len(tensors))
    if not isinstance(tokens, int) or not isinstance(runs, int) or not tensors:
        raise InputError(
            f"{path}: has no measured sensitivity; give the --json report of tinyq trace --budget, or of a run with --target-bpw"
        )
    losses: dict[str, Mapping[TensorType, float]] = {}
    divergences, probes, sizes = {}, {}, {}
    for name in (name for name in tensors if name in free):
        tensor = _object(tensors[name])
        kinds = {kind.name: kind for kind in fitting_candidates(sources[name].shape)}
        losses[name] = {
            kinds[kind]: _number(path, name, loss)
            for kind, loss in _object(tensor.get("losses")).items()
            if kind in kinds
        }
        divergences[name] = _number(path, name, tensor.get("kl"))
        missing = [kind for kind in kinds if kinds[kind] not in losses[name]]
        if missing and not divergences[name]:
            raise InputError(
                f"{path}: predicts nothing for {name} in {missing[0]}, because it was measured in a type that does not change "
                "it; measure it in a coarser type"
            )
        probes[name] = _probe(path, name, losses[name], tensor.get("probe"))
        sizes[name], here = _number(path, name, tensor.get("rms")), rms(sources[name])
        if abs(sizes[name] - here) > SAME * here:
            raise InputError(
                f"{path}: was measured on other weights: the root mean square of {name} is {sizes[name]:.6g} there, and "
                f"{here:.6g} in this source; measure this source"
            )
    if not losses:
        raise InputError(
            f"{path}: has none of this source's tensors, such as {min(free, default='(none)')}; measure this source"
        )
    return Sensitivity(losses, divergences, probes, tokens, sizes, runs)


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _probe(path: Path, name: str, losses: Mapping[TensorType, float], probe: object) -> TensorType:
    """The type that the tensor was measured in. Raises InputError if nothing is predicted for it."""
    found = next((kind for kind in losses if kind.name == probe), None)
    if found is None:
        raise InputError(
            f"{path}: {name} was measured in {probe!r}; expected one of {', '.join(k.name for k in losses) or 'the types'}"
        )
    return found


def _number(path: Path, name: str, value: object) -> float:
    """A number of at least 0. Raises InputError otherwise."""
    if not is_finite(value) or value < 0:
        raise InputError(
            f"{path}: has a broken measurement of {name}; expected finite numbers of at least 0; write it again"
        )
    return float(value)
