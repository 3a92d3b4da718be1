"""Short stories in simple English, put together from a small grammar.

A story has a hero (`a small fox`, `a robot named Zib`), a wish, a trouble, a friend who helps, and an ending. The key of
a case is its hero, so the stories of held-out heroes are distinct from every training story by construction.
"""
# ruff: noqa: SIM905 (a list of words reads best as a text)

from random import Random

from .case import Case, vary
from .words import ANIMALS, JOBS, person

_OTHERS = "robot dragon king queen wizard knight pirate ghost giant witch princess prince boy girl child".split()
_ADJECTIVES = (
    "small big brave shy happy sad old young clever lazy kind quiet hungry sleepy curious lonely tiny funny gentle proud "
    "busy lost"
).split()
_ASK = (
    "Tell me a story about {}.", "Tell a story about {}.", "Write a story about {}.", "Can you tell me a story about {}?",
    "I want a story about {}.", "Please tell me a story about {}.", "Tell me a short story about {}.", "A story about {}",
    "Write a short story about {}.", "Make up a story about {}.", "Story about {}",
)  # fmt: skip
_ASK_LONG = (
    "Tell me a long story about {}.",
    "Write a long story about {}.",
    "Please tell a long story about {}.",
    "Can you tell me a long story about {}?",
)
_ASK_ANY = (
    "Tell me a story.", "Tell me a short story.", "Can you tell me a story?", "I want to hear a story.",
    "A story please.",
    "Do you know a story?", "Tell me another story.", "Write a story.",
)  # fmt: skip

_HOMES = (
    "in a green forest", "near a wide river", "in a little house", "on a high hill", "by the sea", "in a quiet village",
    "at the end of a long road", "under an old tree",
)  # fmt: skip
_WISHES = (
    ("find a friend", "had found a friend"), ("see the moon", "could see the moon"), ("learn to sing", "could sing"),
    ("cross the river", "had crossed the river"), ("find the golden key", "held the golden key"),
    ("build a boat", "had a fine boat"), ("bake a big cake", "had a big cake"), ("climb the hill", "stood on the hill"),
    ("find the way home", "was home again"), ("learn to read", "could read"), ("catch a star", "held a little star"),
    ("plant a garden", "had a lovely garden"),
)  # fmt: skip
_TROUBLES = (
    "But the night was dark and cold.", "But a strong wind began to blow.", "But it started to rain.",
    "But the road was very long.", "But nobody knew how to do it.", "But the door was locked.",
    "But the map was lost.", "But everyone said that it was too hard.",
)  # fmt: skip
_HELP = (
    'Then a {friend} came by and said, "I can help you."',
    "Then a kind {friend} showed the way.",
    "A {friend} heard about it and came to help.",
    'A wise {friend} said, "Try once more."',
)
_MIDDLE = (
    "The {hero} sat down and thought about it.", "The {hero} and the {friend} shared some bread.",
    "They walked all day and sang a song.", "They looked in every corner.", "They asked an old man, but he was asleep.",
    "After a while the sun came out.", "The {friend} told a funny joke and they both laughed.",
    "The next morning they tried again.", "They worked together and did not give up.", "Slowly it became easier.",
)  # fmt: skip
_ENDS = (
    "In the end the {hero} {done} and was very happy.",
    "At last the {hero} {done}, and they all smiled.",
    "Soon the {hero} {done} and thanked the {friend}.",
)
_CLOSINGS = (
    "From that day on they were the best of friends.",
    "Then they went home to sleep.",
    "That night they had a big party.",
    "And the {hero} never forgot that day.",
)


def _tell(rng: Random, phrase: str, hero: str, name: str | None, *, long: bool) -> str:
    """The text of a story about `phrase` (with its article), later called `hero` or by its name."""
    friend = rng.choice([animal for animal in ANIMALS if animal != hero and animal[0] not in "aeo"])
    wish, done = rng.choice(_WISHES)
    opening = rng.choice(("Once upon a time there was {} who lived {}.", "Once there was {} who lived {}."))
    sentences = [
        opening.format(phrase, rng.choice(_HOMES)),
        rng.choice(("One day the {hero} wanted to {wish}.", "The {hero} wanted to {wish}.")),
    ]
    if rng.random() < 0.7 or long:
        sentences.append(rng.choice(_TROUBLES))
    sentences.append(rng.choice(_HELP))
    if long:
        sentences += rng.sample(_MIDDLE, rng.choice((4, 5, 6)))
    sentences.append(rng.choice(_ENDS))
    if rng.random() < 0.5 or long:
        sentences.append(rng.choice(_CLOSINGS))
    text = " ".join(sentences)
    if name:
        text = text.replace("the {hero}", "{hero}").replace("The {hero}", "{hero}")
    return text.format(hero=name or hero, friend=friend, wish=wish, done=done)


def story_case(rng: Random) -> Case:
    """A story about a hero that the prompt names."""
    hero = rng.choice([*ANIMALS, *_OTHERS])
    adjective = rng.choice(_ADJECTIVES) if rng.random() < 0.5 else ""
    noun_phrase = f"{adjective} {hero}".strip()
    phrase = ("an " if noun_phrase[0] in "aeio" else "a ") + noun_phrase
    name = None
    if rng.random() < 0.3:
        name = person(rng)
        phrase += f" {rng.choice(('named', 'called'))} {name}"
    long = rng.random() < 0.2
    prompt = vary(rng, rng.choice(_ASK_LONG if long else _ASK).format(phrase))
    key = "story:" + " ".join(filter(None, (adjective, hero, name))).lower()
    return Case("stories", prompt, _tell(rng, phrase, hero, name, long=long), key)


def any_story_case(rng: Random) -> Case:
    """A story about whatever the assistant likes; practice only."""
    case = story_case(rng)
    return Case("any story", vary(rng, rng.choice(_ASK_ANY)), case.answer, case.key)


def writer_case(rng: Random) -> Case:
    """A story about a person of a trade, asked for by a plain noun; practice only."""
    job = rng.choice(JOBS)
    phrase = ("an " if job[0] in "aeio" else "a ") + job
    prompt = vary(rng, rng.choice(_ASK).format(phrase))
    return Case("story of a trade", prompt, _tell(rng, phrase, job, None, long=False), f"story:{job}")
