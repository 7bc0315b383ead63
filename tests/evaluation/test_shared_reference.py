"""One run of the reference for several files: its own texts, its logits, and the measurements that follow from them."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from gguf_tools.errors import OutputError
from gguf_tools.evaluation import shared_reference
from gguf_tools.evaluation.fidelity import evaluate_fidelity, greedy_with_draft, prepare_cases
from gguf_tools.evaluation.prompts import default_prompts
from gguf_tools.evaluation.shared_reference import share_reference
from gguf_tools.runtime.process import Runtime

TOKENS = 12


class Noisy:
    """The model itself with noise that depends on the tokens so far, so that it often writes another token."""

    def __init__(self, runtime: Runtime, noise: float) -> None:
        self.runtime, self.noise, self.positions = runtime, noise, 0

    def logits(self, sequences: list[list[int]]) -> list[npt.NDArray[np.float32]]:
        found = []
        for sequence, logits in zip(sequences, self.runtime.logits(sequences), strict=True):
            rows = [self._row(sequence[: n + 1], row) for n, row in enumerate(logits)]
            found.append(np.stack(rows))
            self.positions += len(sequence)
        return found

    def _row(self, tokens: Sequence[int], row: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        random = np.random.default_rng(zlib.crc32(str(list(tokens)).encode()))
        return (row + self.noise * random.standard_normal(len(row))).astype(np.float32)


@pytest.mark.parametrize(("noise", "rounds"), [(0.0, 1), (0.05, 6), (1.0, 30), (1.0, 2)])
def test_the_texts_and_logits_are_the_reference_s_own(
    dense_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: float, rounds: int
) -> None:
    monkeypatch.setattr(shared_reference, "ROUNDS", rounds)
    reference = Noisy(dense_runtime, noise)
    prompts = default_prompts(False)[:5]
    cases, _, _ = prepare_cases(dense_runtime, None, prompts, TOKENS, {})
    shared = share_reference(dense_runtime, reference, cases, tmp_path, lambda *_: None)
    if not noise:
        assert reference.positions == sum(len(case.ids) + TOKENS - 1 for case in cases)  # one run
    sequences = []
    for case, text in zip(cases, shared.continuations, strict=True):
        own = greedy_with_draft(reference, case.ids, TOKENS)
        assert list(text) == own[: len(text)]
        assert len(text) == TOKENS or rounds == 2
        assert len(text) >= 1
        sequences.append([*case.ids, *text[:-1]])
    for kept, direct in zip(shared.logits(sequences), reference.logits(sequences), strict=True):
        np.testing.assert_array_equal(kept, direct)
    blocks = np.concatenate(list(shared.blocks(sequences[0], 3)))
    np.testing.assert_array_equal(blocks, shared.logits(sequences[:1])[0])
    found = evaluate_fidelity(dense_runtime, shared, None, prompts, TOKENS, continuations=shared.continuations)
    direct_report = evaluate_fidelity(
        dense_runtime, reference, None, prompts, TOKENS, continuations=shared.continuations
    )
    assert found == direct_report
    assert found.metrics.n_tokens == sum(map(len, sequences))
    short = [text for text in shared.continuations if len(text) < TOKENS]
    assert any("fewer than" in note for note in found.notes) == bool(short)
    written = dense_runtime.greedy([case.ids for case in cases], [len(text) for text in shared.continuations])
    same = [tuple(one.tokens) == text for one, text in zip(written, shared.continuations, strict=True)]
    assert found.greedy_exact_match == pytest.approx(sum(same) / len(same))
    for difference in found.first_differences:
        case, text = cases[difference.prompt], shared.continuations[difference.prompt]
        assert difference.reference.token == text[difference.position]
        assert difference.model.token == written[cases.index(case)].tokens[difference.position]
    assert list(tmp_path.iterdir()) == []  # the logits lie in a file without a name
    shared.close()


def test_other_sequences_were_not_run(dense_runtime: Runtime, tmp_path: Path) -> None:
    cases, _, _ = prepare_cases(dense_runtime, None, default_prompts(False)[:1], 2, {})
    shared = share_reference(dense_runtime, Noisy(dense_runtime, 0.0), cases, tmp_path, lambda *_: None)
    with pytest.raises(ValueError, match="was not run on this sequence of 2 tokens"):
        shared.logits([[1, 2]])


def test_no_room_for_the_logits(dense_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases, _, _ = prepare_cases(dense_runtime, None, default_prompts(False)[:1], 2, {})

    def share(folder: Path) -> None:
        share_reference(dense_runtime, Noisy(dense_runtime, 0.0), cases, folder, lambda *_: None)

    with pytest.raises(OutputError, match=r"missing: cannot create a temporary file \(No such file or directory\)"):
        share(tmp_path / "missing")
    full = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(OutputError, match=r"the reference's logits: needs [\d,]+ bytes, but the disk has 100 free"):
        share(tmp_path)
    assert list(tmp_path.iterdir()) == []
