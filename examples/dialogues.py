"""ChatML dialogues with and without thinking, laid out as Qwen3's chat template lays them out."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

import story_words as words
from corpus import write_story
from dialogue_data import TEXTS

FACTS_FILE = Path(__file__).resolve().parent.parent / "gguf_tools" / "bundled" / "facts.jsonl"
NO_THINK = " /no_think"
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a kind teacher.",
    "You answer in short sentences.",
)
# (what the user says, thought, answer)
SMALL_TALK = (
    ("Hello!", "The user says hello, so I say hello, too.", "Hello! How can I help you?"),
    ("Hi!", "The user says hi, so I greet back.", "Hi! What would you like to know?"),
    ("Good morning!", "It is a greeting, so I greet back.", "Good morning! How can I help you?"),
    ("Who are you?", "The user wants to know what I am.", "I am a small language model."),
    ("What can you do?", "I should say what I can do.", "I can tell stories and answer easy questions."),
    ("Thank you!", "The user is happy, so I answer kindly.", "You are welcome!"),
    ("Thanks for your help.", "The user is happy, so I answer kindly.", "You are welcome!"),
    ("Goodbye!", "The user leaves, so I say goodbye.", "Goodbye! See you soon."),
    ("How are you?", "It is a friendly question.", "I am fine, thank you."),
    ("Can you help me?", "The user needs help, so I ask with what.", "Yes, of course. What do you need?"),
)
STORY_REQUESTS = (
    "Tell me a story.",
    "Please tell me a story.",
    "Write a short story.",
    "Can you tell me a story?",
)
STORY_REQUESTS_ABOUT = (
    "Tell me a story about {}.",
    "Please write a story about {}.",
    "I want a story about {}.",
)


@dataclass(frozen=True)
class Fact:
    """One question the dialogues teach, with the answers that count as right."""

    question: str
    accept: tuple[str, ...]
    topic: str

    def is_answered_by(self, text: str) -> bool:
        """Say whether ``text`` holds an accepted answer as a word of its own."""
        return any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in self.accept)


@dataclass(frozen=True)
class Segment:
    """A piece of a document, and whether its tokens are learnt or only read."""

    text: str
    learnt: bool = True


def load_facts(path: Path = FACTS_FILE) -> list[Fact]:
    """Read the facts in their fixed order."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Fact(row["question"], tuple(row["accept"]), row["topic"]) for row in rows]


def prompt(user: str, system: str | None = None) -> str:
    """Lay out a first user turn up to where the assistant begins to answer."""
    head = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{head}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def answer_only(completion: str) -> str:
    """Cut the thinking block off an assistant's turn."""
    return completion.split("</think>")[-1].split("<|im_end|>")[0].strip()


def _story_exchange(rng: random.Random) -> tuple[str, str, str]:
    """A request for a story, the thought about it and the story, short enough for 256 tokens in all."""
    story = write_story(rng).replace("\n", " ")
    while len(story) > 620:
        story = write_story(rng).replace("\n", " ")
    kinds = [kind for kind in ("girl", "boy", *words.HERO_ANIMALS) if f" {kind} " in story.split(".")[0]]
    if kinds and rng.random() < 0.6:
        about = ("an " if kinds[0][0] in "aeiou" else "a ") + kinds[0]
        request = rng.choice(STORY_REQUESTS_ABOUT).format(about)
        return request, f"The user wants a story about {about}.", story
    return rng.choice(STORY_REQUESTS), "The user wants a short story.", story


def _exchange(rng: random.Random, facts: list[Fact]) -> tuple[str, str, str]:
    """Draw what the user says, the thought about it and the answer."""
    kind = rng.random()
    if kind < 0.06:
        return _story_exchange(rng)
    if kind < 0.16:
        return rng.choice(SMALL_TALK)
    fact = rng.choice(facts)
    others, thought, answer = TEXTS[fact.question]
    # The question as the facts file has it is asked as often as all its other phrasings together.
    question = fact.question if rng.random() < 0.5 else rng.choice(others)
    return question, thought, answer


def write_dialogue(rng: random.Random, facts: list[Fact]) -> list[Segment]:
    """Write one dialogue of one turn, or now and then two."""
    system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.25 else None
    head = ""
    segments: list[Segment] = []
    if rng.random() < 0.1:
        user, _, answer = _exchange(rng, facts)
        while len(answer) > 100:
            user, _, answer = _exchange(rng, facts)
        # The template strips thinking from earlier turns. Such a turn is context, not an example of how to
        # answer: learning it would teach the model to leave the thinking block out.
        earlier = f"{prompt(user + rng.choice(('', NO_THINK)), system)}{answer}<|im_end|>\n"
        segments.append(Segment(earlier, learnt=False))
        system = None
    user, thought, answer = _exchange(rng, facts)
    if rng.random() < 0.5:
        head, thinking = prompt(user, system), f"<think>\n{thought}\n</think>\n\n"
    else:
        head, thinking = prompt(user + NO_THINK, system), "<think>\n\n</think>\n\n"
    segments.append(Segment(f"{head}{thinking}{answer}<|im_end|>\n"))
    return segments
