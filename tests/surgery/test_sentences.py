"""Each op in a sentence, whatever its arguments."""

from __future__ import annotations

import re

import pytest

from surgery.ops import all_ops
from surgery.recipe import parse_text

SENTENCES = {
    "swap(1:3)": "Layers 1 and 3 change places.",
    "swap(12:13, 16:17)": "Layers 12 and 13 and layers 16 and 17 change places.",
    "swap(1:2, only=ffn)": "The feed-forward halves of layers 1 and 2 change places.",
    "move(3:7)": "Layer 3 is moved and becomes layer 7.",
    "reverse(2..5)": "Layers 2 to 5 are put in the opposite order.",
    "reverse(2..3)": "Layers 2 and 3 are put in the opposite order.",
    "cycle(2..5)": "Layers 2 to 5 are rotated by 1 place towards the end.",
    "cycle(2..5@-2)": "Layers 2 to 5 are rotated by 2 places towards the start.",
    "delete(3)": "Layer 3 is left out.",
    "delete(3, 5..7)": "Layers 3 and 5 to 7 are left out.",
    "delete(auto:1)": "The layer that changes the residual stream least is left out, by relative norm of the change.",
    "delete(auto:2, by=influence)": "The 2 layers that change the residual stream least are left out, by block influence.",
    "path(0..14, 12..14, 3)": "The layers run in the order 0 to 14, 12 to 14, 3.",
    "bridge(5:20)": "A copy of layer 5 is inserted after layer 20.",
    "graft(B:12..15@16)": "Layers 12 to 15 of B are inserted; the first becomes layer 16.",
    "graft(B:1@2)": "Layer 1 of B is inserted and becomes layer 2.",
    "duplicate(3)": "A copy of layer 3 is inserted after it.",
    "triple(3)": "Two copies of layer 3 are inserted after it.",
    "repeat(2..4x3)": "Layers 2 to 4 run 3 times.",
    "repeat(2)": "Layer 2 runs twice.",
    "attenuate(all)": "Of every layer that runs n times, what each copy adds to the residual stream is multiplied by √(1/n), and "
    "the queries and keys of all but the first by √½.",
    "interpolate(20:22, 0.5)": "A layer made of 0.5 of layer 20 and 0.5 of layer 22 is inserted after layer 20.",
    "interpolate(B:2:3, 0.25, replace=1, slerp, only=attention)": "A layer made of 0.75 of layer 2 of B and 0.25 of layer 3 "
    "(spherical) takes the place of layer 1, in its attention only.",
    "merge(1:2)": "The mean of layer 1 and layer 2 takes the place of layer 1, and layer 2 is left out.",
    "merge(1:B:2)": "The mean of layer 1 and layer 2 of B takes the place of layer 1.",
    "scale(3@0.5)": "What layer 3 adds to the residual stream is multiplied by 0.5.",
    "scale(3..4@0.5)": "What layers 3 and 4 add to the residual stream is multiplied by 0.5.",
    "scale(3..5@2, only=attention)": "What the attention of layers 3 to 5 adds to the residual stream is multiplied by 2.",
    "drop-experts(1:0)": "Expert 0 is left out of layer 1.",
    "drop-experts(1..3:0, 2, 5)": "Experts 0, 2 and 5 are left out of layers 1 to 3.",
    "drop-experts(auto:25%)": "The 25 % of the experts of each layer that give least on a text are left out.",
    "drop-experts(auto:1)": "The expert of each layer that gives least on a text is left out.",
    "swap-experts(1:0:3)": "Experts 0 and 3 of layer 1 change places.",
}


@pytest.mark.parametrize(("text", "sentence"), SENTENCES.items(), ids=list(SENTENCES))
def test_an_op_in_a_sentence(text: str, sentence: str) -> None:
    (op,) = parse_text(text).ops
    assert op.sentence == sentence
    assert re.search(r"\b(\w+) \1\b", sentence) is None


def test_every_op_is_among_them() -> None:
    assert {text.partition("(")[0] for text in SENTENCES} == set(all_ops())
