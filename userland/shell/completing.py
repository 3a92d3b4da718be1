"""What can stand at the cursor, for the operating system's shells. The scripts of bash, zsh and fish ask the hidden
verb `llmasos __complete WORDS...`, which prints a candidate a line, with a tab before its meaning.

It asks the kernel, if one runs, for names of processes, models, groups, devices and policies. One that does not answer,
or none, costs those candidates: a completion never complains. Nothing heavy is imported, for a person waits at a key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.pids import shown
from llmasos.userland.programs.ps import Kernel
from llmasos.userland.shell.grammar import MANY, Command, Kind
from llmasos.userland.shell.oneshot import VERBS, before_the_verb
from llmasos.userland.shell.words import OWN

if TYPE_CHECKING:
    from llmasos.syscalls.records import ProcessInfo

ANSWER_SECONDS = 1.0  # for a kernel to answer
Candidates = list[tuple[str, str]]  # a word, and its meaning
# What another user may have named: a word that means something else to the other shell is not put into its line.
_PLAIN = re.compile(r"[\w./:@%+=,-]+")
FILES = ":files"  # said alone: the names of files, which the other shell knows better


def main(where: Path, words: Sequence[str]) -> int:
    """Print the candidates for the last of the words, those before it being whole."""
    for word, meaning in candidates(where, list(words)):
        print(f"{word}\t{meaning}")
    return 0


def candidates(where: Path, words: list[str]) -> Candidates:
    """The candidates that begin as the last word does."""
    from llmasos.syscalls import runtime

    word = words[-1] if words else ""
    place, _, before = before_the_verb(words[:-1])
    if place is not None:
        where = runtime.locate(place)
    if before and before[-1] == "--runtime":
        return [(FILES, "")]
    if not before:
        verbs = [(name, summary) for name, (summary, _) in OWN.items()]
        found = verbs + [(name, command.summary) for name, command in VERBS.items()]
    elif before[0] in VERBS:
        found = _of_command(where, VERBS[before[0]], before[1:], word)
    elif _names_a_file(before, word):
        return [(FILES, "")]
    else:
        found = [(one, "") for one in OWN.get(before[0], ("", ()))[1]]
    if found == [(FILES, "")]:
        return found
    return sorted((one, meaning) for one, meaning in found if one.startswith(word) and _PLAIN.fullmatch(one))


def _names_a_file(before: list[str], word: str) -> bool:
    """Whether the word of a verb that is no command of the shell is the name of a file."""
    return before[-1] == "--config" or (before[0] == "shell" and before[-1] != "-c" and not word.startswith("-"))


def _of_command(where: Path, command: Command, before: list[str], word: str) -> Candidates:
    kind = expected(command, before)
    if word.startswith("-") and kind not in (Kind.COLUMN, Kind.INTEGER, Kind.DECIMAL):
        dashed = [(option.flag, option.help) for option in command.options]
        if any(param.flagged for param in command.params):
            from llmasos.syscalls.records import Signal

            dashed += [(f"-{signal.name}", "signal") for signal in Signal if signal.name not in ("CHLD", "XCPU")]
        return dashed
    if kind is Kind.FILE or (
        command.name == "cat" and kind is Kind.AGENT and ("/" in word or word.startswith((".", "~")))
    ):
        return [(FILES, "")]
    if kind is Kind.POLICY:
        from llmasos.syscalls.policy_file import own_policies

        known: Candidates = []
        with suppress(SyscallError):
            known = _ASK[kind](where)
        return own_policies(word) + known
    if kind in (Kind.COLUMN, Kind.COLUMNS):
        return _columns(command.name, word)
    ask = _ASK.get(kind) if kind is not None else None
    if kind is Kind.PIDS and command.name == "wait":
        ask = _with_kernel(_waited_for)
    if ask is None:
        return []
    try:
        return ask(where)
    except SyscallError:
        return []


def expected(command: Command, words: Sequence[str]) -> Kind | None:
    """The kind of the word behind `words` of a command."""
    options = {option.flag: option for option in command.options}
    places = [param for param in command.params if not param.flagged]
    index, value_of = 0, None
    for word in words:
        if value_of is not None:
            value_of = None
        elif word in options:
            value_of = options[word].kind
        elif not word.startswith("-"):
            index += 1
    if value_of is not None:
        return value_of
    if index < len(places):
        return places[index].kind
    return places[-1].kind if places and places[-1].kind in MANY else None


def _columns(name: str, word: str) -> Candidates:
    from llmasos.userland.shell.tables import columns

    return [(one, "") for one in columns(name, word)]


def _with_kernel(ask: Callable[[Kernel], Candidates]) -> Callable[[Path], Candidates]:
    def asked(where: Path) -> Candidates:
        from llmasos.syscalls.blocking import connect

        with connect(where, name="complete", timeout=ANSWER_SECONDS, reconnect=0.0) as kernel:
            return ask(kernel)

    return asked


def _processes(kernel: Kernel, *, agents: bool = False, exited: bool = False) -> Candidates:
    from llmasos.syscalls.records import Kind as ProcessKind
    from llmasos.syscalls.records import State
    from llmasos.userland.programs import ps

    def wanted(row: ProcessInfo) -> bool:
        if row.state is State.ZOMBIE and not exited:
            return False
        if agents:
            return row.kind is ProcessKind.LLM
        return row.kind is not ProcessKind.INIT and row.name != "complete"

    rows = ps.processes(kernel, wanted)
    names = [row.name for row in rows]
    found = [(shown(row.pid), f"{row.name or row.kind} {ps.state(row)}") for row in rows]
    once = [row for row in rows if names.count(row.name) == 1 and not row.name.startswith("-")]
    return found + [(row.name, f"{shown(row.pid)} {ps.state(row)}") for row in once]


def _agents(kernel: Kernel) -> Candidates:
    return _processes(kernel, agents=True)


def _waited_for(kernel: Kernel) -> Candidates:
    return _processes(kernel, exited=True)


def _models(kernel: Kernel) -> Candidates:
    from llmasos.syscalls.table import Models

    return sorted({(row.name, row.state) for row in kernel(Models())})


def _groups(kernel: Kernel) -> Candidates:
    from llmasos.userland.programs import groups

    return [(info.path, f"{info.pids} processes") for info in groups.read(kernel)]


def _devices(kernel: Kernel) -> Candidates:
    from llmasos.syscalls.table import BootInfoCall

    return [(one.name, one.kind) for one in kernel(BootInfoCall()).devices]


def _policies(kernel: Kernel) -> Candidates:
    from llmasos.syscalls.table import BootInfoCall

    return [(name, "") for name in kernel(BootInfoCall()).policies]


def _topics(where: Path) -> Candidates:
    from llmasos.userland.shell import man

    return list(man.topics().items())


def _advice(where: Path) -> Candidates:
    from llmasos.syscalls.records import Advice

    return [(one.value, "") for one in Advice]


def _actions(where: Path) -> Candidates:
    from llmasos.userland.programs.models import ACTIONS

    return list(ACTIONS.items())


def _audit(where: Path) -> Candidates:
    from llmasos.userland.programs.audit import ACTIONS

    return list(ACTIONS.items())


_ASK: dict[Kind, Callable[[Path], Candidates]] = {
    Kind.PID: _with_kernel(_processes),
    Kind.AGENT: _with_kernel(_agents),
    Kind.PIDS: _with_kernel(_processes),
    Kind.MODEL: _with_kernel(_models),
    Kind.MODELS: _with_kernel(_models),
    Kind.GROUP: _with_kernel(_groups),
    Kind.DEVICE: _with_kernel(_devices),
    Kind.POLICY: _with_kernel(_policies),
    Kind.TOPIC: _topics,
    Kind.ADVICE: _advice,
    Kind.ACTION: _actions,
    Kind.AUDIT: _audit,
}


def script(shell: str) -> str:
    """The script that makes `bash`, `zsh` or `fish` complete llmasos."""
    return {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}[shell]


# bash breaks words at `:` and `=`, of which names of models and groups are full: the words are taken as they are typed,
# and what is before the last break is cut off the candidates.
_BASH = """\
_llmasos() {
    local line=${COMP_LINE:0:COMP_POINT} words=() found=() word meaning
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    local last=${words[-1]} cut
    cut=${last%"${last##*[:=]}"}
    COMPREPLY=()
    while IFS=$'\\t' read -r word meaning; do
        if [[ $word == :files ]]; then
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "$last")
            return
        fi
        found+=("${word#"$cut"}")
    done < <("${words[0]}" __complete "${words[@]:1}" 2>/dev/null)
    COMPREPLY=("${found[@]}")
}
complete -o default -F _llmasos llmasos
"""

_ZSH = """\
#compdef llmasos
_llmasos() {
    local -a found
    local word meaning
    while IFS=$'\\t' read -r word meaning; do
        if [[ $word == :files ]]; then
            _files
            return
        fi
        found+=("${word//:/\\\\:}:${meaning}")
    done < <("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)
    _describe -t words 'llmasos' found
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
if [[ $funcstack[1] == _llmasos ]]; then
    _llmasos "$@"
else
    compdef _llmasos llmasos
fi
"""

_FISH = """\
function __llmasos_complete
    set -l words (commandline -opc) (commandline -ct)
    set -l found ($words[1] __complete $words[2..-1] 2>/dev/null)
    if test "$found[1]" = ":files"(printf '\\t')
        __fish_complete_path (commandline -ct)
    else
        printf '%s\\n' $found
    end
end
complete -c llmasos -f -a '(__llmasos_complete)'
"""
