"""What the dialogues say about each fact: other ways to ask, one sentence of thought, and the answer.

The facts themselves (question, accepted answers, topic) are ``gguf_tools/bundled/facts.jsonl``; the keys
here are their questions.
"""

# question: (other phrasings, thought, answer)
TEXTS: dict[str, tuple[tuple[str, ...], str, str]] = {}


def _add(question: str, others: str, thought: str, answer: str) -> None:
    TEXTS[question] = (tuple(part.strip() for part in others.split("|")), thought, answer)


_CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "England": "London",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Egypt": "Cairo",
    "Russia": "Moscow",
    "Greece": "Athens",
}
for _country, _city in _CAPITALS.items():
    _add(
        f"What is the capital of {_country}?",
        f"Which city is the capital of {_country}? | Tell me the capital of {_country}. | "
        f"Name the capital of {_country}.",
        f"The user asks about the capital of {_country}, which is {_city}.",
        f"The capital of {_country} is {_city}.",
    )

_COLOURS = {
    "the sky on a clear day": ("blue", "is"),
    "grass": ("green", "is"),
    "snow": ("white", "is"),
    "a ripe banana": ("yellow", "is"),
    "a ripe tomato": ("red", "is"),
    "coal": ("black", "is"),
    "a carrot": ("orange", "is"),
}
for _thing, (_colour, _verb) in _COLOURS.items():
    _add(
        f"What color is {_thing}?",
        f"Which color does {_thing} have? | Tell me the color of {_thing}.",
        f"I think of {_thing}, and I see the color {_colour}.",
        f"{_thing[0].upper()}{_thing[1:]} {_verb} {_colour}.",
    )
_add(
    "What color do you get when you mix blue and yellow?",
    "Which color do blue and yellow make? | Mix blue and yellow. What color is it?",
    "Blue paint and yellow paint together become green.",
    "Blue and yellow make green.",
)
_add(
    "What color do you get when you mix red and white?",
    "Which color do red and white make? | Mix red and white. What color is it?",
    "White paint makes red paint light, so it becomes pink.",
    "Red and white make pink.",
)

_SOUNDS = {"cow": "moo", "dog": "woof", "cat": "meow", "duck": "quack", "sheep": "baa", "lion": "roar"}
for _animal, _sound in _SOUNDS.items():
    _add(
        f"What sound does a {_animal} make?",
        f"What does a {_animal} say? | Which sound does the {_animal} make?",
        f"The question is about the sound of a {_animal}, and that is {_sound}.",
        f"A {_animal} says {_sound}.",
    )
_BABIES = {"dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb", "horse": "foal", "hen": "chick"}
for _animal, _baby in _BABIES.items():
    _add(
        f"What is a baby {_animal} called?",
        f"What do you call a baby {_animal}? | Tell me the name of a baby {_animal}.",
        f"The young one of a {_animal} has its own name, {_baby}.",
        f"A baby {_animal} is called a {_baby}.",
    )
_add(
    "Which animal gives us milk?",
    "What animal does milk come from? | Name the animal that gives us milk.",
    "Milk comes from a farm, where it is taken from a cow.",
    "The cow gives us milk.",
)
_add(
    "Which insect makes honey?",
    "What insect does honey come from? | Who makes honey?",
    "Honey is made in a hive, and a bee lives there.",
    "The bee makes honey.",
)
_add(
    "Which animal has a very long neck?",
    "What animal has the longest neck? | Name the animal with a very long neck.",
    "The animal that eats leaves from tall trees is the giraffe.",
    "The giraffe has a very long neck.",
)
_add(
    "Which animal has a long trunk?",
    "What animal has a trunk? | Name the animal with a long trunk.",
    "A trunk is a long nose, and the elephant has one.",
    "The elephant has a long trunk.",
)

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SUMS = ((1, 1), (2, 2), (2, 3), (4, 4), (3, 4), (5, 5))
for _a, _b in _SUMS:
    _add(
        f"What is {_a} plus {_b}?",
        f"How much is {_a} plus {_b}? | Add {_a} and {_b}. | What is {_a} + {_b}?",
        f"I count {_b} up from {_a} and get to {_WORDS[_a + _b]}.",
        f"{_a} plus {_b} is {_a + _b}.",
    )
for _a, _b in ((5, 2), (9, 3)):
    _add(
        f"What is {_a} minus {_b}?",
        f"How much is {_a} minus {_b}? | Take {_b} away from {_a}. | What is {_a} - {_b}?",
        f"I count {_b} down from {_a} and get to {_WORDS[_a - _b]}.",
        f"{_a} minus {_b} is {_a - _b}.",
    )

_COUNTS = {
    "legs does a spider have": ("legs", "A spider", "8", "has"),
    "legs does a dog have": ("legs", "A dog", "4", "has"),
    "legs does an insect have": ("legs", "An insect", "6", "has"),
    "days are in a week": ("days", "A week", "7", "has"),
    "months are in a year": ("months", "A year", "12", "has"),
    "wheels does a bike have": ("wheels", "A bike", "2", "has"),
    "sides does a triangle have": ("sides", "A triangle", "3", "has"),
}
for _rest, (_unit, _owner, _count, _has) in _COUNTS.items():
    _owner_low = _owner[0].lower() + _owner[1:]
    _add(
        f"How many {_rest}?",
        f"Tell me how many {_unit} {_owner_low} has. | What is the number of {_unit} of {_owner_low}?",
        f"I count the {_unit} of {_owner_low} and get to {_count}.",
        f"{_owner} {_has} {_count} {_unit}.",
    )

_add(
    "What is frozen water called?",
    "What do we call water when it is frozen? | What does water become when it freezes?",
    "When water is very cold, it becomes hard, and that is ice.",
    "Frozen water is called ice.",
)
_add(
    "Which star gives us light and heat?",
    "What star is closest to the Earth? | Which star do we see in the day?",
    "By day we see one star only, and it is the Sun.",
    "The Sun gives us light and heat.",
)
_add(
    "On which planet do we live?",
    "What is the name of our planet? | Which planet is our home?",
    "People live on the third planet, which is the Earth.",
    "We live on the planet Earth.",
)
_add(
    "What do plants need to grow besides light?",
    "What must we give to plants every day? | What do thirsty plants drink?",
    "A plant gets dry and weak without water.",
    "Plants need water to grow.",
)
_add(
    "What falls from the clouds when it is warm and wet?",
    "What makes us wet when it comes from the clouds? | What do we call water that falls from the clouds?",
    "Drops of water that fall from a cloud are rain.",
    "Rain falls from the clouds.",
)
_add(
    "What goes around the Earth at night?",
    "What big round thing shines in the night sky? | What moves around the Earth?",
    "The round light that goes around the Earth is the Moon.",
    "The Moon goes around the Earth.",
)
_add(
    "What is the opposite of hot?",
    "Which word is the opposite of hot? | If it is not hot, what is it?",
    "The word that means not hot is cold.",
    "The opposite of hot is cold.",
)
_add(
    "What is the opposite of big?",
    "Which word is the opposite of big? | If it is not big, what is it?",
    "The word that means not big is small.",
    "The opposite of big is small.",
)
_add(
    "Which part of the body do we see with?",
    "What do we use to see? | What part of the face can see?",
    "To see, we open the eyes.",
    "We see with our eyes.",
)
_add(
    "Which part of the body do we hear with?",
    "What do we use to hear? | What part of the head can hear?",
    "To hear, we use the ears.",
    "We hear with our ears.",
)
_add(
    "Which season is the coldest?",
    "What is the coldest season? | In which season does snow fall?",
    "Snow and ice come in the coldest season, and that is winter.",
    "The coldest season is winter.",
)
