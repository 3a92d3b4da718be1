"""Names of layers as configurations give them: plain, a module's class, or a regular expression.

An expression from a stranger's file is not given to Python's `re`, which takes hours over "(a+)+$": a few dozen lines of
Thompson's construction match in time that grows with the name only, as RE2 does. They have the operators that names of
layers need (classes, groups, alternatives, repeats, anchors); lookaround and back references are refused.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from dataclasses import dataclass

from llmasos.modelfiles.files import broken, quoted
from llmasos.syscalls.errno import Errno, SyscallError

_LONGEST = 1000  # characters of an expression, and of a name
_STEPS = 2000  # instructions of an expression
_REPEATS = 200  # the greatest count of a repeat
_CACHED = 20_000
_WORD = frozenset(string.ascii_letters + string.digits + "_")
_CLASSES = {"d": frozenset(string.digits), "w": _WORD, "s": frozenset(string.whitespace)}

Kernel = frozenset[int]


@dataclass(slots=True)
class _Step:
    """An instruction: a character of `chars` (or, `but`, any other) leads to `to`; without chars, `what` says."""

    what: str  # char, split, start, end, match
    to: int = -1
    other: int = -1
    chars: frozenset[str] = frozenset()
    but: bool = False


class Pattern:
    """One entry of a list of layers: "re:EXPRESSION", a name, or a class such as Linear."""

    def __init__(self, text: str) -> None:
        self._expression = Expression(text[3:]) if text.startswith("re:") else None
        self._text = text

    @property
    def rank(self) -> int:
        """0 for what may be a name, 1 for an expression: the order in which entries are tried."""
        return 0 if self._expression is None else 1

    @property
    def is_class(self) -> bool:
        return self._expression is None and "." not in self._text and self._text[:1].isupper()

    def matches(self, name: str) -> bool:
        return self._text == name if self._expression is None else self._expression.begins(name)


class Expression:
    """A regular expression, read when it is first asked. Raises ENOTSUP for one that is not understood."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._steps: list[_Step] = []
        self._at = 0
        self._next: dict[tuple[Kernel, str, bool], Kernel | None] = {}

    def begins(self, name: str) -> bool:
        """Whether it matches the beginning of `name`, as re.match does."""
        if not self._steps:
            self._compile()
        if len(name) > _LONGEST:
            raise broken(f"a tensor's name has {len(name)} characters; download the model again")
        kernel: Kernel | None = frozenset((0,))
        for place, char in enumerate(name):
            assert kernel is not None
            key = kernel, char, place == 0
            if key not in self._next:
                if len(self._next) >= _CACHED:
                    self._next.clear()
                self._next[key] = self._advance(kernel, char, place == 0)
            kernel = self._next[key]
            if kernel is None:
                return True
            if not kernel:
                return False
        assert kernel is not None
        return any(self._steps[at].what == "match" for at in self._closure(kernel, not name, True))

    def _advance(self, kernel: Kernel, char: str, start: bool) -> Kernel | None:
        """Where one character leads; None: it has matched before it."""
        reached = [self._steps[at] for at in self._closure(kernel, start, False)]
        if any(step.what == "match" for step in reached):
            return None
        return frozenset(step.to for step in reached if step.what == "char" and (char in step.chars) != step.but)

    def _closure(self, kernel: Iterable[int], start: bool, end: bool) -> set[int]:
        seen: set[int] = set()
        todo = list(kernel)
        while todo:
            at = todo.pop()
            if at in seen:
                continue
            seen.add(at)
            step = self._steps[at]
            if step.what == "split":
                todo += (step.to, step.other)
            elif (step.what == "start" and start) or (step.what == "end" and end):
                todo.append(step.to)
        return seen

    # Reading: each part is a function of where it leads, built from the end to the beginning; 0 is where it all starts.

    def _compile(self) -> None:
        if len(self._text) > _LONGEST:
            raise self._refuse(f"it has {len(self._text)} characters")
        self._steps = [_Step("split")]
        tree = self._alternatives(0)
        if self._at < len(self._text):
            raise self._refuse(f"there is no beginning of the group that ends at {self._at}")
        self._steps[0].to = self._steps[0].other = self._emit(tree, self._put(_Step("match")))

    def _put(self, step: _Step) -> int:
        if len(self._steps) >= _STEPS:
            raise self._refuse("it is too large")
        self._steps.append(step)
        return len(self._steps) - 1

    def _emit(self, tree: tuple[object, ...], to: int) -> int:
        match tree:
            case ("char", frozenset() as chars, bool() as but):
                return self._put(_Step("char", to, chars=chars, but=but))
            case ("start" | "end" as what,):
                return self._put(_Step(what, to))
            case ("all", list() as parts):
                for part in reversed(parts):
                    to = self._emit(part, to)
                return to
            case ("any", list() as parts):
                heads = [self._emit(part, to) for part in parts]
                while len(heads) > 1:
                    heads.append(self._put(_Step("split", heads.pop(), heads.pop())))
                return heads[0]
            case ("repeat", tuple() as part, int() as low, int() as high):
                return self._repeat(part, low, high, to)
        raise AssertionError(tree)

    def _repeat(self, part: tuple[object, ...], low: int, high: int, to: int) -> int:
        if high < 0:
            loop = self._put(_Step("split", other=to))
            self._steps[loop].to = self._emit(part, loop)
            to = loop
        else:
            end = to
            for _ in range(high - low):
                to = self._put(_Step("split", self._emit(part, to), end))
        for _ in range(low):
            to = self._emit(part, to)
        return to

    def _alternatives(self, depth: int) -> tuple[object, ...]:
        if depth > 20:
            raise self._refuse("its groups are too deep")
        choices = [self._sequence(depth)]
        while self._peek() == "|":
            self._at += 1
            choices.append(self._sequence(depth))
        return choices[0] if len(choices) == 1 else ("any", choices)

    def _sequence(self, depth: int) -> tuple[object, ...]:
        parts: list[tuple[object, ...]] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._counted(self._atom(depth)))
        return ("all", parts)

    def _counted(self, part: tuple[object, ...]) -> tuple[object, ...]:
        counts = {"*": (0, -1), "+": (1, -1), "?": (0, 1)}
        while True:
            sign = self._peek()
            if sign in counts and sign:
                self._at += 1
                part = ("repeat", part, *counts[sign])
            elif sign == "{":
                end = self._text.find("}", self._at)
                low, comma, high = self._text[self._at + 1 : end].partition(",") if end > 0 else ("", "", "")
                if not low.isdecimal() or (high and not high.isdecimal()):
                    raise self._refuse(f"the count at {self._at} is not understood")
                first, last = int(low), int(high) if high else -1 if comma else int(low)
                if first > _REPEATS or last > _REPEATS or -1 < last < first:
                    raise self._refuse(f"the count at {self._at} is too large")
                part = ("repeat", part, first, last)
                self._at = end + 1
            else:
                return part

    def _atom(self, depth: int) -> tuple[object, ...]:
        char = self._peek()
        self._at += 1
        if char == "(":
            if self._peek() == "?":
                if self._text[self._at : self._at + 2] != "?:":
                    raise self._refuse("it looks around, or has names of groups")
                self._at += 2
            tree = self._alternatives(depth + 1)
            if self._peek() != ")":
                raise self._refuse("a group has no end")
            self._at += 1
            return tree
        if char == "[":
            return self._set()
        if char == "\\":
            return ("char", *self._escape())
        if char == ".":
            return ("char", frozenset("\n"), True)
        if char in "^$":
            return ("start" if char == "^" else "end",)
        if char in "*+?{":
            raise self._refuse(f"nothing is repeated at {self._at - 1}")
        return ("char", frozenset(char), False)

    def _escape(self) -> tuple[frozenset[str], bool]:
        char = self._peek()
        self._at += 1
        if char.lower() in _CLASSES and char:
            return _CLASSES[char.lower()], char.isupper()
        if not char or char.isalnum():
            raise self._refuse(f"\\{char} is not understood")
        return frozenset(char), False

    def _set(self) -> tuple[object, ...]:
        but = self._peek() == "^"
        self._at += but
        chars: set[str] = set()
        first = True
        while self._peek() != "]" or first:
            first = False
            char = self._peek()
            if not char:
                raise self._refuse("a set has no end")
            self._at += 1
            if char == "\\":
                escaped, negated = self._escape()
                if negated:
                    raise self._refuse("a set holds what is not of a class")
                chars |= escaped
                continue
            last = self._text[self._at + 1 : self._at + 2]
            if self._peek() == "-" and last and last not in "]\\":
                self._at += 2
                if not char <= last or ord(last) > 0x7F:
                    raise self._refuse("a range of a set is not understood")
                chars |= {chr(code) for code in range(ord(char), ord(last) + 1)}
            else:
                chars.add(char)
        self._at += 1
        return ("char", frozenset(chars), but)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _refuse(self, why: str) -> SyscallError:
        return SyscallError(
            Errno.ENOTSUP,
            f"the quantisation's expression {quoted(self._text)} for names of layers is not supported: {why}; name the "
            "layers in config.json",
        )
