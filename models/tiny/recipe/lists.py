"""Short lists to copy and to reverse, numbers to add, ranges to count through."""

from random import Random

from .case import Case, vary
from .commands import message
from .words import (
    ANIMALS,
    COLOURS,
    FOODS,
    FRUITS,
    KNOWN_WORDS,
    LETTERS,
    NAMES,
    THINGS,
    any_value,
    person,
    syllable_word,
)

_COPY = (
    "Copy this list: {}", "Copy: {}", "Repeat this list: {}", "Repeat: {}", "Repeat after me: {}", "Say this: {}",
    "Copy the list {}", "Write this list again: {}", "Please repeat {}", "Say this list back to me: {}", "Echo: {}",
    "Can you copy this list? {}", "Print this list: {}", "Copy these: {}", "repeat {}", "Please copy: {}",
)  # fmt: skip
_REVERSE = (
    "Reverse this list: {}", "Reverse: {}", "Say this list backwards: {}", "Turn this list around: {}",
    "Reverse the list {}", "Write this list in reverse order: {}", "Please reverse {}", "Backwards: {}",
    "Can you reverse this list? {}", "Put this list in reverse order: {}", "reverse {}", "Reverse these: {}",
    "Say these backwards: {}", "List these from last to first: {}", "Please reverse: {}",
)  # fmt: skip
_ADD = (
    "What is {} + {}?", "{} + {}", "{}+{}", "Add {} and {}.", "What is {} plus {}?", "{} plus {}", "How much is {} + {}?",
    "What's {} + {}?", "{} + {} = ?", "Sum {} and {}.", "What is the sum of {} and {}?", "Please add {} and {}.",
    "How much is {} plus {}?", "Can you add {} and {}?", "What do you get if you add {} and {}?", "{} + {} =",
)  # fmt: skip
_COUNT = (
    "Count from {} to {}.", "Please count from {} to {}.", "Can you count from {} to {}?", "Count: {} to {}",
    "Count up from {} to {}.", "Say the numbers from {} to {}.", "List the numbers from {} to {}.",
)  # fmt: skip
_COUNT_TO = ("Count to {}.", "Please count to {}.", "Can you count to {}?", "Count up to {}.")
_COUNT_DOWN = ("Count down from {} to {}.", "Count backwards from {} to {}.", "Count from {} down to {}.")


def _items(rng: Random, count: int) -> list[str]:
    roll = rng.random()
    if roll < 0.16:
        return [str(rng.randrange(10)) for _ in range(count)]
    if roll < 0.28:
        return [str(rng.randrange(10, 100)) for _ in range(count)]
    if roll < 0.36:
        return [rng.choice(LETTERS) for _ in range(count)]
    if roll < 0.46:
        return [syllable_word(rng) for _ in range(count)]
    if roll < 0.56:
        return [person(rng) for _ in range(count)]
    pool = rng.choice((KNOWN_WORDS, KNOWN_WORDS, FRUITS, ANIMALS, COLOURS, FOODS, THINGS, NAMES))
    return rng.sample(pool, count)


def _list_case(rng: Random, ability: str, forms: tuple[str, ...], *, backwards: bool) -> Case:
    items = _items(rng, rng.choice((2, 3, 3, 4, 4, 5, 5, 6)))
    separator = rng.choice((", ", ", ", " "))
    if not backwards and rng.random() < 0.1:
        items, separator = message(rng).split(), " "
    answer = separator.join(reversed(items) if backwards else items)
    prompt = vary(rng, rng.choice(forms)).format(separator.join(items))
    return Case(ability, prompt, answer, f"{ability}:{' '.join(items).lower()}")


def echo_case(rng: Random) -> Case:
    """A longer list of values of no kind to repeat, now and then all in capitals; practice only."""
    count = rng.randrange(3, 13)
    items = [rng.choice((any_value, any_value, syllable_word, _known))(rng) for _ in range(count)]
    if rng.random() < 0.1:
        items = [item.upper() for item in items]
    separator = rng.choice((", ", " "))
    text = separator.join(items)
    return Case("echo", rng.choice(_COPY).format(text), text, f"echo:{' '.join(items).lower()}")


def _known(rng: Random) -> str:
    return rng.choice(KNOWN_WORDS)


def copy_case(rng: Random) -> Case:
    """Two to six items, or a short sentence, to repeat; the key is the list."""
    return _list_case(rng, "copy", _COPY, backwards=False)


def reverse_case(rng: Random) -> Case:
    """Two to six items to say from last to first; the key is the list."""
    return _list_case(rng, "reverse", _REVERSE, backwards=True)


def addition_case(rng: Random) -> Case:
    """Two two-digit numbers to add; the key is the unordered pair."""
    a, b = rng.randrange(10, 100), rng.randrange(10, 100)
    prompt = vary(rng, rng.choice(_ADD)).format(a, b)
    return Case("addition", prompt, f"{a} + {b} = {a + b}", f"add:{min(a, b)}+{max(a, b)}")


def small_addition_case(rng: Random) -> Case:
    """As `addition_case` with at least one number below ten; practice only."""
    a, b = rng.randrange(10), rng.randrange(100)
    if rng.random() < 0.5:
        a, b = b, a
    prompt = vary(rng, rng.choice(_ADD)).format(a, b)
    return Case("small addition", prompt, f"{a} + {b} = {a + b}", f"small:{a}+{b}")


def worked(answer: str) -> str:
    """The sum `a + b = c` as done on paper: units, then tens with what is carried, then the whole.

    `38 + 47 = 85` becomes `8 + 7 = 15, 3 + 4 + 1 = 8, so 85`. Each step is a sum of digits, so a small network learns the
    hundred of them rather than thousands of pairs.
    """
    a, b, total = (int(part) for part in answer.replace("=", "+").split("+"))
    if a < 10 and b < 10:
        return answer
    units = a % 10 + b % 10
    carried = " + 1" if units >= 10 else ""
    return f"{a % 10} + {b % 10} = {units}, {a // 10} + {b // 10}{carried} = {total // 10}, so {total}"


def count_case(rng: Random) -> Case:
    """Up to thirty numbers to say in order, up or down; the key is the range."""
    length = rng.randrange(2, 31)
    first = 1 if rng.random() < 0.35 else rng.randrange(0, rng.choice((20, 100, 170)))
    last = first + length - 1
    if rng.random() < 0.15:
        prompt, numbers = rng.choice(_COUNT_DOWN).format(last, first), range(last, first - 1, -1)
    elif first == 1 and rng.random() < 0.5:
        prompt, numbers = rng.choice(_COUNT_TO).format(last), range(1, last + 1)
    else:
        prompt, numbers = rng.choice(_COUNT).format(first, last), range(first, last + 1)
    key = f"count:{numbers[0]}:{numbers[-1]}"
    return Case("counting", vary(rng, prompt), " ".join(map(str, numbers)), key)
