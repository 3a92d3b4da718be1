"""Completion: the words that can stand at the cursor, by the declared form of the command.

It asks the kernel for pids, models and devices while the person types, at most a few times a second. A kernel that does
not answer costs the completions, never the line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.records import Advice, Signal
from llmasos.syscalls.records import Kind as ProcessKind
from llmasos.syscalls.table import BootInfoCall, Models
from llmasos.userland.programs.models import ACTIONS
from llmasos.userland.programs.ps import Kernel, processes, state
from llmasos.userland.shell.grammar import MANY, Command, Kind

FRESH_SECONDS = 0.3
DISK_SECONDS = 30.0
Candidates = list[tuple[str, str]]  # word, and its meaning


class ShellCompleter(Completer):
    """Completes commands, options, and words by their kind."""

    def __init__(self, commands: dict[str, Command], kernel: Kernel) -> None:
        self._commands = commands
        self._kernel = kernel
        self._known: dict[Kind, tuple[float, Candidates]] = {}
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        line = document.text_before_cursor.lstrip()
        words = line.split(" ")
        word, before = words[-1], [part for part in words[:-1] if part]
        if not before:
            yield from _matching(word, [(name, c.summary) for name, c in self._commands.items()])
            return
        command = self._commands.get(before[0])
        if command is None:
            return
        if word.startswith("-"):
            yield from _matching(word, self._dashed(command))
            return
        kind = _expected(command, before[1:])
        if kind is Kind.FILE:
            yield from self._paths.get_completions(Document(word), complete_event)
        elif kind is not None:
            yield from _matching(word, self._candidates(kind, word))

    def _dashed(self, command: Command) -> Candidates:
        found = [(option.flag, option.help) for option in command.options]
        if any(param.flagged for param in command.params):
            found += [(f"-{signal.name}", "") for signal in Signal if signal.name not in ("CHLD", "XCPU")]
        return found

    def _candidates(self, kind: Kind, word: str) -> Candidates:
        if kind is Kind.COMMAND:
            return [(name, command.summary) for name, command in self._commands.items()]
        ask = _ASK.get(kind)
        if ask is None:
            return []
        now = time.monotonic()
        then, found = self._known.get(kind, (float("-inf"), []))
        if now - then > FRESH_SECONDS:
            try:
                found = ask(self._kernel)
            except SyscallError:
                found = []
            self._known[kind] = (now, found)
        if kind is Kind.PID and word[:1].isalpha():  # a process may be called by its name
            return [(meaning.split()[0], f"{pid} {meaning.split()[-1]}") for pid, meaning in found]
        return found


def _matching(word: str, candidates: Candidates) -> Iterator[Completion]:
    for candidate, meaning in candidates:
        if candidate.startswith(word):
            yield Completion(candidate, start_position=-len(word), display_meta=meaning)


def _expected(command: Command, words: list[str]) -> Kind | None:
    """The kind of the word after `words` of a command."""
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
        return options[words[-1]].kind
    if index >= len(places):
        return places[-1].kind if places and places[-1].kind in MANY else None
    return places[index].kind


def _pids(kernel: Kernel) -> Candidates:
    return [
        (str(row.pid), f"{row.name or row.kind} {state(row)}")
        for row in processes(kernel)
        if row.kind is not ProcessKind.INIT
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
    return [(name, "") for name in kernel(BootInfoCall()).policies]


def _devices(kernel: Kernel) -> Candidates:
    return [(device.name, device.kind) for device in kernel(BootInfoCall()).devices]


_ASK: dict[Kind, Callable[[Kernel], Candidates]] = {
    Kind.PID: _pids,
    Kind.MODEL: _models,
    Kind.MODELS: _models,
    Kind.ACTION: lambda _: list(ACTIONS.items()),
    Kind.POLICY: _policies,
    Kind.DEVICE: _devices,
    Kind.ADVICE: lambda _: [(advice.value, "") for advice in Advice],
}
