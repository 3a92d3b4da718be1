"""The shell's language as records: what syntax.py makes of a text, and evaluate.py carries out."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Literal:
    """Text as it stands. Of text that is not `quoted`, `*`, `?` and `[` are patterns."""

    text: str
    quoted: bool = False


@dataclass(frozen=True)
class Variable:
    """`$name`, `${name}`, `${name:-word}`. Within quotes it is one word, whatever is in it."""

    name: str
    quoted: bool = False
    # `:-` and `-`: `word` stands for one that is empty, or not set; `+`, `:+`: the other way round; `=`, `?`: it becomes
    # the value, or is the error; `#`, `%`: a pattern that is cut off; `length`.
    operator: str = ""
    word: Word | None = None


@dataclass(frozen=True)
class Substitution:
    """`$(...)`: what the script prints, without the ends of lines behind it."""

    script: Script
    quoted: bool = False


@dataclass(frozen=True)
class Sum:
    """`$((...))`: whole numbers."""

    expression: Word
    quoted: bool = False


Part = Literal | Variable | Substitution | Sum


@dataclass(frozen=True)
class Word:
    """A word of parts; `source` is how it was written, `start` where."""

    parts: tuple[Part, ...] = ()
    source: str = ""
    start: int = 0

    @property
    def plain(self) -> str | None:
        """Its text if it is a literal without quotes."""
        if len(self.parts) == 1 and isinstance(self.parts[0], Literal) and not self.parts[0].quoted:
            return self.parts[0].text
        return None


@dataclass
class Redirect:
    """`<`, `>`, `>>`, `2>`, `2>>`, `&>`, `2>&1`, `<<<` and `<<` (whose `target` is the text)."""

    operator: str
    target: Word


@dataclass
class Simple:
    """One command: `words`, and the free `text` of a command that takes it, `verbatim` if it is not in quotes. `host`:
    `!ps`, a program of the host."""

    assignments: list[tuple[str, Word]] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    text: Word | None = None
    verbatim: bool = False
    redirects: list[Redirect] = field(default_factory=list)
    host: bool = False
    source: str = ""
    line: int = 0  # of its script


@dataclass
class If:
    branches: list[tuple[Script, Script]]  # condition, what is then done
    otherwise: Script | None = None
    redirects: list[Redirect] = field(default_factory=list)


@dataclass
class While:
    condition: Script
    body: Script
    until: bool = False
    redirects: list[Redirect] = field(default_factory=list)


@dataclass
class For:
    name: str
    words: list[Word] | None  # None: the arguments, "$@"
    body: Script
    redirects: list[Redirect] = field(default_factory=list)


@dataclass
class Case:
    """Each clause: its patterns, and what is done if `word` matches one of them."""

    word: Word
    clauses: list[tuple[list[Word], Script]] = field(default_factory=list)
    redirects: list[Redirect] = field(default_factory=list)


@dataclass
class Group:
    """`{ ...; }`, or in parentheses with variables of its own."""

    body: Script
    apart: bool = False
    redirects: list[Redirect] = field(default_factory=list)


@dataclass
class Function:
    name: str
    body: Node


Node = Simple | If | While | For | Case | Group | Function


@dataclass
class Pipeline:
    members: list[Node]
    negated: bool = False
    timed: bool = False
    source: str = ""


@dataclass
class AndOr:
    """`a && b || c`: the first, and what follows with its operator. `background`: `&` stands behind it."""

    first: Pipeline
    rest: list[tuple[str, Pipeline]] = field(default_factory=list)
    background: bool = False


@dataclass(frozen=True)
class Script:
    items: tuple[AndOr, ...] = ()
