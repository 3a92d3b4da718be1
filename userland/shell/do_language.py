"""The commands of the shell's language: cd pwd local trap eval set unset export shift type command break continue return
echo true false."""

from __future__ import annotations

import os
import re
import shlex

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.shell import directory, syntax
from llmasos.userland.shell.evaluate import heed, run
from llmasos.userland.shell.failing import Left
from llmasos.userland.shell.grammar import Line, UsageError
from llmasos.userland.shell.hosts import found
from llmasos.userland.shell.quoting import unescaped
from llmasos.userland.shell.scanner import KEYWORDS
from llmasos.userland.shell.session import Session, does
from llmasos.userland.shell.variables import NAMES, SWITCHES
from llmasos.userland.shell.words import COMMANDS

# --- where ----------------------------------------------------------------------------------------------------------


@does("cd")
def _cd(shell: Session, line: Line) -> None:
    values, before = shell.variables.values, _here(shell)
    word = line.text("DIRECTORY") if line.has("DIRECTORY") else os.path.expanduser("~")
    if word == "-":
        word = values.get("OLDPWD", os.environ.get("OLDPWD", ""))
        if not word:
            raise UsageError("cd -: there was no other directory yet")
        shell.screen.line(word)
    if not word:
        return
    there = os.path.normpath(os.path.join(before, word))
    directory.change(there)
    values["OLDPWD"], values["PWD"] = before, there
    shell.variables.exported.update(("PWD", "OLDPWD"))


@does("pwd")
def _pwd(shell: Session, line: Line) -> None:
    shell.screen.line(os.getcwd() if line.has("-P") else _here(shell))


def _here(shell: Session) -> str:
    """The working directory as the person went there: a symbolic link in it stays. Raises ENOENT if it has been
    removed."""
    named = shell.variables.values.get("PWD", os.environ.get("PWD", ""))
    try:
        there = os.stat(".")
        if os.path.isabs(named) and os.path.samestat(os.stat(named), there):
            return named
    except OSError:
        pass
    try:
        return os.getcwd()
    except OSError:
        raise SyscallError(Errno.ENOENT, "the working directory has been removed; `cd` goes home") from None


# --- names ----------------------------------------------------------------------------------------------------------


@does("set")
def _set(shell: Session, line: Line) -> None:
    """`set -e`, `set +e`, `set -o pipefail`, `set -- a b`; alone, the variables."""
    words = list(line.words)
    variables = shell.variables
    if not words:
        for name in sorted(variables.values):
            shell.screen.line(f"{name}={shlex.quote(variables.values[name])}")
    while words:
        word = words.pop(0)
        if word == "--":
            variables.arguments, words = words, []
        elif word in ("-o", "+o"):
            if not words:
                for name in NAMES:
                    shell.screen.line(f"{name:<10} {'on' if name in variables.switches else 'off'}")
                return
            _switch(shell, words.pop(0), on=word == "-o")
        elif word[:1] in ("-", "+") and len(word) > 1:
            for letter in word[1:]:
                _switch(shell, SWITCHES.get(letter, letter), on=word[0] == "-")
        else:
            raise UsageError(f"set takes -e, -x, -o pipefail, + for - to take one back, or -- WORDS; found {word!r}")


def _switch(shell: Session, name: str, *, on: bool) -> None:
    if name not in NAMES:
        raise UsageError(f"set has no switch {name!r}; there are {', '.join(NAMES)}")
    (shell.variables.switches.add if on else shell.variables.switches.discard)(name)


@does("unset")
def _unset(shell: Session, line: Line) -> None:
    for name in line.words:
        shell.variables.values.pop(name, None)
        shell.variables.exported.discard(name)
        shell.variables.functions.pop(name, None)


@does("export")
def _export(shell: Session, line: Line) -> None:
    for word in line.words:
        name, equals, value = word.partition("=")
        _checked(name)
        if equals:
            shell.variables.values[name] = value
        shell.variables.exported.add(name)


@does("local")
def _local(shell: Session, line: Line) -> None:
    if not shell.variables.scopes:
        raise UsageError("local: only a function has variables of its own")
    for word in line.words:
        name, equals, value = word.partition("=")
        _checked(name)
        shell.variables.keep(name)
        if equals:
            shell.variables.values[name] = value
        else:
            shell.variables.values.pop(name, None)


def _checked(name: str) -> None:
    if not (name.isascii() and name.isidentifier()):
        raise UsageError(f"a variable is letters, digits and `_`, found {name!r}")


@does("shift")
def _shift(shell: Session, line: Line) -> None:
    count = line.integer("N", 1, least=0)
    if count > len(shell.variables.arguments):
        raise UsageError(f"shift: there are {len(shell.variables.arguments)} arguments, found {count}")
    del shell.variables.arguments[:count]


# --- flow -----------------------------------------------------------------------------------------------------------


@does("break")
def _break(shell: Session, line: Line) -> None:
    raise Left("break", line.integer("N", 1, least=1))


@does("continue")
def _continue(shell: Session, line: Line) -> None:
    raise Left("continue", line.integer("N", 1, least=1))


@does("return")
def _return(shell: Session, line: Line) -> None:
    raise Left("return", line.integer("STATUS", shell.variables.status, least=0))


@does("eval")
def _eval(shell: Session, line: Line) -> int:
    text = syntax.read(" ".join(line.words), COMMANDS, shell.variables.aliases)
    return run(shell, text, tested=shell.tested)


_SIGNALS = {"EXIT": "EXIT", "INT": "SIGINT"}


@does("trap")
def _trap(shell: Session, line: Line) -> None:
    traps, words = shell.variables.traps, list(line.words)
    if not words:
        for name in sorted(traps):
            shell.screen.line(f"trap -- {shlex.quote(traps[name])} {_SIGNALS[name]}")
        return
    # One word is a signal whose trap is taken back, as `-` says.
    text = words.pop(0) if len(words) > 1 else "-"
    names = [_trapped(word) for word in words]
    for name in names:
        if text == "-":
            traps.pop(name, None)
        else:
            traps[name] = text
    if "INT" in names:
        heed(shell)


def _trapped(word: str) -> str:
    name = {"0": "EXIT", "2": "INT"}.get(word, word.upper().removeprefix("SIG"))
    if name not in _SIGNALS:
        raise UsageError(f"trap takes EXIT and INT, found {word!r}: `trap 'COMMANDS' EXIT INT`")
    return name


@does("echo")
def _echo(shell: Session, line: Line) -> None:
    words = list(line.words)
    flags = ""
    while words and re.fullmatch(r"-[neE]+", words[0]):
        flags += words.pop(0)[1:]
    said = " ".join(words)
    shell.screen.write((unescaped(said) if "e" in flags else said) + ("" if "n" in flags else "\n"))


@does("type")
def _type(shell: Session, line: Line) -> int:
    return _told_of(shell, line.words, verbose=True)


@does("command")
def _command(shell: Session, line: Line) -> int:
    if line.words[0] not in ("-v", "-V"):
        raise UsageError("command takes -v NAME, and runs nothing here; `!NAME` runs a program of the host in any case")
    return _told_of(shell, line.words[1:], verbose=line.words[0] == "-V")


def _told_of(shell: Session, names: list[str], *, verbose: bool) -> int:
    """Say what words mean as commands; returns 1 if one means nothing."""
    status, variables = 0, shell.variables
    for name in names:
        path = found(name, shell)
        if name in variables.aliases:
            brief, told = (
                f"alias {name}={shlex.quote(variables.aliases[name])}",
                f"an alias of `{variables.aliases[name]}`",
            )
        elif name in KEYWORDS:
            brief, told = name, "a word of the language"
        elif name in variables.functions:
            brief, told = name, "a function"
        elif name in COMMANDS:
            brief, told = name, f"a command of this shell: {COMMANDS[name].summary}"
        elif path is not None:
            brief, told = path, f"a program of the host, {path}"
        else:
            status = 1
            if verbose:
                shell.complain(UsageError(f"there is nothing called {name!r}"))
            continue
        shell.screen.line(f"{name} is {told}" if verbose else brief)
    return status


@does("true")
def _true(shell: Session, line: Line) -> None:
    pass


@does("false")
def _false(shell: Session, line: Line) -> int:
    return 1
