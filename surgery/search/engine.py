"""Teacher-forced scores of many variants of one model, without a file: layers are pointers, and the base's activations are kept.

A variant that first differs from the base at layer i starts from what enters layer i in the base, so that only the layers from
there on are computed. The weights of a layer that stands in the base are the base's own tensors; those of a blended, scaled or
edited layer are computed in float32, not rounded to the file's type as `tinyq surgery` rounds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from gguf_tools.errors import InputError
from gguf_tools.evaluation.card.statistics import Float
from gguf_tools.model.spec import LayerSpec, Model
from gguf_tools.reference import Reference
from gguf_tools.reference.weights import Weights, load_layer
from gguf_tools.text import first_line
from surgery.algebra import Layer, Original, Stack, identity
from surgery.model import rebuilt

CHUNK = 256
"""Positions whose logits are computed at once."""


@dataclass(frozen=True)
class LayerProfile:
    """What a layer does to the residual stream, as means over the tokens of the texts.

    `update_norm`: ‖out − in‖ / ‖in‖. `influence`: 1 − cos(in, out) (block influence, Men et al. 2024, arXiv 2403.03853).
    `angle`: arccos of the cosine at the last token of each text, over π (angular distance, Gromov et al. 2024, arXiv 2403.17887).
    """

    update_norm: float
    influence: float
    angle: float


def check_device(name: str) -> None:
    """Raise InputError unless torch computes on the device of this name here."""
    try:
        torch.zeros(1, device=name).cpu()
    # The last two: a backend that is not installed.
    except (RuntimeError, AssertionError, ImportError, ValueError) as error:
        raise InputError(
            f"--device {name}: torch cannot compute there ({first_line(error)}); give cpu, or cuda where torch has it"
        ) from error


@dataclass(frozen=True)
class Scores:
    """Per text: the negative log-likelihood of the predicted tokens in bits, and the mean KL divergence in nats."""

    bits: Float
    kl: Float


class Engine:
    """The base model in memory, on a device, with its activations on the texts and the teacher's logits.

    `texts` are the texts that variants are scored on, as two tokens each at least; the KL divergence is measured on the first
    `kl_texts` of them, from the log-probabilities of `teacher` (the base itself if None), which must have the same vocabulary.
    The activations take (layers + 1) × tokens × hidden × 4 bytes, the teacher's log-probabilities tokens × vocabulary × 4 bytes.
    """

    def __init__(
        self,
        model: Model,
        texts: Sequence[Sequence[int]],
        *,
        kl_texts: int,
        teacher: Model | None = None,
        device: str = "cpu",
    ) -> None:
        """Read the weights and run the base over the texts; UnsupportedError for what the torch reference does not compute."""
        self._model = model
        self._device = torch.device(device)
        self._base = self._loaded(model)
        self._layers: dict[Layer, tuple[LayerSpec, Weights]] = {
            Original(n): (spec, weights)
            for n, (spec, weights) in enumerate(zip(model.spec.layers, self._base.layers, strict=True))
        }
        self._texts = list(texts)
        self.kl_texts = kl_texts
        with torch.inference_mode(), self._on_device():
            # activations[t][n] enters layer n; the last is what the final norm reads.
            self._activations = [self._entering(text) for text in self._texts]
            other = self._base if teacher is None else self._loaded(teacher)
            self._teacher = [self._log_probabilities(other, text) for text in self._texts[:kl_texts]]

    def profile(self) -> tuple[LayerProfile, ...]:
        """What each layer of the base does to the residual stream."""
        found = []
        with torch.inference_mode():
            for n in range(len(self._model.layers)):
                norms, cosines, angles = [], [], []
                for rows in self._activations:
                    before, after = rows[n][0].double(), rows[n + 1][0].double()
                    size = before.norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
                    norms.append((after - before).norm(dim=-1) / size)
                    cosine = functional.cosine_similarity(before, after, dim=-1).clamp(-1, 1)
                    cosines.append(cosine)
                    angles.append(cosine[-1:].arccos() / torch.pi)
                mean = [float(torch.cat(values).mean()) for values in (norms, cosines, angles)]
                found.append(LayerProfile(mean[0], 1.0 - mean[1], mean[2]))
        return tuple(found)

    def score_model(self, model: Model, *, texts: slice = slice(None)) -> Scores:
        """The scores of another model with the same vocabulary, such as the base quantized to another type."""
        other = self._loaded(model)
        bits, divergences = [], []
        with torch.inference_mode(), self._on_device():
            for index in range(len(self._texts))[texts]:
                text = self._texts[index]
                hidden = other.forward(torch.tensor([list(text)]))[0, :-1]
                nats, divergence = self._compared(other, hidden, index)
                bits.append(nats / np.log(2))
                divergences += [] if divergence is None else [divergence]
        return Scores(np.array(bits, dtype=np.float64), np.array(divergences, dtype=np.float64))

    def score(self, stack: Stack, *, texts: slice = slice(None), kl: bool = True) -> Scores:
        """The scores of a variant on the texts of the slice; `kl` is an empty array if it is not asked for."""
        made = self._variant(stack)
        base = identity(len(self._model.layers))
        same = next(
            (n for n, (a, b) in enumerate(zip(stack, base, strict=False)) if a != b), min(len(stack), len(base))
        )
        bits, divergences = [], []
        with torch.inference_mode(), self._on_device():
            for index in range(len(self._texts))[texts]:
                x = self._activations[index][same]
                for spec, weights in made[same:]:
                    x = self._run(spec, weights, x)
                nats, divergence = self._compared(self._base, self._base.final_norm(x)[0, :-1], index, kl=kl)
                bits.append(nats / np.log(2))
                divergences += [] if divergence is None else [divergence]
        return Scores(np.array(bits, dtype=np.float64), np.array(divergences, dtype=np.float64))

    def _loaded(self, model: Model) -> Reference:
        """The model's weights in float32 on the device."""
        found = Reference(model)
        found.weights = self._moved(found.weights)
        found.layers = [self._moved(layer) for layer in found.layers]
        return found

    def _moved(self, weights: Weights) -> Weights:
        return {role: weight.to(self._device) for role, weight in weights.items()}

    def _on_device(self) -> AbstractContextManager[object]:
        """Tensors that are made inside (positions, masks) lie on the device; torch watches every call for that."""
        return nullcontext() if self._device.type == "cpu" else self._device

    def _variant(self, stack: Stack) -> list[tuple[LayerSpec, Weights]]:
        """The layers of the stack, of which those of the base are its own."""
        strange = tuple(dict.fromkeys(layer for layer in stack if layer not in self._layers))
        if not strange:
            return [self._layers[layer] for layer in stack]
        made = dict(self._layers)
        for layer, built in zip(strange, rebuilt(self._model, strange).layers, strict=True):
            made[layer] = (built.spec, self._moved(load_layer(built, torch.float32)))
        return [made[layer] for layer in stack]

    def _run(self, spec: LayerSpec, weights: Weights, x: torch.Tensor) -> torch.Tensor:
        """One layer on the residual stream, shape (1, length, hidden)."""
        one = Reference.assembled(self._model.spec, self._base.weights, [weights], torch.float32)
        return one.layer(0, spec, x)

    def _entering(self, text: Sequence[int]) -> list[torch.Tensor]:
        """What enters each layer of the base, and what leaves the last, shape (1, length, hidden) each."""
        found = [self._base.embed(torch.tensor([list(text)]))]
        for n, spec in enumerate(self._model.spec.layers):
            found.append(self._base.layer(n, spec, found[-1]))
        return found

    def _log_probabilities(self, model: Reference, text: Sequence[int]) -> torch.Tensor:
        """Log-probabilities of the token after each position but the last, shape (length − 1, vocabulary)."""
        hidden = model.forward(torch.tensor([list(text)]))[0, :-1]
        return torch.cat([model.head(part).float().log_softmax(-1) for part in torch.split(hidden, CHUNK)])

    def _compared(
        self, model: Reference, hidden: torch.Tensor, index: int, *, kl: bool = True
    ) -> tuple[float, float | None]:
        """The nats of all predicted tokens of text `index`, and the mean KL divergence from the teacher, if it has that text.

        `hidden`: the model's final normed hidden states at each position but the last, shape (length - 1, hidden).
        """
        targets = torch.tensor(list(self._texts[index][1:]))
        teacher = self._teacher[index] if kl and index < len(self._teacher) else None
        nats, divergence = 0.0, 0.0
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            found = model.head(hidden[part]).float().log_softmax(-1)
            nats -= float(found.gather(1, targets[part, None]).double().sum())
            if teacher is not None:
                apart = functional.kl_div(found, teacher[part], log_target=True, reduction="none")
                divergence += float(apart.double().sum())
        return nats, None if teacher is None else divergence / len(hidden)
