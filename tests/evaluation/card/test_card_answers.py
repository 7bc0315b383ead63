"""Thoughts apart from answers, and answers against the accepted phrases."""

from __future__ import annotations

import html
import time
import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gguf_tools.evaluation.card.answers import Grade, grade, mentions
from gguf_tools.evaluation.card.reply import KNOWN_TAGS, Reply, ThinkTags, find_tags, split_reply
from gguf_tools.evaluation.card.words import normalise

FRANCE = "What is the capital of France?"
THINK = KNOWN_TAGS[0]

plain = st.text(st.characters(codec="utf-8", exclude_characters="<>[]|"), max_size=30)
names = st.sampled_from(
    ["Paris", "New York", "8", "-5", "3.14", "1,000", "Au", "H2O", "twenty-one", "São Paulo", "巴黎"]
)
frames = st.sampled_from(
    ["{}", "{}.", "The answer is {}.", "It's {}!", "Answer: {}", "London? No, {}.", "It is not Oslo, it is {}.", "({})"]
)
variants = st.lists(names, min_size=1, max_size=3)
other_words = st.lists(
    st.sampled_from(["the", "a", "moon", "is", "not", "or", "and,", "river.", "blue", "7", "12", "no:", "Lyon"]),
    max_size=12,
)


@pytest.mark.parametrize("tags", KNOWN_TAGS)
def test_tags_are_found_in_a_template(tags: ThinkTags) -> None:
    assert find_tags(f"{{% if enable %}}{{{{ '{tags.open}\n' }}}}{{% endif %}}") == tags
    assert find_tags(f"{{{{ content.split('{tags.close}')[-1] }}}}") == tags


def test_templates_without_tags() -> None:
    assert find_tags("{{ messages[0].content }} <thinker> think") is None
    assert find_tags("") is None


@pytest.mark.parametrize(
    ("text", "opened", "reply"),
    [
        ("Paris", False, Reply(None, "Paris", True)),
        ("<think>hm</think>\n\nParis\n", False, Reply("hm", "Paris", True)),
        ("<think>\n\n</think>\n\nParis", False, Reply("", "Paris", True)),
        ("hm</think>Paris", True, Reply("hm", "Paris", True)),
        ("hm</think>Paris", False, Reply("hm", "Paris", True)),
        ("<think>hm</think>Paris", True, Reply("hm", "Paris", True)),
        ("<think>is it Paris", False, Reply("is it Paris", "", False)),
        ("is it Paris", True, Reply("is it Paris", "", False)),
        ("Paris <think>or not", False, Reply("or not", "", False)),
        ("London <think>Paris</think>", False, Reply("Paris", "London", True)),
        ("Wait. <think>a</think> Paris", False, Reply("a", "Paris", True)),
        ("<think>a</think>London<think>b</think>Paris", False, Reply("a\nb", "Paris", True)),
        ("<think>a</think>b</think>Paris", False, Reply("a\nb", "Paris", True)),
        ("<think>a <think> b</think>Paris", False, Reply("a\nb", "Paris", True)),
        ("<think>a</think>", False, Reply("a", "", True)),
        ("", False, Reply(None, "", True)),
        ("", True, Reply("", "", False)),
    ],
)
def test_split_reply(text: str, opened: bool, reply: Reply) -> None:
    assert split_reply(text, THINK, opened) == reply


@given(plain, plain, st.sampled_from(KNOWN_TAGS))
def test_a_reply_is_put_together_again(thought: str, answer: str, tags: ThinkTags) -> None:
    expected = Reply(thought.strip(), answer.strip(), True)
    assert split_reply(f"{tags.open}{thought}{tags.close}{answer}", tags) == expected
    assert split_reply(f"{thought}{tags.close}{answer}", tags, opened=True) == expected
    assert split_reply(f"{answer}{tags.open}{thought}", tags) == Reply(thought.strip(), "", False)
    assert split_reply(answer, tags) == split_reply(answer, None) == Reply(None, answer.strip(), True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        (" … % !", ""),
        ("The CAPITAL", "the capital"),
        ("1,000", "1000"),
        ("1,234,567.5", "1234567.5"),
        ("1\u202f000", "1000"),
        ("3.14", "3.14"),
        ("3,14", "3.14"),
        (".5", "0.5"),
        ("5.", "5"),
        ("5.0 5.00 5.05", "5 5 5.05"),
        ("1, 2,3,4", "1 2 3 4"),
        ("-5", "-5"),
        ("x = −5", "x -5"),
        ("minus 5", "-5"),
        ("4 minus 2", "4 minus 2"),
        ("10-5", "10 5"),
        ("1/2 ½ $\\frac{1}{2}$", "1/2 1/2 1/2"),
        ("2½", "2 1/2"),
        ("12th", "12th"),
        ("10² 10^{2} 10<sup>2</sup>", "10^2 10^2 10^2"),
        ("H₂O H_2O H<sub>2</sub>O $\\mathrm{H}_2\\mathrm{O}$", "h2o h2o h2o h2o"),
        ("$\\boxed{8}$ \\(\\text{cows}\\)", "8 cows"),
        ("√9 \\sqrt{9}", "√9 √9"),
        ("**Paris** _Paris_ `Paris` ~~Paris~~ <b>Paris</b>", "paris paris paris paris paris"),
        ("# Paris\n* Paris", "paris paris"),
        ("[Paris](https://example.org/London)", "paris"),
        ("fifty-six", "fifty six"),
        ("isn't isn’t isnt", "is not is not is not"),
        ("cannot can't can’t", "can not can not can not"),
        ("It's Paris's", "it paris"),
        ("“Tōkyō” São Straße", "tokyo sao strasse"),
        ("ＰＡＲＩＳ ﬁve", "paris five"),
        ("U.S.A. U.S.", "usa us"),
        ("100 °C", "100 c"),
        ("答案是巴黎", "答 案 是 巴 黎"),
        ("が か", "が か"),
        ("서울입니다", "서 울 입 니 다"),
        ("दिल्ली", "दिल्ली"),
        ("1. Paris\n2. Rome", "paris rome"),
        ("1. Paris", "1 paris"),
        ("1.\n2.\n3.", ""),
        ("12.", "12"),
        ("12. Twelve", "12 twelve"),
        ("A) Paris (B) Rome", "paris rome"),
        ("a. Paris\nb. Rome", "paris rome"),
        ("A) Paris", "a paris"),
        ("Paris<br>Rome", "paris rome"),
        ("$-5$", "-5"),
        ("rock &amp; roll", "rock roll"),
    ],
)
def test_normalise(text: str, words: str) -> None:
    assert " ".join(normalise(text)) == words


@given(st.text(max_size=60))
def test_normalise_takes_any_text(text: str) -> None:
    words = normalise(text)
    assert all(word and not any(letter.isspace() for letter in word) for word in words)
    assert normalise(f"  {text}\n") == words
    grade(text, [text], text)


PARIS = {
    "right": """
        Paris
        pARIS!
        The capital of France is **Paris**.
        Answer: Paris
        1. Paris
        Yes, Paris, of course.
        Paris, the capital of France, is a city
        The answer is Paris, which lies on the Seine, in France.
        In France, Paris, the capital, is the largest city.
        Paris is the capital of France and is not in Germany.
        It is not London, it is Paris.
        It's not Lyon; it's Paris.
        not London but Paris
        No, the capital is Paris.
        No it is Paris.
        Paris, not London
        Paris not London
        Paris — not Lyon
        Paris (not Lyon)
        Paris rather than Lyon
        nothing but Paris
        none other than Paris
        There is no doubt that it's Paris
        Without a doubt Paris
        It is not only big: Paris
        Not only is Paris big, it is the capital.
        I'm not sure, but I think it's Paris.
        If I'm not mistaken it's Paris.
        Paris boasts museums, cafes, and parks.
        France has Lyon, Nice, and Paris. The capital is Paris.
        Would you say London? Paris.
        Paris has no rival and 2 or 3 airports.
        Paris. However, Paris is not the oldest city of France.
        Paris. Unlike Lyon or Paris, Nice is by the sea.
        A) Paris
        With no other city in sight the answer is Paris.
    """,
    "negated": """
        not Paris
        never Paris
        not: Paris
        not (Paris)
        It isn't Paris
        It isnt Paris
        It is not, I think, Paris
        I don't think it is Paris.
        I doubt it is Paris.
        It cannot be Paris
        It is no longer Paris
        Paris is not the capital
        Paris isn't it
        Paris is definitely not the capital
        Paris is no longer the capital
        Paris was never the capital
        Paris is wrong
        Paris would be incorrect.
        Paris is the wrong answer
        neither London nor Paris
        anything but Paris
        London rather than Paris
        not far from Paris
    """,
    "alternatives": """
        Paris or London
        London or Paris
        London, or Paris
        Paris (or London)
        either Paris or Lyon
        It is Paris or maybe Lyon.
        London/Paris
        Paris / London
        Paris, London, Rome, Berlin
        Rome, Berlin, and Paris.
        The answer is Paris, London, Rome.
        The cities are London, Paris and Rome.
        London, Paris and Rome are cities.
        A) London B) Paris C) Rome
        It is not London, Rome, Paris.
    """,
    "other": """
        London
        Parisian
        Is it Paris?
        London. Isn't it Paris?
        [London](https://example.org/Paris)
        comparison
    """,
}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(line.strip(), reason) for reason, lines in PARIS.items() for line in lines.splitlines() if line.strip()],
)
def test_paris(answer: str, reason: str) -> None:
    found = grade(answer, ["Paris"], FRANCE)
    assert found.reason == reason
    assert found.right == (reason == "right")


@pytest.mark.parametrize("answer", ["- Paris\n- London\n- Rome", "1. London\n2. Paris\n3. Rome", "Rome\nParis\nOslo"])
def test_a_list_of_lines_is_alternatives(answer: str) -> None:
    assert grade(answer, ["Paris"], FRANCE).reason == "alternatives"
    assert grade(f"{answer}\n\nThe capital is Paris.", ["Paris"], FRANCE).right


@pytest.mark.parametrize(
    ("answer", "accept", "question", "reason"),
    [
        ("15", ["5"], "", "other"),
        ("5.5", ["5"], "", "other"),
        ("-5", ["5"], "", "other"),
        ("minus 5", ["5"], "", "other"),
        ("6-8 legs", ["8"], "", "other"),
        ("**Answer:** $\\boxed{8}$", ["8"], "", "right"),
        ("2 + 2 = 4", ["4"], "What is 2 plus 2?", "right"),
        ("2 + 2 = 5", ["2"], "", "other"),
        ("2 * 2 = 5", ["2"], "", "other"),
        ("8 × 7 = 56", ["56"], "What is 8 times 7?", "right"),
        ("seven times one is eight", ["seven"], "", "other"),
        ("It's 12 (twelve).", ["12", "twelve"], "", "right"),
        ("The chemical symbol for gold is Au.", ["Au"], "", "right"),
        ("100 °C (212 °F)", ["100"], "", "right"),
        ("100 °C or 212 °F", ["100"], "", "right"),
        ("A spider has 8 legs, not 6.", ["8"], "", "right"),
        ("A spider has 8 legs, not 6.", ["6"], "", "negated"),
        ("no fewer than 8", ["8"], "", "right"),
        ("It was not until 1912.", ["1912"], "", "right"),
        ("8 or eight", ["8", "eight"], "", "right"),
        ("cow or cows", ["cow", "cows"], "", "right"),
        ("a cow or a bull", ["cow"], "", "alternatives"),
        ("6 or 8 legs", ["8"], "", "alternatives"),
        ("8 legs or 6 legs", ["8"], "", "alternatives"),
        ("either 8 legs or six", ["8"], "", "alternatives"),
        ("H2O, or water", ["H2O", "water"], "", "right"),
        ("red, green and blue", ["red, green and blue"], "", "right"),
        ("red, blue, yellow", ["red"], "What are the primary colours?", "right"),
        ("red, blue, yellow", ["red"], "What colour is it?", "alternatives"),
        ("red, scarlet, crimson", ["red", "scarlet", "crimson"], "", "right"),
        ("It is St. Petersburg, not Moscow.", ["St Petersburg"], "", "right"),
        ("False", ["False"], "", "right"),
        ("No, it is not.", ["No"], "", "right"),
        ("答案是巴黎。", ["巴黎"], "", "right"),
        ("答案是伦敦。", ["巴黎"], "", "other"),
        ("...", ["5"], "", "empty"),
        ("", ["5"], "", "empty"),
        ("Paris", ["%", "**"], "", "other"),
        ("Paris", [], "", "other"),
        ("York is old", ["New York", "York"], "", "right"),
    ],
)
def test_grade(answer: str, accept: list[str], question: str, reason: str) -> None:
    assert grade(answer, accept, question).reason == reason


@pytest.mark.parametrize(
    ("answer", "accept", "question", "reason"),
    [
        ("4 minus 2 is 3", ["2"], "What is 4 minus 2?", "other"),
        ("4 minus 2 is 2", ["2"], "What is 4 minus 2?", "right"),
        ("The largest of Mars, Venus and Pluto is Mars.", ["Venus"], "Is Mars, Venus and Pluto a list?", "other"),
        ("The words are red green blue", ["red green blue"], "Say red green blue", "right"),
        ("2, 4, 6, 8", ["8"], "What comes after 2, 4, 6?", "right"),
        ("The penguin cannot fly.", ["penguin"], "Which bird cannot fly?", "right"),
        ("The penguin cannot fly.", ["penguin"], "Which bird flies?", "negated"),
    ],
)
def test_words_of_the_question(answer: str, accept: list[str], question: str, reason: str) -> None:
    assert grade(answer, accept, question).reason == reason


@given(variants, frames, st.data())
def test_right_answers_stay_right(accept: list[str], frame: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(accept))
    answer = frame.format(name)
    for same in (answer, answer.upper(), f" \n{answer}\t", f"{answer}.", frame.format(f"**{name}**"), f"**{answer}**"):
        assert grade(same, accept) == Grade(True, "right"), same


@given(other_words, variants)
def test_form_does_not_change_the_grade(words: list[str], accept: list[str]) -> None:
    answer = " ".join([*words, accept[0], *words[::2]])
    found = grade(answer, accept)
    assert grade(answer.upper(), accept) == found
    assert grade(f"\n {answer} \n", accept) == found
    assert grade(f"{answer}.", accept) == found
    assert grade(" ".join([*words, f"**{accept[0]}**", *words[::2]]), accept) == found
    assert grade(answer, [*accept[::-1], "%"]) == found


@given(st.text(min_size=1, max_size=20), st.lists(st.text(max_size=20), max_size=2))
def test_an_accepted_variant_is_right_unless_it_asks(text: str, others: list[str]) -> None:
    assume(normalise(text) and not set("?؟") & set(unicodedata.normalize("NFKC", html.unescape(text))))
    assert grade(text, [text, *others]).right


@given(variants, frames, other_words, st.booleans())
def test_what_else_is_said_does_not_make_it_wrong(
    accept: list[str], frame: str, words: list[str], before: bool
) -> None:
    sentences = [frame.format(accept[0]), f"It is not {' '.join(words)} {accept[0]} or so"]
    assert grade(". ".join(sentences[::-1] if before else sentences), accept).right


@given(variants, frames.filter(lambda frame: frame[0] == "{"))
def test_not_makes_it_wrong(accept: list[str], frame: str) -> None:
    for name in accept:
        found = grade("not " + frame.format(name), accept)
        assert found.reason == "negated"


@given(other_words, variants)
def test_without_an_accepted_word_nothing_is_right(words: list[str], accept: list[str]) -> None:
    answer = " ".join(words)
    assert not mentions(answer, accept)
    assert grade(answer, accept).reason in ("other", "empty")


def test_mentions_whatever_is_said() -> None:
    assert mentions("It is not Paris, or is it?", ["paris"])
    assert mentions("in a NEW\nyork minute", ["x", "New York"])
    assert not mentions("Parisian new, old york", ["Paris", "New York", "%"])


@pytest.mark.parametrize(
    "text", ["Paris ", "Paris, ", "Paris no ", "no Paris or ", "is ", "1,", "<b ", "[a](", "a.", "\n"]
)
def test_loops_are_read_in_time(text: str) -> None:
    start = time.process_time()
    grade("Paris " + text * 1000 + " Paris", ["Paris", "city of Paris"], FRANCE)
    assert time.process_time() - start < 5
