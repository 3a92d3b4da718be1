"""What the words of a command stand for: patterns of agents' names or of files, and words that are no command."""

from __future__ import annotations

import glob
from fnmatch import fnmatchcase

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Kind as ProcessKind
from llmasos.syscalls.records import State
from llmasos.userland.programs import ps
from llmasos.userland.shell.grammar import Argument, Kind, expected, nearest, unknown
from llmasos.userland.shell.session import Session, matching
from llmasos.userland.shell.words import COMMANDS, OWN


def each_of(shell: Session, name: str, words: list[Argument]) -> list[list[Argument]]:
    """The words of a command, once for each process that a pattern among them names."""
    made: list[Argument] = []
    for position, word in enumerate(words):
        if not word.pattern:
            made.append(word)
            continue
        what = expected(COMMANDS[name], [one.text for one in words[:position]])
        names_files = "/" in word.pattern or (what is not None and what.kind in (Kind.FILE, Kind.WORDS, Kind.MODELS))
        if names_files:
            made += [Argument(file, quoted=True) for file in matching_files([word])]
        elif what is not None and what.kind in (Kind.PID, Kind.AGENT, Kind.PIDS):
            found = matching(shell, word.pattern, exited=name == "wait")
            if not found:
                raise SyscallError(Errno.ESRCH, f"no process has a name like {word.text!r}; `ps` lists them")
            if what.kind is Kind.PIDS:
                made += [Argument(str(pid)) for pid in found]
                continue
            return [[*made, Argument(str(pid)), *words[position + 1 :]] for pid in found]
        else:
            made.append(word)
    return [made]


def names(shell: Session) -> list[str]:
    rows = ps.processes(shell.kernel, lambda row: row.kind is ProcessKind.LLM and row.state is not State.ZOMBIE)
    return [row.name for row in rows if row.name]


def matching_files(words: list[Argument]) -> list[str]:
    """The words, patterns replaced by the files that match; one that matches none stands for itself."""
    return [file for word in words for file in (sorted(glob.glob(word.pattern)) if word.pattern else []) or [word.text]]


def no_command(name: str) -> str:
    """What is said of a word that is neither a command nor a program."""
    if name in ("[[", "((", "select"):
        return f"{name!r} is bash's own; `[ ... ]`, `$((...))` and `case` are here"
    if name in OWN:
        return f"{name!r} is a verb of the command line, which the shell does not have: `!llmasos {name}`"
    near = nearest(name, (*COMMANDS, *OWN))
    if near in OWN:
        return f"there is no command {name!r}; did you mean `!llmasos {near}`, a verb of the command line?"
    return unknown(name, COMMANDS)


def values(shell: Session, words: list[Argument]) -> list[str]:
    """What `for` goes through: a pattern stands for the files that match it, else for the agents whose names do."""
    made: list[str] = []
    for word in words:
        found = sorted(glob.glob(word.pattern)) if word.pattern else []
        if word.pattern and not found and "/" not in word.pattern:
            found = [name for name in dict.fromkeys(names(shell)) if fnmatchcase(name, word.pattern)]
        made += found or [word.text]
    return made
