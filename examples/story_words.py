"""Word lists the stories draw on: people, animals, places and things."""

from __future__ import annotations


def _listed(text: str) -> list[str]:
    """Split at bars, or at spaces where there are no bars."""
    return text.split("|") if "|" in text else text.split()


GIRLS = _listed(
    "Lily Mia Anna Sue Rosie Emma Lucy Zoe Ella Amy Molly Nora Ruby Daisy Clara Ivy Maya Jane Kate Poppy "
    "Sara Mary Lola Tina Bella"
)
BOYS = _listed(
    "Tom Ben Max Sam Tim Jack Leo Finn Oscar Noah Theo Hugo Dan Eli Billy Sid Luke Adam Henry Toby Joe "
    "Will Ravi Kofi Pablo"
)

HERO_ANIMALS = _listed(
    "rabbit fox bear mouse squirrel hedgehog duck frog puppy kitten owl turtle badger lamb otter monkey"
)
PETS = _listed("dog cat bird rabbit duck squirrel turtle frog mouse lamb hedgehog puppy kitten pony goat owl")

TRAITS = _listed("little young kind curious happy brave gentle clever shy cheerful small quiet busy funny")

COLOURS = _listed("red blue green yellow orange purple pink white black brown silver golden")
TOYS = _listed("ball kite truck doll boat car drum hat scarf train robot balloon teddy whistle bucket cup")
TOY_ADJECTIVES = [*COLOURS, "big", "small", "shiny", "soft", "old", "new", "round", "little"]

PLACES = _listed(
    "park forest beach garden farm meadow river playground lake hill market village woods pond orchard field"
)
HIDING = _listed(
    "under the bed|behind the sofa|under the old tree|in the tall grass|behind a big rock|"
    "next to the gate|inside a basket|under the table|behind the door|near the pond|in a pile of leaves|"
    "under a bench|behind the shed|in the flower bed|on top of the shelf|beside the path"
)

# Each food comes with two things that go into it.
FOODS = (
    ("cookies", "flour", "butter"),
    ("soup", "carrots", "water"),
    ("pancakes", "eggs", "milk"),
    ("bread", "flour", "salt"),
    ("muffins", "berries", "sugar"),
    ("salad", "tomatoes", "lettuce"),
    ("pizza", "cheese", "tomatoes"),
    ("jam", "strawberries", "sugar"),
    ("cupcakes", "eggs", "sugar"),
    ("pasta", "cheese", "butter"),
)
FRUITS = _listed("apples pears plums cherries berries oranges peaches grapes nuts figs")
SNACKS = _listed("apple cookie sandwich cake banana pear muffin peach orange bun")
PLANTS = _listed("carrots sunflowers tomatoes beans roses pumpkins tulips peas strawberries daisies potatoes lilies")

# The verb phrase as it stands after "to", and as a noun phrase.
SKILLS = (
    ("ride a bike", "riding a bike"),
    ("swim", "swimming"),
    ("tie a knot", "tying a knot"),
    ("play the drum", "playing the drum"),
    ("read", "reading"),
    ("skate", "skating"),
    ("dance", "dancing"),
    ("whistle", "whistling"),
    ("climb a tree", "climbing a tree"),
    ("paint", "painting"),
    ("sing a song", "singing a song"),
    ("skip rope", "skipping rope"),
    ("fly a kite", "flying a kite"),
    ("play the piano", "playing the piano"),
    ("write a letter", "writing a letter"),
    ("juggle", "juggling"),
)
# A thing that breaks, the part that goes wrong, and what mends it.
BROKEN = (
    ("chair", "leg", "glue"),
    ("bike", "wheel", "a wrench"),
    ("kite", "tail", "string"),
    ("cart", "wheel", "a hammer"),
    ("clock", "spring", "a tiny screwdriver"),
    ("boat", "mast", "a strong rope"),
    ("teapot", "handle", "glue"),
    ("fence", "gate", "new nails"),
    ("toy train", "wheel", "a small screw"),
    ("doll", "arm", "a needle and thread"),
    ("swing", "rope", "a strong rope"),
    ("lamp", "switch", "a screwdriver"),
    ("music box", "lid", "glue"),
    ("wagon", "handle", "wire"),
)
VEHICLES = _listed("bus train boat car tram wagon ferry van")
TRIPS = (
    ("the sea", "waves", "a pretty shell"),
    ("the mountains", "snow", "a smooth stone"),
    ("the zoo", "elephants", "a picture of a lion"),
    ("the city", "tall buildings", "a small map"),
    ("the farm", "cows", "a bag of eggs"),
    ("the museum", "old bones", "a postcard"),
    ("the lake", "swans", "a white feather"),
    ("the castle", "stone towers", "a paper crown"),
    ("the island", "crabs", "a shiny shell"),
    ("the desert", "sand hills", "a jar of sand"),
)
GIFTS = (
    ("a warm scarf", "scarf", "wool"),
    ("a paper crown", "crown", "gold paper"),
    ("a wooden boat", "boat", "wood"),
    ("a birthday card", "card", "paper and glue"),
    ("a bead necklace", "necklace", "beads"),
    ("a small painting", "painting", "paint"),
    ("a clay cup", "cup", "clay"),
    ("a flower chain", "chain", "daisies"),
    ("a picture book", "book", "paper and string"),
    ("a soft pillow", "pillow", "old cloth"),
)
FEARS = (
    ("the dark", "a lamp", "the dark room"),
    ("thunder", "a warm blanket", "the loud storm"),
    ("deep water", "a yellow float", "the deep pool"),
    ("high places", "a strong rope", "the tall tower"),
    ("big dogs", "a bone", "the big dog"),
    ("the old bridge", "a steady hand", "the old bridge"),
    ("the dentist", "a small bear", "the white room"),
    ("the stage", "a deep breath", "the big stage"),
)
ADULTS = (
    ("Mom", "she", "her", "her"),
    ("Dad", "he", "him", "his"),
    ("Grandma", "she", "her", "her"),
    ("Grandpa", "he", "him", "his"),
)
PEOPLE = _listed("baker farmer teacher postman fisherman doctor gardener painter shopkeeper librarian")
NUMBERS = _listed("two three four five six seven")
