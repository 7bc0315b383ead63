"""Measure a saved model with transformers' own classes: perplexity, facts, and a sample of its text."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bpe import BOS, END_OF_TEXT, IM_END, PAD
from dialogues import NO_THINK, Fact, answer_only, prompt
from packing import encode, story_tokens
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

SAMPLE_PROMPT = "Once upon"
SAMPLE_TOKENS = 100


@dataclass(frozen=True)
class Results:
    """What was measured on the saved, rounded weights."""

    perplexity: float
    think_share: float
    no_think_share: float
    facts: int
    sample: str

    def as_dict(self) -> dict[str, Any]:
        """The same as a plain dictionary."""
        return asdict(self)


def load_saved(folder: Path) -> tuple[Any, Tokenizer]:
    """Load a saved folder in float32 and check that the file holds just what the class wants."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, info = loaded
    unexpected, missing = set(info["unexpected_keys"]), set(info["missing_keys"])
    surprising = {name for name in missing if not name.endswith(("o_proj.bias", "lm_head.weight"))}
    if unexpected or surprising:
        raise ValueError(f"unexpected keys {sorted(unexpected)}, missing keys {sorted(surprising)}")
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


@torch.no_grad()
def perplexity(model: Any, tokenizer: Tokenizer, texts: list[str], limit: int) -> float:
    """Perplexity per token of whole story documents, each on its own and cut at ``limit`` tokens."""
    loss, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([story_tokens(tokenizer, text)[:limit]])
        logits: Tensor = model(ids).logits[0, :-1].float()
        loss += functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    return math.exp(loss / count)


@torch.no_grad()
def complete(model: Any, tokenizer: Tokenizer, text: str, new_tokens: int, stop: int) -> str:
    """Continue ``text`` greedily, special tokens included, up to ``stop``."""
    ids = torch.tensor([[BOS, *encode(tokenizer, text)]])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=new_tokens,
        eos_token_id=stop,
        pad_token_id=PAD,
        temperature=None,
        top_p=None,
        top_k=None,
    )
    return tokenizer.decode(out[0, ids.shape[1] :].tolist(), skip_special_tokens=False)


def facts_share(model: Any, tokenizer: Tokenizer, facts: list[Fact], ending: str) -> float:
    """Share of the facts answered right when ``ending`` follows the question; prints the wrong ones."""
    right = 0
    for fact in facts:
        completion = complete(model, tokenizer, prompt(fact.question + ending), 80, IM_END)
        # A thinking block is wanted in both modes: with a thought in it, or empty.
        opened, closed = completion.startswith("<think>\n"), "</think>\n\n" in completion
        is_right = opened and closed and fact.is_answered_by(answer_only(completion))
        right += is_right
        if not is_right:
            print(f"  wrong: {fact.question + ending!r} -> {completion!r}")
    return right / len(facts)


def evaluate(folder: Path, facts: list[Fact], held_out: list[str]) -> Results:
    """Measure everything the model card reports."""
    model, tokenizer = load_saved(folder)
    limit = model.config.max_position_embeddings
    return Results(
        perplexity=perplexity(model, tokenizer, held_out, limit),
        think_share=facts_share(model, tokenizer, facts, ""),
        no_think_share=facts_share(model, tokenizer, facts, NO_THINK),
        facts=len(facts),
        sample=SAMPLE_PROMPT + complete(model, tokenizer, SAMPLE_PROMPT, SAMPLE_TOKENS, END_OF_TEXT),
    )
