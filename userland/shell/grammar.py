"""The forms of the shell's commands, declared as data, and the reader of a command's words.

The text of `say` and `spawn` is the rest of the line, as it stands: "what's my name?" needs no quotes, and `#` is text.
What stands around a command (pipes, variables, loops) is syntax.py's; here a command has its words already. `parse` reads
a single line without any of that.

One declaration (`Command`) gives the parser, the help, and the completion.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llmasos.syscalls.errno import Errno, SyscallError


class UsageError(SyscallError):
    """The line is not of the command's form."""

    def __init__(self, reason: str) -> None:
        super().__init__(Errno.EINVAL, reason)


def status_of(error: SyscallError) -> int:
    """The exit status that an error is, for verbs and in the shell: 2 for EINVAL, which says that the words are wrong,
    1 for what the system refused or failed to do."""
    return 2 if error.errno is Errno.EINVAL else 1


class Kind(enum.Enum):
    """The meaning of a word, for completion and checks."""

    PID = "PID"  # a number, or the name of one process
    AGENT = "AGENT"  # the same, of an LLM process
    PIDS = "PIDS"  # the remaining words, each a process or a job
    JOB = "JOB"  # %N, or a PID
    GROUP = "GROUP"  # the path of a control group
    MODEL = "MODEL"
    POLICY = "POLICY"
    DEVICE = "DEVICE"
    ADVICE = "ADVICE"
    SIGNAL = "SIGNAL"
    FILE = "FILE"
    COMMAND = "COMMAND"
    NAME = "NAME"
    TIME = "TIME"  # 30m, 12h, 7d
    INTEGER = "N"
    DECIMAL = "X"
    TEXT = "TEXT"  # the rest of the line, as it stands
    WORDS = "ARGS"  # the remaining words
    MODELS = "NAMES"  # the remaining words, each a model
    ACTION = "ACTION"  # of `models`
    AUDIT = "SHOW"  # an action of `audit`
    COLUMNS = "A,B"  # columns of the command's table
    COLUMN = "COLUMN"
    TOPIC = "TOPIC"  # of `man`


_DESTROY = ("kill", "halt", "evict")  # commands whose doing is not undone
MANY = (Kind.WORDS, Kind.MODELS, Kind.PIDS)


@dataclass(frozen=True)
class Param:
    """A word by its place in the line. A `flagged` one starts with `-` (as in `kill -STOP 3`) and may stand anywhere."""

    name: str
    kind: Kind
    required: bool = True
    flagged: bool = False


@dataclass(frozen=True)
class Option:
    """`--flag VALUE`, or without `kind` a switch."""

    flag: str
    kind: Kind | None
    help: str
    alone: bool = False  # it needs no other words
    many: bool = False  # it may stand several times


@dataclass(frozen=True)
class Command:
    """One command. `background`: a trailing `&` is allowed."""

    name: str
    summary: str
    params: Sequence[Param] = ()
    options: Sequence[Option] = ()
    details: str = ""
    of_verb: str = ""  # the details of the verb of this name, where they are others
    background: bool = False
    passes: bool = False  # what stands behind its first word is another command's, options too

    @property
    def usage(self) -> str:
        """`kill [-SIGNAL] PID`."""
        words = [self.name]
        for param in self.params:
            word = f"-{param.name}" if param.flagged else param.name
            word += "..." if param.kind in MANY else ""
            if param is self._text:
                words += self._option_words()
            words.append(word if param.required else f"[{word}]")
        if self._text is None:
            words[1:1] = self._option_words()
        return " ".join(words) + (" [&]" if self.background else "")

    @property
    def takes_text(self) -> bool:
        """Whether the rest of the line is text, in which `#` begins no comment."""
        return any(param.kind is Kind.TEXT for param in self.params)

    @property
    def _text(self) -> Param | None:
        return next((param for param in self.params if param.kind in (Kind.TEXT, *MANY)), None)

    def _option_words(self) -> list[str]:
        return [f"[{o.flag} {o.kind.value}]" if o.kind else f"[{o.flag}]" for o in self.options]


@dataclass
class Line:
    """A command line that has been read: words by the names of their parameters and options."""

    command: Command
    values: dict[str, str] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    background: bool = False

    def has(self, name: str) -> bool:
        return name in self.values

    def text(self, name: str, default: str = "") -> str:
        return self.values.get(name, default)

    def take(self, option: Option, value: str) -> None:
        """An option has this value; of one that may stand several times, this one too."""
        before = f"{self.values[option.flag]}\n" if option.many and option.flag in self.values else ""
        self.values[option.flag] = before + value

    def all(self, flag: str) -> list[str]:
        """The values of an option that may stand several times."""
        return self.values[flag].split("\n") if flag in self.values else []

    def integer(self, name: str, default: int, *, least: int | None = None, most: int | None = None) -> int:
        """A whole number, at least `least` and at most `most`; the default is not checked."""
        value = self.values.get(name)
        if value is None:
            return default
        try:
            number = int(value)
        except ValueError:
            raise UsageError(f"{self.command.name}: {name} wants a whole number, found {value!r}") from None
        if least is not None and number < least:
            raise UsageError(f"{self.command.name}: {name} wants at least {least}, found {value}")
        if most is not None and number > most:
            raise UsageError(f"{self.command.name}: {name} wants at most {most}, found {value}")
        return number

    def decimal(self, name: str, default: float, *, least: float = 0.0, most: float = math.inf) -> float:
        """A finite number from `least` to `most`; the default is not checked."""
        value = self.values.get(name)
        if value is None:
            return default
        try:
            number = float(value)
        except ValueError:
            raise UsageError(f"{self.command.name}: {name} wants a number, found {value!r}") from None
        if not (math.isfinite(number) and least <= number <= most):
            upper = f" and at most {most:g}" if math.isfinite(most) else ""
            raise UsageError(f"{self.command.name}: {name} wants at least {least:g}{upper}, found {value}")
        return number


@dataclass(frozen=True)
class Argument:
    """A word of a command. Options and signals are not `quoted`. A `pattern` (glob(7), empty: none) stands for the names
    that match it."""

    text: str
    quoted: bool = False
    pattern: str = ""


class Words(Protocol):
    """What is left of a line; `more`: there is something."""

    @property
    def more(self) -> bool: ...
    @property
    def left(self) -> str: ...
    @property
    def quoted(self) -> bool: ...
    def peek(self) -> str: ...
    def word(self) -> str: ...
    def rest(self) -> str: ...


class Arguments:
    """Words that have been told apart already, and the free text behind them."""

    def __init__(self, words: Sequence[Argument], text: str | None = None) -> None:
        self._words = deque(words)
        if text is not None:
            self._words.append(Argument(text, quoted=True))

    @property
    def more(self) -> bool:
        return bool(self._words)

    @property
    def left(self) -> str:
        # An empty word is a word too.
        return " ".join(word.text or "''" for word in self._words)

    @property
    def quoted(self) -> bool:
        return self._words[0].quoted

    def peek(self) -> str:
        return self._words[0].text if self._words else ""

    def word(self) -> str:
        return self._words.popleft().text

    def rest(self) -> str:
        text = " ".join(word.text for word in self._words)
        self._words.clear()
        return text


class Scanner:
    """Reads words off a line. A word that starts with a quote ends at the next such quote; elsewhere a quote is a
    character like any other, so that apostrophes do no harm."""

    def __init__(self, line: str) -> None:
        self.left = line.strip()
        self._comments = False

    @property
    def more(self) -> bool:
        return bool(self.left)

    def leave_comments(self) -> None:
        """From here on, `#` at the beginning of a word that is not quoted ends the line."""
        self._comments = True
        self.left = self._uncommented(self.left)

    @property
    def quoted(self) -> bool:
        """Whether the next word is in quotes."""
        return self.left[0] in "\"'"

    def peek(self) -> str:
        """The next word, or empty."""
        return self._split()[0]

    def word(self) -> str:
        """Take the next word."""
        word, self.left = self._split()
        return word

    def rest(self) -> str:
        """Take the rest of the line, without quotes around the whole of it."""
        text, self.left = self.left, ""
        if len(text) >= 2 and text[0] in "\"'" and text.endswith(text[0]) and text.count(text[0]) == 2:
            return text[1:-1]
        return text

    def _split(self) -> tuple[str, str]:
        left = self.left
        if left[:1] in ('"', "'"):
            end = left.find(left[0], 1)
            if end < 0:
                raise UsageError(f"the quote {left[0]} is not closed")
            return left[1:end], self._uncommented(left[end + 1 :].lstrip())
        word, _, rest = left.partition(" ")
        return word, self._uncommented(rest.lstrip())

    def _uncommented(self, left: str) -> str:
        return "" if self._comments and left.startswith("#") else left


def expected(command: Command, words: Sequence[str]) -> Option | Param | None:
    """What the word after `words` of a command is."""
    options = {option.flag: option for option in command.options}
    places = [param for param in command.params if not param.flagged]
    index = 0
    skip = False
    for word in words:
        if skip:
            skip = False
            continue
        option = options.get(word)
        if option is not None:
            skip = option.kind is not None
        elif not word.startswith("-"):
            index += 1
    if skip and words:
        return options[words[-1]]
    if index >= len(places):
        return places[-1] if places and places[-1].kind in MANY else None
    return places[index]


def parse(line: str, commands: dict[str, Command]) -> Line | None:
    """Read a line; None for an empty one and a comment. Raises UsageError (EINVAL), for an unknown command with the
    nearest known one."""
    line = line.strip().replace("\t", " ")
    if not line or line.startswith("#"):
        return None
    scanner = Scanner(line)
    name = scanner.word()
    command = commands.get(name)
    if command is None:
        raise UsageError(unknown(name, commands))
    if not command.takes_text:
        scanner.leave_comments()
    read = Line(command)
    if command.background and scanner.left.endswith("&") and scanner.left[-2:-1] in ("", " "):
        scanner.left = scanner.left[:-1].rstrip()
        read.background = True
    _read_words(scanner, read)
    return read


def line_of(
    command: Command, words: Sequence[Argument], text: str | None = None, *, background: bool = False, piped: bool = False
) -> Line:
    """The line of a command whose words are known. `piped`: its text may come from its input instead. Raises
    UsageError."""
    read = Line(command, background=background)
    _read_words(Arguments(words, text), read, piped=piped)
    return read


def _read_words(scanner: Words, read: Line, *, piped: bool = False) -> None:
    command = read.command
    options = {option.flag: option for option in command.options}
    flagged = [param for param in command.params if param.flagged]
    places = [param for param in command.params if not param.flagged]
    passed = False  # whether `--` has been
    while scanner.more:
        if command.passes and (passed or read.words):
            read.words.append(scanner.word())
            continue
        quoted = scanner.quoted
        if command.passes and not quoted and scanner.peek() == "--":
            passed = bool(scanner.word())
            continue
        word = "" if quoted else scanner.peek()
        option = None if quoted else options.get(word.partition("=")[0])
        if option is not None:
            scanner.word()
            _take_option(scanner, read, option, word)
        elif flagged and not quoted and len(word) > 1 and word[0] == "-":
            read.values[flagged.pop(0).name] = scanner.word()[1:]
        elif not quoted and _dashed(word) and not (places and places[0].kind in (Kind.TEXT, Kind.WORDS) and not options):
            raise UsageError(no_option(command, word))
        elif not places:
            raise UsageError(f"{command.name}: nothing was expected at {scanner.left!r}. Usage: {command.usage}")
        elif places[0].kind is Kind.TEXT:
            read.values[places.pop(0).name] = scanner.rest()
        elif places[0].kind in MANY:  # options may stand among them
            read.words.append(scanner.word())
        else:
            read.values[places.pop(0).name] = scanner.word()
    missing = [
        param.name
        for param in places
        if param.required and not (param.kind in MANY and read.words) and not (param.kind is Kind.TEXT and piped)
    ]
    if missing and not any(option.alone and read.has(option.flag) for option in command.options):
        raise UsageError(f"{command.name} needs {' and '.join(missing)}. Usage: {command.usage}")


def _dashed(word: str) -> bool:
    """Whether a word is meant as an option: `-x`, `--max`; a lone dash and a negative number are not."""
    return word.startswith("-") and word != "-" and not word[1:].replace(".", "", 1).isdigit()


def no_option(command: Command, word: str) -> str:
    """What is said to an option that a command does not have."""
    flags = [option.flag for option in command.options]
    known = ", ".join(flags) or "none"
    return f"{command.name} has no option {word}; {meant(word, flags)}its options: {known}. Usage: {command.usage}"


def _take_option(scanner: Words, read: Line, option: Option, word: str) -> None:
    _, equals, value = word.partition("=")
    if option.kind is None:
        if equals:
            raise UsageError(f"{option.flag} takes no value")
    elif not equals:
        if not scanner.more:
            raise UsageError(f"{option.flag} wants a value ({option.kind.value})")
        value = scanner.word()
    read.take(option, value)


def unknown(name: str, commands: dict[str, Command]) -> str:
    """What to say of a command that there is not, with the nearest that there is."""
    near = nearest(name, commands)
    hint = f"did you mean {near!r}?" if near else "`help` lists the commands"
    return f"there is no command {name!r}; {hint}"


def meant(word: str, known: Iterable[str]) -> str:
    """`did you mean --json? `, if one of the words is like it; for use within a sentence."""
    near = nearest(word.partition("=")[0], known)
    return f"did you mean {near}? " if near else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """The one of the names that is most like `name`; empty if none is. What destroys is never proposed."""
    import difflib

    return next(iter(difflib.get_close_matches(name, [one for one in known if one not in _DESTROY], n=1)), "")
