"""Requests and the JSON tool call that each asks for.

The five tools: `weather(city)`, `time(city)`, `calculate(expression)`, `search(query)`, `remind(text, minutes)`.
"""

import json
from random import Random

from .case import Case, polite, prompt_key, vary
from .words import ANIMALS, COUNTRIES, FOODS, KNOWN_WORDS, THINGS, city, person, syllable_word

_WEATHER = (
    "What is the weather in {}?", "What's the weather like in {}?", "How is the weather in {}?", "Weather in {}",
    "Is it raining in {}?", "Is it cold in {}?", "Will it rain in {} today?", "Tell me the weather in {}.",
    "Do I need an umbrella in {}?", "What is the weather like in {} today?", "Check the weather in {}.",
    "Is it sunny in {}?", "Give me the weather for {}.", "How warm is it in {}?",
)  # fmt: skip
_TIME = (
    "What time is it in {}?", "What is the time in {}?", "Time in {}", "Tell me the time in {}.", "How late is it in {}?",
    "What's the time in {}?", "What time is it now in {}?", "Show me the local time in {}.", "Give me the time in {}.",
    "Check the time in {}.", "Do you know what time it is in {}?",
)  # fmt: skip
_CALCULATE = (
    "calculate {}", "work out {}", "compute {}", "use the calculator for {}", "evaluate {}", "calculate the value of {}",
)  # fmt: skip
_SEARCH = (
    "search for {}", "look up {}", "find information about {}", "search the web for {}", "google {}", "find {} online",
    "search {}", "look for {} online", "do a search for {}",
)  # fmt: skip
_REMIND = (
    "remind me to {t} in {m}",
    "in {m}, remind me to {t}",
    "set a reminder to {t} in {m}",
    "remind me in {m} to {t}",
)
_ERRANDS = (
    "call {p}", "feed the {a}", "buy {f}", "water the plants", "take the {f} out of the oven", "write to {p}",
    "clean the {o}", "go for a walk", "check the oven", "meet {p}", "drink water", "walk the {a}", "pay the rent",
    "fix the {o}", "close the {o}", "charge my phone", "do the dishes", "stretch", "take a break", "find the {o}",
    "send the {o} to {p}", "bring the {o}", "cook {f}", "wash the {o}", "leave", "read the {o}",
)  # fmt: skip
_TOPICS = (
    "how to cook {f}", "the history of {c}", "cheap flights to {y}", "best {f} in {y}", "{a} facts", "how to fix a {o}",
    "pictures of a {a}", "books about {c}", "{f} recipes", "why does a {a} sleep", "train times to {y}", "{p}",
    "hotels in {y}", "how to draw a {a}", "the capital of {c}", "new {o} prices", "how to feed a {a}", "{w} and {x}",
    "songs about a {o}", "maps of {c}", "the meaning of {w}", "a good {o}", "how many people live in {c}", "{w}",
)  # fmt: skip
_SPANS = {
    "an hour": 60,
    "half an hour": 30,
    "two hours": 120,
    "ten minutes": 10,
    "five minutes": 5,
    "a minute": 1,
}
_SPOKEN = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}


def call(tool: str, **arguments: str | int) -> str:
    """The tool call as the model writes it."""
    return json.dumps({"tool": tool, "arguments": arguments}, ensure_ascii=False)


def _fill(rng: Random, form: str) -> str:
    w, x = (rng.choice(KNOWN_WORDS) if rng.random() < 0.7 else syllable_word(rng) for _ in range(2))
    return form.format(
        p=person(rng),
        a=rng.choice(ANIMALS),
        f=rng.choice(FOODS),
        o=rng.choice(THINGS),
        c=rng.choice(COUNTRIES),
        y=city(rng),
        w=w,
        x=x,
    )


def _expression(rng: Random) -> tuple[str, str]:
    """An arithmetic expression as asked and as passed on."""
    a, b, c = (rng.randrange(1, rng.choice((10, 100, 1000))) for _ in range(3))
    first, second = rng.choice("+-*/"), rng.choice("+-*/")
    roll = rng.random()
    if roll < 0.2:
        return f"{a} {_SPOKEN[first]} {b}", f"{a} {first} {b}"
    if roll < 0.65:
        plain = f"{a} {first} {b}"
    elif roll < 0.85:
        plain = f"{a} {first} {b} {second} {c}"
    else:
        plain = f"({a} {first} {b}) {second} {c}"
    return plain, plain


def tool_case(rng: Random) -> Case:
    """A request and its tool call; the key is the wording of the request."""
    tool = rng.choice(("weather", "time", "calculate", "search", "remind"))
    if tool in ("weather", "time"):
        where = city(rng)
        if rng.random() < 0.1:
            where = where.lower()
        prompt = vary(rng, rng.choice(_WEATHER if tool == "weather" else _TIME)).format(where)
        answer = call(tool, city=where)
    elif tool == "calculate":
        asked, expression = _expression(rng)
        prompt, answer = polite(rng, rng.choice(_CALCULATE).format(asked)), call(tool, expression=expression)
    elif tool == "search":
        query = _fill(rng, rng.choice(_TOPICS))
        prompt, answer = polite(rng, rng.choice(_SEARCH).format(query)), call(tool, query=query)
    else:
        errand = _fill(rng, rng.choice(_ERRANDS))
        if rng.random() < 0.25:
            span, minutes = rng.choice(list(_SPANS.items()))
        else:
            minutes = rng.randrange(2, rng.choice((60, 100, 300)))
            span = f"{minutes} minutes"
        prompt = polite(rng, rng.choice(_REMIND).format(t=errand, m=span))
        answer = call(tool, text=errand, minutes=minutes)
    return Case("JSON", prompt, answer, prompt_key("tool", prompt))
