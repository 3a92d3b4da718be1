"""Completion: the words that can stand at the cursor, by the declared form of the command, each with what it means.

The line is read by the shell's own scanner with a mark at the cursor, so that completion agrees with it about what is a
command, a word or free text. It asks the kernel for agents, models and groups while the person types, at most a few
times a second.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from llmasos.modelfiles.called import called
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.pids import parse, shown
from llmasos.syscalls.policy_file import own_policies
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import Advice, ProcessInfo, Signal, State
from llmasos.syscalls.records import Kind as ProcessKind
from llmasos.syscalls.table import BootInfoCall, GroupStat, Models
from llmasos.userland.programs import audit
from llmasos.userland.programs.models import ACTIONS
from llmasos.userland.programs.ps import Kernel, processes, state
from llmasos.userland.shell.files import is_path
from llmasos.userland.shell.grammar import Command, Kind, Option, Param, UsageError, expected
from llmasos.userland.shell.jobs import Jobs
from llmasos.userland.shell.man import topics
from llmasos.userland.shell.scanner import KEYWORDS, Scanner
from llmasos.userland.shell.tables import columns
from llmasos.userland.shell.tree import Script, Simple, Word
from llmasos.userland.shell.variables import NAMES, Variables

if TYPE_CHECKING:
    from llmasos.userland.shell.session import Session

FRESH_SECONDS = 0.3
DISK_SECONDS = 30.0
MARK = "\ufdd0"  # no character of a text: where the cursor is
Candidates = list[tuple[str, str]]  # word, and its meaning

_SIGNALS = {
    Signal.INT: "interrupts the answer",
    Signal.KILL: "ends the process",
    Signal.TERM: "ends the process",
    Signal.CONT: "lets a stopped process go on",
    Signal.STOP: "stops the process",
}
_POLICIES = {
    "fair": "shares of the device by nice value",
    "fcfs": "first come, first served",
    "round_robin": "turns of equal length",
    "mlfq": "short answers first",
    "lottery": "shares by chance",
}
_ADVICE = {
    Advice.NORMAL: "takes the advice back",
    Advice.WILLNEED: "loads it in the background",
    Advice.DONTNEED: "lets it go first",
    Advice.PIN: "loads it and keeps it",
}
_VALUES: dict[str, Candidates] = {
    "--dtype": [
        ("fp32", "32 bits a weight"),
        ("bf16", "16 bits a weight"),
        ("int8", "8 bits a weight"),
        ("int4", "4 bits a weight"),
    ],
    "--thinking": [("on", "it thinks"), ("off", "it answers at once"), ("low", "little effort"), ("high", "much effort")],
}
_LANGUAGE: Candidates = [
    ("if", "if CONDITION; then ...; elif ...; else ...; fi"),
    ("for", "for NAME in WORDS; do ...; done"),
    ("while", "while CONDITION; do ...; done"),
    ("until", "until CONDITION; do ...; done"),
    ("case", "case WORD in PATTERN) ...;; esac"),
    ("time", "say how long a command takes"),
    *((word, "part of if, for, while or case") for word in ("then", "elif", "else", "fi", "do", "done", "esac")),
]


@dataclass
class Place:
    """Where the cursor is: in `word`, behind `words` of a command. `what`: `word`, `text`, `file` (of a redirection).
    `written`: the word as it stands in the line, with quotes and backslashes."""

    what: str
    word: str
    words: list[str] = field(default_factory=list)
    host: bool = False
    written: str = ""


def place(text: str, forms: Mapping[str, Command], aliases: Mapping[str, str]) -> Place | None:
    """Where the cursor is, at the end of a text; None if nothing can be completed there."""
    for closing in ("", '"', "'"):
        try:
            symbols = Scanner(text + MARK + closing, forms, aliases, lambda _: Script()).read()
        except (UsageError, RecursionError):
            continue
        for symbol in symbols:
            if isinstance(symbol.value, Simple) and (found := _in(symbol.value)) is not None:
                return found
        return None
    inside = text.rfind("$(")
    return place(text[inside + 2 :], forms, aliases) if inside >= 0 else None


def _in(simple: Simple) -> Place | None:
    if any(MARK in redirect.target.source for redirect in simple.redirects):
        marked = next(redirect.target for redirect in simple.redirects if MARK in redirect.target.source)
        return Place("file", _before(marked))
    words = [_unquoted(word) for word in simple.words]
    for position, word in enumerate(simple.words):
        if MARK in word.source:
            return Place("word", _before(word), words[:position], simple.host, word.source.partition(MARK)[0])
    if simple.text is not None and MARK in simple.text.source:
        said = _before(simple.text)
        if said.startswith("-") and " " not in said:
            return Place("word", said, words)
        return Place("text", said, words)
    return None


def _before(word: Word) -> str:
    """What is written of a word before the mark, without the quotes around it."""
    written = word.source.partition(MARK)[0]
    return written.lstrip("\"'") if written.startswith("'") else re.sub(r"\\(.)", r"\1", written.lstrip("\"'"))


def _unquoted(word: Word) -> str:
    return word.plain if word.plain is not None else word.source.strip("\"'")


class ShellCompleter(Completer):
    """Completes commands, options, words by their kind, files, variables."""

    def __init__(self, commands: dict[str, Command], kernel: Kernel, shell: Session | None = None) -> None:
        self._commands = commands
        self._kernel = kernel
        self._variables_of = shell.variables if shell is not None else Variables()
        self._jobs = shell.jobs if shell is not None else Jobs()
        self._known: dict[tuple[Kind, bool], tuple[float, Candidates]] = {}
        self._paths = PathCompleter(expanduser=True)
        self._programs: tuple[float, list[str]] = (float("-inf"), [])

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        variable = re.search(r"\$\{?(\w*)$", text)
        found = place(text, self._commands, self._variables_of.aliases)
        if found is None or (found.what == "text" and variable is None):
            return
        if variable is not None:
            yield from _matching(variable[1], self._variables())
        elif found.what == "file":
            yield from self._files(found.word, complete_event)
        else:
            yield from self._words(found, complete_event)

    def _words(self, found: Place, event: CompleteEvent) -> Iterator[Completion]:
        word, words = found.word, found.words
        if not words:
            yield from self._first(word, found.host, event)
            return
        command = None if found.host else self._commands.get(words[0])
        if command is None:
            yield from self._files(word, event)
        elif word.startswith("-") and (dashed := list(_matching(word, _dashed(command)))):
            yield from dashed
        elif command.name == "watch" and (rest := _watched(words[1:])) is not None:
            yield from self._words(replace(found, words=rest), event)
        else:
            yield from self._of(expected(command, words[1:]), command, found, event)

    def _first(self, word: str, host: bool, event: CompleteEvent) -> Iterator[Completion]:
        """The first word of a command."""
        if "/" in word:
            yield from self._files(word, event)
            return
        variables = self._variables_of
        known: Candidates = []
        if not host:
            known = [(name, command.summary) for name, command in self._commands.items()]
            known += [(name, f"alias of `{value}`") for name, value in variables.aliases.items()]
            known += [(name, "function") for name in variables.functions]
            known += _LANGUAGE
        yield from _matching(word, known)
        if len(word) > 1 or host:
            taken = {name for name, _ in known} | set(KEYWORDS)
            programs = [(name, "program of the host") for name in self._on_path() if name not in taken]
            yield from _matching(word, programs)

    def _of(
        self, what: Option | Param | None, command: Command, found: Place, event: CompleteEvent
    ) -> Iterator[Completion]:
        word = found.word
        if what is None or what.kind is None:
            return
        if isinstance(what, Option) and what.flag in _VALUES:
            yield from _matching(word, _VALUES[what.flag])
        elif what.kind is Kind.FILE or (command.name == "cat" and (is_path(word) or word.startswith((".", "~")))):
            yield from self._files(word, event)
        elif what.kind is Kind.POLICY:
            yield from _matching(word, own_policies(word))
            yield from _matching(word, self._candidates(what.kind, word))
        elif what.kind is Kind.WORDS:
            if command.name == "run":
                yield from self._files(word, event)
            yield from _matching(word, self._names(command.name))
        elif what.kind in (Kind.COLUMN, Kind.COLUMNS):
            yield from _matching(word, [(one, "column") for one in columns(command.name, word)])
        else:
            yield from _matching(word, self._candidates(what.kind, word), found.written)
            if command.name == "wait":
                yield from _matching(word, self._candidates(Kind.PID, word, exited=True), found.written)

    def _names(self, command: str) -> Candidates:
        """Words of the commands of the language."""
        match command:
            case "unset" | "export":
                return self._variables()
            case "local":
                return self._variables()
            case "trap":
                return [("EXIT", "at the end of the shell"), ("INT", "at Ctrl-C")]
            case "unalias" | "alias":
                return list(self._variables_of.aliases.items())
            case "set":
                return [("-e", "end at an error"), ("-x", "show commands"), ("-o", "a switch by name")] + [
                    (name, "switch") for name in NAMES
                ]
        return []

    def _variables(self) -> Candidates:
        variables = self._variables_of
        known = {**os.environ, **variables.values}
        return [(name, printable(known[name], one_line=True)[:60]) for name in sorted(known)]

    def _files(self, word: str, event: CompleteEvent) -> Iterator[Completion]:
        for found in self._paths.get_completions(Document(word), event):
            yield Completion(_escaped(found.text), found.start_position, display=found.display, display_meta="file")

    def _on_path(self) -> list[str]:
        then, names = self._programs
        if time.monotonic() - then > DISK_SECONDS:
            found: set[str] = set()
            for directory in os.environ.get("PATH", os.defpath).split(os.pathsep):
                try:
                    found.update(entry.name for entry in os.scandir(directory or ".") if os.access(entry.path, os.X_OK))
                except OSError:
                    continue
            names = sorted(found)
            self._programs = (time.monotonic(), names)
        return names

    def _candidates(self, kind: Kind, word: str, *, exited: bool = False) -> Candidates:
        match kind:
            case Kind.COMMAND:
                return [(name, command.summary) for name, command in self._commands.items()]
            case Kind.JOB:
                return [(f"%{job.number}", job.source) for job in self._jobs]
        ask = _exited if exited else _ASK.get(kind)
        if ask is None:
            return []
        now = time.monotonic()
        then, found = self._known.get((kind, exited), (float("-inf"), []))
        if now - then > FRESH_SECONDS:
            try:
                found = ask(self._kernel)
            except SyscallError:
                found = []
            self._known[kind, exited] = (now, found)
        if kind in (Kind.PID, Kind.AGENT, Kind.PIDS) and not exited and word.startswith("%"):
            return self._candidates(Kind.JOB, word)
        return found


def _watched(words: Sequence[str]) -> list[str] | None:
    """The words of the command that is watched; None while its options are being typed."""
    rest = list(words)
    while rest and rest[0] in ("-n", "--count"):
        if len(rest) == 1:
            return None
        rest = rest[2:]
    return rest


def _dashed(command: Command) -> Candidates:
    found = [(option.flag, option.help) for option in command.options]
    if any(param.flagged for param in command.params):
        found += [(f"-{signal.name}", meaning) for signal, meaning in _SIGNALS.items()]
    return found


def _matching(word: str, candidates: Candidates, written: str | None = None) -> Iterator[Completion]:
    """The candidates that begin as a word does. `written`: that word as it stands in the line, where quotes matter."""
    for candidate, meaning in candidates:
        if candidate.startswith(word):
            text, typed = (candidate, word) if written is None else (_spelled(candidate, written[:1]), written)
            yield Completion(text, start_position=-len(typed), display=candidate, display_meta=meaning)


def _escaped(text: str) -> str:
    return re.sub(r"([\s;&|<>()'\"$\\*?\[#])", r"\\\1", text)


def _spelled(text: str, quote: str) -> str:
    """A word of the line that means this text: in the quotes that were begun, where they can hold it."""
    if quote in ("'", '"') and not set(text) & {quote, "$", "`", "\\"}:
        return f"{quote}{text}{quote}"
    return _escaped(text)


def _named(rows: list[ProcessInfo]) -> Candidates:
    """Processes by name, and by pid: by that alone where several have the name."""
    names = [row.name for row in rows]
    found: Candidates = []
    for row in rows:
        about = " ".join(part for part in (state(row), called(row.model)) if part)
        name = printable(row.name, one_line=True)
        if name == row.name != "" and names.count(name) == 1 and parse(name) is None and name[0] not in "-%":
            found.append((name, f"{shown(row.pid)} {about}"))
    found += [(shown(row.pid), f"{row.name or row.kind} {state(row)}") for row in rows]
    return found


def _pids(kernel: Kernel) -> Candidates:
    return _named([row for row in _living(kernel) if row.kind is not ProcessKind.INIT])


def _agents(kernel: Kernel) -> Candidates:
    return _named([row for row in _living(kernel) if row.kind is ProcessKind.LLM])


def _exited(kernel: Kernel) -> Candidates:
    return _named([row for row in processes(kernel) if row.state is State.ZOMBIE])


def _living(kernel: Kernel) -> list[ProcessInfo]:
    return [row for row in processes(kernel) if row.state is not State.ZOMBIE]


def _groups(kernel: Kernel) -> Candidates:
    return [
        (row.path, f"{len(row.processes)} process{'' if len(row.processes) == 1 else 'es'}")
        for row in kernel(GroupStat("/", below=True))
    ]


def _models(kernel: Kernel) -> Candidates:
    known = [(row.name, row.state) for row in kernel(Models())]
    names = {name for name, _ in known}
    return known + [(name, store) for name, store in _DISK.models() if name not in names]


class _Disk:
    """The models that other programs have on the disk; looked for at intervals."""

    def __init__(self) -> None:
        self._looked = float("-inf")
        self._found: Candidates = []

    def models(self) -> Candidates:
        now = time.monotonic()
        if now - self._looked > DISK_SECONDS:
            from llmasos.modelfiles import (
                stores,  # late: only a completion of models needs them
            )

            self._looked = now
            self._found = [(one.name, f"{one.format} of {one.store}") for one in stores.found() if not one.problem]
        return self._found


_DISK = _Disk()


def _policies(kernel: Kernel) -> Candidates:
    return [
        (name, _POLICIES.get(name, "as it was loaded" if "@" in name else "")) for name in kernel(BootInfoCall()).policies
    ]


def _devices(kernel: Kernel) -> Candidates:
    return [(device.name, f"{device.kind}, {device.state}") for device in kernel(BootInfoCall()).devices]


_ASK: dict[Kind, Callable[[Kernel], Candidates]] = {
    Kind.PID: _pids,
    Kind.AGENT: _agents,
    Kind.PIDS: _pids,
    Kind.GROUP: _groups,
    Kind.MODEL: _models,
    Kind.MODELS: _models,
    Kind.ACTION: lambda _: list(ACTIONS.items()),
    Kind.AUDIT: lambda _: list(audit.ACTIONS.items()),
    Kind.POLICY: _policies,
    Kind.DEVICE: _devices,
    Kind.ADVICE: lambda _: [(advice.value, _ADVICE[advice]) for advice in Advice],
    Kind.TOPIC: lambda _: list(topics().items()),
    Kind.SIGNAL: lambda _: [(signal.name, meaning) for signal, meaning in _SIGNALS.items()],
}
