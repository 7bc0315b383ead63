"""Train the tokenizer of the bundled models and write it as Hugging Face files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

BASE_VOCABULARY = 1000
VOCABULARY = 1024
BOS, END_OF_TEXT, IM_START, IM_END, PAD = range(BASE_VOCABULARY, BASE_VOCABULARY + 5)

# Qwen2's split: llama.cpp knows it as the pre-tokenizer "qwen2".
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CONTROL = ("<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
# Added tokens that a reader of the text shall see, so they are not special (as in Qwen3).
MARKUP = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
TEMPLATE_FILE = Path(__file__).resolve().parent / "chat_template.jinja"


def added_tokens() -> list[AddedToken]:
    """List the tokens that follow the base vocabulary, in the order of their ids."""
    tokens = [AddedToken(text, special=True, normalized=False) for text in CONTROL]
    tokens += [AddedToken(text, special=False, normalized=False) for text in MARKUP]
    spare = VOCABULARY - BASE_VOCABULARY - len(tokens)
    return tokens + [AddedToken(f"<|reserved_{n}|>", special=True, normalized=False) for n in range(spare)]


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train byte-level BPE with exactly ``BASE_VOCABULARY`` entries and add the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BASE_VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != BASE_VOCABULARY:
        raise ValueError(f"the corpus is too small: only {tokenizer.get_vocab_size()} base tokens")
    tokenizer.add_tokens(added_tokens())
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``."""
    tokenizer.save(str(folder / "tokenizer.json"))
    listed = {
        str(BASE_VOCABULARY + number): {
            "content": token.content,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token.special,
        }
        for number, token in enumerate(added_tokens())
    }
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": listed,
        "bos_token": "<|bos|>",
        "chat_template": TEMPLATE_FILE.read_text(encoding="utf-8"),
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": max_length,
        "pad_token": "<|pad|>",
        "split_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
