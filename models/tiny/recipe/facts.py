"""Facts that a person tells about themselves and asks for later: how they are told, asked for and answered."""
# ruff: noqa: SIM905 (a list of words reads best as a text)

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from .case import held_out
from .words import (
    ANIMALS,
    COLOURS,
    DRINKS,
    FOODS,
    FRUITS,
    JOBS,
    MONTHS,
    PET_NAMES,
    SEASONS,
    THINGS,
    any_value,
    city,
    number,
    person,
    place,
    syllable_word,
    word,
)


@dataclass(frozen=True)
class Fact:
    """One thing told, with every wording that the conversation may need.

    `slot` names what is told (`name`, `favourite colour`): of two facts of a slot the newer wins. `clause` can be joined
    to others by "and"; `told` are whole sentences of their own; `answer` is the sentence that gives the fact back.
    """

    slot: str
    value: str
    clause: str
    told: tuple[str, ...]
    asked: tuple[str, ...]
    answer: str
    unknown: str


# Each maker draws a fact of one kind. Its value is the `given` one, or if there is none a natural one for that kind.


def _name(rng: Random, given: str) -> Fact:
    v = given or person(rng)
    return Fact(
        "name", v, f"my name is {v}",
        (f"I'm {v}.", f"Call me {v}.", f"I am {v}.", f"Hi, I'm {v}.", f"Hello, my name is {v}.", f"You can call me {v}.",
         f"The name is {v}.", f"This is {v}.", f"Please call me {v}.", f"Hi! My name is {v}.", f"im {v}",
         f"Hello, I am {v}.", f"People call me {v}."),
        ("What is my name?", "What's my name?", "Who am I?", "Do you remember my name?", "Do you know my name?",
         "Tell me my name.", "What am I called?", "Say my name.", "Can you tell me my name?", "What was my name?",
         "What did I say my name was?", "whats my name", "Do you know who I am?", "My name is?",
         "Please tell me my name.",
         "Do you still remember my name?", "What was my name again?", "Remind me of my name.",
         "Do you remember who I am?"),
        f"Your name is {v}.", "You have not told me your name yet.",
    )  # fmt: skip


_FAVOURITES: dict[str, Callable[[Random], str]] = {
    "colour": lambda rng: rng.choice(COLOURS) if rng.random() < 0.8 else syllable_word(rng),
    "food": lambda rng: rng.choice(FOODS) if rng.random() < 0.8 else syllable_word(rng),
    "animal": lambda rng: rng.choice(ANIMALS) if rng.random() < 0.8 else syllable_word(rng),
    "fruit": lambda rng: rng.choice(FRUITS) if rng.random() < 0.8 else syllable_word(rng),
    "drink": lambda rng: rng.choice(DRINKS) if rng.random() < 0.8 else syllable_word(rng),
    "city": city, "number": number, "word": word, "game": word, "song": word,
    "season": lambda rng: rng.choice(SEASONS), "month": lambda rng: rng.choice(MONTHS),
}  # fmt: skip


def _favourite(rng: Random, given: str, what: str | None = None) -> Fact:
    what = what or rng.choice(list(_FAVOURITES))
    v = given or _FAVOURITES[what](rng)
    spelled = "color" if what == "colour" and rng.random() < 0.3 else what
    favourite = "favorite" if spelled == "color" or rng.random() < 0.25 else "favourite"
    told = [f"The {spelled} I like best is {v}.", f"{v.capitalize()} is my {favourite} {spelled}."]
    return Fact(
        f"favourite {what}", v, f"my {favourite} {spelled} is {v}",
        tuple(told[: 1 if v != v.capitalize() else 2]),
        (f"What is my {favourite} {spelled}?", f"What's my {favourite} {spelled}?", f"Which {spelled} do I like best?",
         f"Do you remember my {favourite} {spelled}?", f"Tell me my {favourite} {spelled}.",
         f"Which {spelled} is my {favourite}?", f"What {spelled} do I like best?",
         f"Do you know my {favourite} {spelled}?",
         f"What was my {favourite} {spelled}?", f"whats my {favourite} {spelled}",
         f"What did I say my {favourite} {spelled} was?", f"Can you tell me my {favourite} {spelled}?"),
        f"Your favourite {what} is {v}.", f"You have not told me your favourite {what} yet.",
    )  # fmt: skip


_OWNED: dict[str, Callable[[Random], str]] = {
    "lucky number": number, "code word": word, "password": word, "door code": number, "room number": number,
    "secret number": number, "secret word": word, "phone number": number, "bus number": number, "locker number": number,
    "pin": number, "user name": word, "house number": number, "nickname": person, "ticket number": number,
    "last name": person, "birth month": lambda rng: rng.choice(MONTHS), "home town": city, "order number": number,
}  # fmt: skip


def _owned(rng: Random, given: str) -> Fact:
    what = rng.choice([*_OWNED, "lucky number", "code word", "secret number", "door code"])
    v = given or _OWNED[what](rng)
    shared = what in ("code word", "password", "secret number", "secret word", "door code")
    the = "the" if shared and rng.random() < 0.4 else "my"
    your = "The" if the == "the" else "Your"
    return Fact(
        what, v, f"{the} {what} is {v}",
        (f"Remember that {the} {what} is {v}.", f"Please remember: {the} {what} is {v}.",
        f"{the.capitalize()} {what}: {v}",
         f"Note that {the} {what} is {v}."),
        (f"What is {the} {what}?", f"What's {the} {what}?", f"Do you remember {the} {what}?", f"Tell me {the} {what}.",
         f"What was {the} {what}?", f"Do you know {the} {what}?", f"Can you tell me {the} {what}?", f"Say {the} {what}.",
         f"What did I say {the} {what} was?", f"Please tell me {the} {what}.", f"whats {the} {what}"),
        f"{your} {what} is {v}.", f"You have not told me {the if the == 'the' else 'your'} {what} yet.",
    )  # fmt: skip


def _home(rng: Random, given: str) -> Fact:
    v = given or city(rng)
    return Fact(
        "home", v, f"I live in {v}",
        (f"My home is in {v}.", f"I'm from {v}.", f"I come from {v}.", f"My city is {v}.", f"I am living in {v}.",
         f"I moved to {v}.", f"I am from {v}.", f"The city I live in is {v}."),
        ("Where do I live?", "In which city do I live?", "What city do I live in?", "Do you remember where I live?",
         "Where is my home?", "Where am I from?", "Tell me where I live.", "Which city am I from?", "What is my city?",
         "Do you know where I live?", "Where did I say I live?", "Which city do I live in?", "where do i live"),
        f"You live in {v}.", "You have not told me where you live yet.",
    )  # fmt: skip


_RELATIONS = "sister brother mother father friend boss teacher neighbour son daughter wife husband aunt uncle".split()
_PETS = "dog cat parrot rabbit hamster horse fish turtle".split()


def _other(rng: Random, given: str) -> Fact:
    """The name of somebody else: a relation or a pet."""
    if rng.random() < 0.5:
        who, v = rng.choice(_RELATIONS), given or person(rng)
    else:
        who, v = rng.choice(_PETS), given or (rng.choice(PET_NAMES) if rng.random() < 0.6 else person(rng))
    told = [f"My {who}'s name is {v}.", f"I have a {who} named {v}.", f"I have a {who} called {v}."]
    asked = [
        f"What is my {who} called?", f"What is my {who}'s name?", f"Do you remember the name of my {who}?",
        f"What's the name of my {who}?", f"Tell me the name of my {who}.", f"What's my {who}'s name?",
        f"What is the name of my {who}?", f"Do you know my {who}'s name?", f"How is my {who} called?",
    ]  # fmt: skip
    if who in _PETS and rng.random() < 0.5:
        who = "pet"
        told = [f"My pet's name is {v}.", f"I have a pet named {v}.", f"I have a pet called {v}."]
        asked = [
            "What is my pet called?",
            "What is my pet's name?",
            "What's the name of my pet?",
            "What's my pet's name?",
        ]
    return Fact(
        f"name of {who}",
        v,
        f"my {who} is called {v}",
        tuple(told),
        tuple(asked),
        f"Your {who} is called {v}.",
        f"You have not told me the name of your {who} yet.",
    )


def _place(rng: Random, given: str) -> Fact:
    thing, v = rng.choice(THINGS), place(rng, given)
    return Fact(
        f"place of {thing}", v, f"the {thing} is {v}",
        (f"I put the {thing} {v}.", f"Remember: the {thing} is {v}.", f"I left the {thing} {v}."),
        (f"Where is the {thing}?", f"Where did I put the {thing}?", f"Where can I find the {thing}?",
        f"Where's the {thing}?",
         f"Do you remember where the {thing} is?", f"Tell me where the {thing} is."),
        f"The {thing} is {v}.", f"You have not told me where the {thing} is.",
    )  # fmt: skip


def _age(rng: Random, given: str) -> Fact:
    v = given if given.isdigit() else str(rng.randrange(5, 100))
    return Fact(
        "age",
        v,
        f"I am {v} years old",
        (f"I'm {v} years old.", f"My age is {v}.", f"I just turned {v}."),
        ("How old am I?", "What is my age?", "Do you remember how old I am?", "Tell me my age.", "What's my age?"),
        f"You are {v} years old.",
        "You have not told me how old you are.",
    )


def _job(rng: Random, given: str) -> Fact:
    v = given or rng.choice(JOBS)
    a = "an" if v[0] in "aeio" else "a"
    return Fact(
        "job",
        v,
        f"I work as {a} {v}",
        (f"My job is {v}.", f"I am {a} {v}.", f"I have a job as {a} {v}."),
        ("What is my job?", "What do I do for work?", "Do you remember my job?", "What's my job?", "What do I work as?"),
        f"You work as {a} {v}.",
        "You have not told me what your job is.",
    )


def _keepsake(rng: Random, given: str) -> Fact:
    """A bare word or number to keep."""
    if given.isdigit() or (not given and rng.random() < 0.5):
        v, what = given or number(rng), "number"
    else:
        v, what = given or word(rng), "word"
    return Fact(
        f"kept {what}", v, f"the {what} to remember is {v}",
        (f"Remember the {what} {v}.", f"Please remember the {what} {v}.", f"Keep the {what} {v} in mind.",
         f"Remember this {what}: {v}", f"Remember {v}." if what == "number" else f"Remember the {what}: {v}"),
        (f"What {what} did I ask you to remember?", f"Which {what} should you remember?", f"What was the {what}?",
         f"What is the {what}?", f"What {what} did I tell you?", f"Tell me the {what}.", f"Do you remember the {what}?"),
        f"The {what} is {v}.", f"You have not given me a {what} to remember.",
    )  # fmt: skip


_MAKERS: dict[Callable[[Random, str], Fact], int] = {
    _name: 6, _favourite: 6, _owned: 6, _home: 4, _other: 4, _place: 2, _age: 1, _job: 1, _keepsake: 2,
}  # fmt: skip
_ANY_VALUE_SHARE = 0.5


def draw_fact(rng: Random, *, evaluation: bool = False) -> Fact:
    """A fact whose value is on the wanted side of the split: evaluation values are never told in training.

    Half of the facts of training have a value that is not natural for their kind, so that it must be looked up in the
    conversation and cannot be guessed from the kind. Evaluation has natural ones.
    """
    while True:
        (maker,) = rng.choices(list(_MAKERS), list(_MAKERS.values()))
        given = any_value(rng) if not evaluation and rng.random() < _ANY_VALUE_SHARE else ""
        is_colour = maker is _favourite and rng.random() < 0.4
        fact = _favourite(rng, given, "colour") if is_colour else maker(rng, given)
        if held_out("value:" + fact.value.lower()) == evaluation:
            return fact
