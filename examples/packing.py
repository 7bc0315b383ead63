"""Turn documents into rows of token ids for training and evaluation."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from bpe import BOS, END_OF_TEXT
from corpus import HELD_OUT_SEED, TRAIN_SEED, stories
from dialogues import Segment, load_facts, write_dialogue
from tokenizers import Tokenizer
from torch import Tensor

STORIES = 40_000
DIALOGUES = 18_000
HELD_OUT = 300
IGNORED = -100  # the target that cross_entropy leaves out


@dataclass(frozen=True)
class Corpus:
    """The texts of one run."""

    stories: list[str]
    dialogues: list[list[Segment]]
    held_out: list[str]


def write_corpus(stories_count: int = STORIES, dialogues_count: int = DIALOGUES) -> Corpus:
    """Generate the texts; the held-out stories come from another seed and do not occur in training."""
    train = list(stories(TRAIN_SEED, stories_count))
    held_out = list(stories(HELD_OUT_SEED, HELD_OUT, avoid=frozenset(train)))
    rng = random.Random(TRAIN_SEED + 1)
    facts = load_facts()
    return Corpus(train, [write_dialogue(rng, facts) for _ in range(dialogues_count)], held_out)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode ``text`` as it stands, with no token added."""
    return tokenizer.encode(text, add_special_tokens=False).ids


def story_tokens(tokenizer: Tokenizer, story: str) -> list[int]:
    """Encode a whole story document."""
    return [BOS, *encode(tokenizer, story), END_OF_TEXT]


def dialogue_tokens(tokenizer: Tokenizer, dialogue: list[Segment]) -> tuple[list[int], list[int]]:
    """Encode a dialogue document: its ids, and the same with what is not learnt masked out."""
    ids, targets = [BOS], [BOS]
    for segment in dialogue:
        part = encode(tokenizer, segment.text)
        ids += part
        targets += part if segment.learnt else [IGNORED] * len(part)
    return ids, targets


def pack(tokenizer: Tokenizer, corpus: Corpus, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Shuffle the documents into rows of ``length`` inputs and targets.

    Every row begins at the start of a document, so that the model knows what follows a BOS at position 0;
    the last document of a row is cut where the row ends.
    """
    documents = [(ids, ids) for ids in (story_tokens(tokenizer, story) for story in corpus.stories)]
    documents += [dialogue_tokens(tokenizer, dialogue) for dialogue in corpus.dialogues]
    random.Random(seed).shuffle(documents)
    rows_in, rows_out = [], []
    row_in: list[int] = []
    row_out: list[int] = []
    for ids, targets in documents:
        row_in += ids
        row_out += targets
        if len(row_in) > length:
            rows_in.append(row_in[:length])
            rows_out.append(row_out[1 : length + 1])
            row_in, row_out = [], []
    return torch.tensor(rows_in), torch.tensor(rows_out)
