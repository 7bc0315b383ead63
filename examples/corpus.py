"""Seeded stories in the manner of TinyStories, written by a small grammar.

A story is an opening, an optional sentence about its hero, one of the plots and an optional ending; all
of them are in the text files next to this one. A plot is a list of steps; a step lists its phrasings,
separated by ``|``. Inside a phrasing, ``[a|b]`` chooses again, and ``{name}`` stands for a fact of this
story (see ``cast``), which keeps the names, things and pronouns the same from beginning to end. ``{a name}``
puts the right article in front, and a capital letter, as in ``{He}``, makes the fact begin with one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import story_words as words

PLOT_FILES = ("plots_a.txt", "plots_b.txt")

TRAIN_SEED = 20_000
HELD_OUT_SEED = 90_000

_FIELD = re.compile(r"\{(a )?(\w+)\}")
_BARE_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_SENTENCE_START = re.compile(r"(^\"?|[.!] )([a-z])")


def read_plots() -> dict[str, list[str]]:
    """Read the sections of the plot files: their names, and the items of each."""
    sections: dict[str, list[str]] = {}
    items: list[str] = []
    for name in PLOT_FILES:
        for line in (Path(__file__).resolve().parent / name).read_text(encoding="utf-8").splitlines():
            if line.startswith("== "):
                items = sections.setdefault(line[3:], [])
            elif line.startswith("-"):
                items.append(line[2:])
            elif line.startswith("  "):
                items[-1] += " " + line.strip()
    return sections


@cache
def split_choices(text: str) -> tuple[str, ...]:
    """Split ``text`` at the ``|`` that stand outside every bracket."""
    parts, depth, start = [], 0, 0
    for position, char in enumerate(text):
        depth += (char == "[") - (char == "]")
        if char == "|" and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return tuple(parts)


def choose(rng: random.Random, text: str) -> str:
    """Replace every ``[a|b]`` in ``text`` by one of its choices."""
    while (start := text.find("[")) >= 0:
        depth = 0
        for end in range(start, len(text)):
            depth += (text[end] == "[") - (text[end] == "]")
            if depth == 0:
                break
        else:
            raise ValueError(f"unclosed bracket in {text!r}")
        picked = rng.choice(split_choices(text[start + 1 : end]))
        text = text[:start] + picked + text[end + 1 :]
    return text


PLOTS = read_plots()
OPENINGS, LIKES, ENDINGS = (PLOTS.pop(name) for name in ("OPENINGS", "LIKES", "ENDINGS"))


def with_article(noun: str) -> str:
    """Put ``a`` or ``an`` in front of ``noun``."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def fill(text: str, facts: dict[str, str]) -> str:
    """Put the facts of a story into the fields of ``text``."""

    def value(match: re.Match[str]) -> str:
        article, name = match.groups()
        found = facts[name[0].lower() + name[1:]]
        if article:
            found = with_article(found)
        return found[0].upper() + found[1:] if name[0].isupper() else found

    return _FIELD.sub(value, text)


def cast(rng: random.Random) -> dict[str, str]:
    """Draw the people, animals, places and things of one story."""
    girl = rng.random() < 0.5
    names, other = (words.GIRLS, words.BOYS) if girl else (words.BOYS, words.GIRLS)
    child, other_child = ("girl", "boy") if girl else ("boy", "girl")
    she, he = ("she", "her", "her", "herself"), ("he", "him", "his", "himself")
    own, theirs = (she, he) if girl else (he, she)
    kind = rng.choice(words.HERO_ANIMALS) if rng.random() < 0.25 else child
    adult = rng.choice(words.ADULTS)
    toy = rng.choice(words.TOYS)
    food = rng.choice(words.FOODS)
    skill = rng.choice(words.SKILLS)
    broken = rng.choice(words.BROKEN)
    trip = rng.choice(words.TRIPS)
    gift = rng.choice(words.GIFTS)
    fear = rng.choice(words.FEARS)
    trait = rng.choice(words.TRAITS)
    second = f"{trait} little" if trait not in ("little", "small", "young") and rng.random() < 0.3 else trait
    return {
        "intro": with_article(f"{second} {kind}"),
        "kind": kind,
        "hero": rng.choice(names),
        "he": own[0],
        "him": own[1],
        "his": own[2],
        "himself": own[3],
        "friend": rng.choice(other),
        "fkind": f"{rng.choice(('little', 'small', 'quiet', 'young'))} {other_child}",
        "fhe": theirs[0],
        "fhim": theirs[1],
        "fhis": theirs[2],
        "adult": adult[0],
        "ahe": adult[1],
        "ahim": adult[2],
        "ahis": adult[3],
        "family": rng.choice(("family", "mom and dad", "grandma", "mother", "father", "parents")),
        "person": rng.choice(words.PEOPLE),
        "toy": f"{rng.choice(words.TOY_ADJECTIVES)} {toy}",
        "toyn": toy,
        "colour": rng.choice(words.COLOURS),
        "pet": rng.choice([pet for pet in words.PETS if pet != kind]),
        "place": rng.choice(words.PLACES),
        "water": rng.choice(("lake", "river", "pond", "sea")),
        "hide": rng.choice(words.HIDING),
        "food": food[0],
        "ing": food[1],
        "ingtwo": food[2],
        "fruit": rng.choice(words.FRUITS),
        "snack": rng.choice(words.SNACKS),
        "plants": rng.choice(words.PLANTS),
        "skill": skill[0],
        "skilling": skill[1],
        "broken": broken[0],
        "part": broken[1],
        "fix": broken[2],
        "vehicle": rng.choice(words.VEHICLES),
        "tripto": trip[0],
        "tripsee": trip[1],
        "tripgift": trip[2],
        "gift": gift[0],
        "giftn": gift[1],
        "giftstuff": gift[2],
        "fear": fear[0],
        "feartool": fear[1],
        "fearplace": fear[2],
        "number": rng.choice(words.NUMBERS),
    }


def write_story(rng: random.Random, opening: str | None = None, plot: str | None = None) -> str:
    """Write one story; ``opening`` and ``plot`` fix what is otherwise drawn."""
    facts = cast(rng)
    plot = plot or rng.choice(list(PLOTS))
    # Who is about to make a first friend cannot have one already.
    likes = [like for like in LIKES if "{friend}" not in like] if plot == "a new friend" else LIKES
    parts = [opening or rng.choice(OPENINGS), rng.choice(likes)]
    parts += [rng.choice(split_choices(step)) for step in PLOTS[plot]]
    parts.append(rng.choice(ENDINGS))
    sentences = [fill(choose(rng, part), facts).strip() for part in parts]
    # Phrasings may say "a {pet}", and the pet may be an owl.
    sentences = [_BARE_ARTICLE.sub(r"\1n ", sentence) for sentence in sentences]
    told = [_SENTENCE_START.sub(lambda m: m[1] + m[2].upper(), s) for s in sentences if s]
    # About every third story has paragraphs, so that newlines are not only a thing of dialogues.
    if rng.random() < 0.33:
        cut = len(told) // 2
        return " ".join(told[:cut]) + "\n" + " ".join(told[cut:])
    return " ".join(told)


def stories(seed: int, count: int, avoid: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield ``count`` distinct stories that are not in ``avoid``."""
    rng = random.Random(seed)
    seen: set[str] = set(avoid)
    while count:
        story = write_story(rng)
        if story not in seen:
            seen.add(story)
            count -= 1
            yield story


if __name__ == "__main__":
    for text in stories(seed=1, count=5):
        print(text, end="\n\n")
