"""A case (one request and its right answer) and the rule that splits cases into training and held-out ones.

The split is by construction: a case carries a `key` that names it whatever its wording's case or punctuation, and a
hash of the key decides. Training draws only cases whose key is not held out, evaluation only cases whose key is. So no
file lists the held-out cases, and none of them can leak into training.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from zlib import crc32

HELD_OUT_SHARE = 10
"""One key in this many is held out."""


@dataclass(frozen=True)
class Case:
    """One request to the assistant.

    `key` identifies the case for the split; two cases with equal keys are the same question.
    """

    ability: str
    prompt: str
    answer: str
    key: str


Maker = Callable[[Random], Case]


def held_out(key: str) -> bool:
    """Whether the case (or fact value) of this key is kept from training."""
    return crc32(key.encode()) % HELD_OUT_SHARE == 0


def prompt_key(ability: str, prompt: str) -> str:
    """The key of a case that is identified by its wording: letters and digits only, in lower case."""
    return ability + ":" + re.sub(r"[^\w+*/()-]+", " ", prompt.lower()).strip()


def draw(make: Maker, rng: Random, *, evaluation: bool = False) -> Case:
    """The next case of the wanted side of the split."""
    while True:
        case = make(rng)
        if held_out(case.key) == evaluation:
            return case


def vary(rng: Random, prompt: str) -> str:
    """The prompt as a hurried person may type it: perhaps without its last mark or its first capital."""
    roll = rng.random()
    if roll < 0.12:
        return prompt.rstrip(".?!")
    if roll < 0.24 and not re.match(r"[A-Z][A-Z]", prompt):
        return prompt[0].lower() + prompt[1:].rstrip(".?!")
    if roll < 0.28:
        return prompt[0].lower() + prompt[1:]
    if roll < 0.30:
        return prompt.rstrip(".?!") + "!"
    return prompt


def vary_question(rng: Random, prompt: str) -> str:
    """As `vary`, and now and then all in capitals: for prompts whose answer does not repeat their words."""
    if rng.random() < 0.03:
        return prompt.upper()
    if rng.random() < 0.03:
        return prompt.lower().rstrip(".?!")
    return vary(rng, prompt)


def polite(rng: Random, request: str) -> str:
    """A lower-case imperative (`stop process 3`) as a request, with or without a courtesy around it."""
    roll = rng.random()
    capital = request[0].upper() + request[1:]
    if roll < 0.45:
        return capital + rng.choice((".", "", ""))
    if roll < 0.55:
        return request
    if roll < 0.65:
        return f"Please {request}."
    if roll < 0.72:
        return f"{capital}, please."
    if roll < 0.80:
        return f"Can you {request}?"
    if roll < 0.86:
        return f"Could you {request}?"
    if roll < 0.91:
        return f"Tiny, {request}."
    if roll < 0.96:
        return f"I want you to {request}."
    return f"Hey, {request} please."
