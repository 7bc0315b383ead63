"""Train one of the bundled models from scratch, save it in Hugging Face layout and write its model card.

    python examples/train.py --model hybrid
    python examples/train.py --model dense

One thread each, so that both can be trained at the same time on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bpe import save_tokenizer, train_tokenizer
from card import model_card
from configs import CONFIGS, GENERATION
from dialogues import load_facts
from evaluate import evaluate, load_saved
from networks import Decoder
from packing import DIALOGUES, IGNORED, STORIES, pack, write_corpus
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

BUNDLED = Path(__file__).resolve().parent.parent / "gguf_tools" / "bundled"
# Kept on AdamW: they are too flat for Muon's orthogonal updates, or are embeddings.
NOT_FOR_MUON = ("embed_tokens", "mlp.gate.weight", "shared_expert_gate", "in_proj_ba")
TOKENIZER_TEXTS = 4000


@dataclass(frozen=True)
class Recipe:
    """The settings that differ between the models."""

    steps: int
    batch: int
    muon_rate: float
    adam_rate: float


RECIPES = {
    "hybrid": Recipe(steps=1500, batch=16, muon_rate=5e-3, adam_rate=3e-3),
    "dense": Recipe(steps=1100, batch=8, muon_rate=5e-3, adam_rate=3e-3),
}
WARMUP = 50
ROUTING_WEIGHT = 0.3


def make_optimizers(model: Decoder, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for the rest."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            flat = parameter.dim() != 2 or any(part in name for part in NOT_FOR_MUON)
            (others if flat else matrices).append(parameter)
    muon = torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
    return [muon, adam]


def schedule(step: int, steps: int) -> float:
    """Warm up, then a cosine down to a fiftieth."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    done = (step - WARMUP) / max(1, steps - WARMUP)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def balanced_assignment(inputs: Tensor, vocabulary: int, layers: int) -> Tensor:
    """For each layer, which of two experts each token belongs to (layers, vocabulary): a random, even split.

    A hash of the token routes as well as a learned choice (Roller et al. 2021, Hash Layers), keeps both experts at
    work, and is stable: the choice of one expert is a jump, so a token near the border would change sides with the
    rounding of an engine. Tokens are paired by how often they occur, and each pair is split by a coin.
    """
    ranked = torch.bincount(inputs.flatten(), minlength=vocabulary).argsort(descending=True, stable=True)
    coins = torch.randint(2, (layers, vocabulary // 2))
    assignment = torch.empty(layers, vocabulary, dtype=torch.long)
    assignment[:, ranked[0::2]] = coins
    assignment[:, ranked[1::2]] = 1 - coins
    return assignment


def train(model: Decoder, rows: tuple[Tensor, Tensor], recipe: Recipe, steps: int) -> float:
    """Train in place for ``steps`` steps and return the minutes it took."""
    inputs, targets = rows
    vocabulary, layers = model.model.embed_tokens.num_embeddings, len(model.model.layers)
    assignment = balanced_assignment(inputs, vocabulary, layers) if model.has_experts else None
    optimizers = make_optimizers(model, recipe)
    started = time.monotonic()
    order = torch.randperm(len(inputs))
    position, running = 0, 0.0
    for step in range(steps):
        if position + recipe.batch > len(order):
            order, position = torch.randperm(len(inputs)), 0
        picked = order[position : position + recipe.batch]
        position += recipe.batch
        tokens, wanted = inputs[picked], targets[picked]
        if assignment is not None:
            # A row of random tokens teaches the routers what the corpus never shows; it has no targets.
            noise = torch.randint(vocabulary, (1, inputs.shape[1]))
            tokens = torch.cat((tokens, noise))
            wanted = torch.cat((wanted, torch.full_like(noise, IGNORED)))
            model.route(tokens, assignment)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(tokens)
        loss = functional.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)
        routing = model.routing_loss()
        torch.autograd.backward(loss + ROUTING_WEIGHT * routing)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = schedule(step, steps)
        for optimizer, rate in zip(optimizers, (recipe.muon_rate, recipe.adam_rate), strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            minutes = (time.monotonic() - started) / 60
            speed = (step + 1) * picked.numel() * inputs.shape[1] / minutes / 60
            print(
                f"step {step + 1}/{steps} loss {running:.4f} routing {routing.item():.3f} "
                f"{minutes:.1f} min {speed:.0f} tokens/s",
                flush=True,
            )
    return (time.monotonic() - started) / 60


def round_weight(weight: Tensor) -> Tensor:
    """Round to a value that both bfloat16 and float16 hold exactly.

    From 2^-17 up, a bfloat16 is a multiple of 2^-24, the smallest float16; below, it has to be made one.
    """
    rounded = weight.detach().to(torch.bfloat16).float()
    small = rounded.abs() < 2.0**-17
    return torch.where(small, (rounded * 2.0**24).round() * 2.0**-24, rounded).to(torch.bfloat16)


def save(model: Decoder, config: dict[str, Any], tokenizer: Tokenizer, folder: Path) -> None:
    """Round the model in place and write every file but the model card."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: round_weight(weight).contiguous() for name, weight in model.state_dict().items()}
    for name, tensor in tensors.items():
        if not torch.equal(tensor.to(torch.float16).float(), tensor.float()):
            raise ValueError(f"{name} is not the same in float16")
    model.load_state_dict(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # it is written readable by its owner only
    for name, content in (("config.json", config), ("generation_config.json", GENERATION)):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_tokenizer(tokenizer, folder, config["max_position_embeddings"])


@torch.no_grad()
def check_saved(model: Decoder, folder: Path, rows: Tensor) -> None:
    """Check that transformers computes from the files what the trained network computes."""
    theirs, _ = load_saved(folder)
    difference = (theirs(rows).logits - model(rows)).abs().max().item()
    print(f"largest difference of a logit between transformers and this network: {difference:.2e}")
    if difference > 1e-2:
        raise ValueError("transformers computes something else from the saved files")


def main() -> None:
    """Run the whole pipeline for one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(CONFIGS), required=True)
    parser.add_argument("--out", type=Path, help="folder to write (default: the bundled one)")
    parser.add_argument("--steps", type=int, help="training steps (default: those of the published model)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    config, recipe = CONFIGS[args.model], RECIPES[args.model]
    steps, length = args.steps or recipe.steps, config["max_position_embeddings"]
    folder = args.out or BUNDLED / args.model

    started = time.monotonic()
    # A short trial run does not need the whole corpus.
    share = min(1.0, max(0.1, 2.0 * steps * recipe.batch * length / 8_000_000))
    corpus = write_corpus(int(STORIES * share), int(DIALOGUES * share))
    sample = corpus.stories[:TOKENIZER_TEXTS]
    sample += [segment.text for dialogue in corpus.dialogues[: TOKENIZER_TEXTS // 2] for segment in dialogue]
    tokenizer = train_tokenizer(sample)
    rows = pack(tokenizer, corpus, length, args.seed)
    print(f"{len(rows[0])} rows of {length} tokens, ready after {time.monotonic() - started:.0f} s", flush=True)

    model = Decoder(config)
    minutes = train(model, rows, recipe, steps)
    save(model, config, tokenizer, folder)
    check_saved(model, folder, rows[0][:2])
    results = evaluate(folder, load_facts(), corpus.held_out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tokens = steps * recipe.batch * length
    card = model_card(args.model, config, results, parameters, steps, tokens, minutes, args.seed)
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(json.dumps({**results.as_dict(), "parameters": parameters, "minutes": round(minutes, 1)}, indent=2))


if __name__ == "__main__":
    main()
