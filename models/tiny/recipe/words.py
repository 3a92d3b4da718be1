"""The word lists and invented words that the recipe's text is made of.

Known words (`NAMES`, `CITIES`, ...) become single tokens of the tokenizer. Invented ones (`syllable_word`) are cut into
pieces, which is what teaches the model to copy a word that it has never seen.
"""
# ruff: noqa: SIM905 (a list of words reads best as a text)

from random import Random

NAMES = (
    "Ada Alan Alice Amir Ana Anna Arun Astrid Ava Bea Ben Bo Carla Carol Chen Clara Dan Dana David Diego Dina Ed Ela "
    "Eli Ella Emil Emma Erik Eva Farid Felix Finn Freya Gita Grace Greta Hana Hans Hugo Ida Ines Ingrid Ivan Jack Jada "
    "James Jan Jane Jin John Jonas Joseph Julia Kai Karim Karl Kate Ken Kim Lars Laura Lea Leo Lena Lin Linus Lisa Liam "
    "Lucy Luis Mae Maja Malik Marco Maria Mark Marta Mary Max Maya Mei Mia Mike Mila Mira Mohamed Nadia Nick Nina Noah "
    "Nora Olga Oliver Olivia Omar Oscar Otto Paul Pedro Peter Petra Priya Ravi Rita Robin Rosa Ruth Sam Sana Sara Sven "
    "Sofia Tara Theo Tim Tina Tom Uma Vera Victor Will Yara Yuki Yusuf Zara Zoe"
).split()
PET_NAMES = (
    "Rex Fluffy Biscuit Milo Luna Bella Pip Coco Rocky Daisy Shadow Ginger Bruno Pixel Nugget Patch Ziggy Waffles "
    "Smokey Olive Ruby Buddy Misty Tiger Oreo Mochi Pepper Snowy Toby Willow"
).split()
COLOURS = (
    "red blue green yellow orange purple pink black white brown grey teal cyan magenta turquoise violet indigo gold "
    "silver beige maroon navy olive coral crimson lavender mint peach amber ivory lilac scarlet bronze lime plum"
).split()
CITIES = (
    "Oslo Paris London Rome Berlin Madrid Lisbon Vienna Prague Dublin Athens Cairo Lagos Nairobi Accra Tunis Dakar Delhi "
    "Mumbai Tokyo Kyoto Osaka Seoul Beijing Shanghai Hanoi Bangkok Jakarta Manila Sydney Melbourne Perth Auckland Lima "
    "Quito Bogota Santiago Havana Toronto Montreal Boston Chicago Dallas Denver Seattle Houston Miami Austin Helsinki "
    "Stockholm Copenhagen Bergen Warsaw Krakow Budapest Zurich Geneva Milan Turin Naples Venice Lyon Nice Porto Seville "
    "Valencia Hamburg Munich Cologne Brussels Amsterdam Utrecht Istanbul Ankara Dubai Doha Tehran Karachi Lahore Dhaka "
    "Kathmandu Moscow Riga Tallinn Vilnius Sofia Zagreb Belgrade Reykjavik Glasgow Leeds Bristol Cardiff"
).split()
CITIES += [
    "New York",
    "San Francisco",
    "Los Angeles",
    "Cape Town",
    "Mexico City",
    "Hong Kong",
    "Buenos Aires",
]
COUNTRIES = (
    "France Spain Italy Norway Japan China India Brazil Canada Egypt Kenya Peru Chile Poland Greece Turkey Sweden Mexico"
).split()
FRUITS = "apple pear plum cherry grape lemon lime mango peach banana melon fig kiwi orange apricot berry".split()
FOODS = (
    "pizza pasta soup bread rice curry sushi salad cheese cake pie noodles tacos pancakes stew toast waffles dumplings "
    "beans chocolate ramen lasagna porridge omelette"
).split()
DRINKS = "tea coffee water milk juice cocoa lemonade soda".split()
ANIMALS = (
    "cat dog fox bear wolf lion tiger mouse rabbit frog owl duck hen horse cow goat sheep pig whale dolphin seal "
    "penguin crow eagle parrot snail turtle snake spider ant bee hedgehog squirrel deer moose otter badger koala "
    "panda monkey"
).split()
THINGS = (
    "key lamp book cup spoon fork plate table chair box bag hat coat shoe ring coin map letter pen brush rope "
    "stone shell leaf flower tree cloud star moon river hill bridge boat train car bike clock bell drum flute "
    "ball kite doll lantern ladder hammer nail window door wall roof garden basket bottle candle mirror pillow "
    "blanket ticket wallet phone"
).split()
JOBS = (
    "teacher nurse doctor baker farmer pilot painter writer driver cook lawyer plumber gardener sailor singer dancer "
    "builder engineer scientist programmer librarian carpenter"
).split()
VERBS = "run jump swim read write sing walk sleep dance cook paint draw ride climb hide look wait call send fix".split()
MONTHS = ("January February March April May June July August September October November December").split()
SEASONS = "spring summer autumn winter".split()
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
_WHERE = [*"in on under behind beside above near inside".split(), "next to", "on top of", "in front of"]
_FURNITURE = (
    "table drawer door bed sofa shelf kitchen garden car coat roof cellar desk cupboard oven fridge mat rug sink bath "
    "fence shed attic hall bin piano fireplace mailbox bench curtain freezer bookcase barn fountain suitcase stairs"
).split()

_ONSETS = (
    *"b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu".split(),
    *"r s sh sk sl sn sp st t th tr v w y z".split(),
)
_VOWELS = "a e i o u a e i o u ai ea ee ia io oo ou y".split()
_ENDINGS = (*"b d g k l m n p r s t v x z".split(), "ck", "ll", "nd", "ng", "nt", "rk", "sh", "st", "th")
_CODAS = (*_ENDINGS, *[""] * 16)

KNOWN_WORDS = sorted({
    word.lower()
    for group in (COLOURS, FRUITS, FOODS, DRINKS, ANIMALS, THINGS, JOBS, VERBS, SEASONS)
    for word in group
})  # fmt: skip


def syllable_word(rng: Random) -> str:
    """An invented lower-case word of one to three syllables, such as `brelon`."""
    count = rng.choice((1, 2, 2, 2, 3))
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count))


def person(rng: Random) -> str:
    """A first name: a known one or (half the time) an invented one."""
    return rng.choice(NAMES) if rng.random() < 0.5 else syllable_word(rng).capitalize()


def city(rng: Random) -> str:
    """A city: a known one or (a third of the time) an invented one."""
    return rng.choice(CITIES) if rng.random() < 0.67 else syllable_word(rng).capitalize()


def word(rng: Random) -> str:
    """A lower-case word: a known one or (a third of the time) an invented one."""
    return rng.choice(KNOWN_WORDS) if rng.random() < 0.67 else syllable_word(rng)


def place(rng: Random, what: str = "") -> str:
    """Where a thing may lie: `under the blue box`, `behind the sofa`; beside `what`, if it is given."""
    what = what or rng.choice(rng.choice((_FURNITURE, _FURNITURE, THINGS)))
    if rng.random() < 0.2:
        what = f"{rng.choice(COLOURS)} {what}"
    return f"{rng.choice(_WHERE)} the {what}"


def jumble(rng: Random) -> str:
    """Two to eight letters in no order, such as `xqatz`, small or with a capital."""
    letters = "".join(rng.choice(LETTERS) for _ in range(rng.randrange(2, 9)))
    return letters.capitalize() if rng.random() < 0.3 else letters


def digits(rng: Random) -> str:
    """One to seven digits; the first may be a nought."""
    return "".join(rng.choice("0123456789") for _ in range(rng.randrange(1, 8)))


def any_value(rng: Random) -> str:
    """A value of no kind in particular: that a favourite colour is `4711` cannot be guessed, only looked up."""
    return rng.choice((syllable_word, syllable_word, jumble, digits, word, word, person, city))(rng)


def number(rng: Random) -> str:
    """A number of one to five digits, mostly two to four."""
    digits = rng.choice((1, 2, 2, 2, 3, 3, 4, 4, 5))
    return str(rng.randrange(10 ** (digits - 1), 10**digits))
