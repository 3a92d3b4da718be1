"""A command of the shell as a verb of the command line: `llmasos say alice hello`.

The shell's declaration of the command (words.py) says how its words are read, and the shell's action carries it out, so
that a verb does what the command does. Words are separate here already: the operating system's shell has split and
unquoted them. What a verb starts outlives it, because the verb itself is over at once.

Exit statuses, the same as the shell's: 0 done; 1 refused or failed, with the errno in one line on stderr; 2 where that is
EINVAL: the words are not of the command's form, or a value cannot be; 130 Ctrl-C; of `run` the program's own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llmasos.syscalls import runtime
from llmasos.syscalls.errno import SyscallError
from llmasos.userland.shell.grammar import MANY, Command, Kind, Line, Option, Param, UsageError, meant, nearest
from llmasos.userland.shell.words import COMMANDS, SHELL_ONLY

if TYPE_CHECKING:
    from llmasos.syscalls.blocking import Client
    from llmasos.userland.sdk.system import System

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130  # 130: 128 + SIGINT, as shells report it
BOOTS = ("spawn", "restore")  # verbs that boot a kernel where none runs
_KERNELLESS = ("help", "man")  # verbs that are the same whatever kernel is named
MAKES = ("spawn", "restore", "fork")  # verbs that leave agents behind
_RUNTIME = Option("--runtime", Kind.FILE, "the kernel's runtime directory, or tcp://HOST:PORT of one on another machine")
_FLAG = re.compile(r"--?[A-Za-z][\w-]*(=\S*)?")  # a word that is meant as an option, and not as text
_PRIVATE = "--private"  # of a shell only
VERBS = {name: command for name, command in COMMANDS.items() if name not in SHELL_ONLY}


def before_the_verb(words: list[str]) -> tuple[str | None, bool, list[str]]:
    """What stands before the verb: the runtime directory that `--runtime DIR` names, if it does, and whether `--private`
    is there; and the words behind that."""
    place, private = None, False
    while words:
        flag, equals, value = words[0].partition("=")
        if words[0] == _PRIVATE:
            private, words = True, words[1:]
        elif flag == _RUNTIME.flag and (equals or len(words) > 1):
            place, words = (value, words[1:]) if equals else (words[1], words[2:])
        else:
            break
    return place, private, words


def main(place: str | None, name: str, words: Sequence[str]) -> int:
    """Carry out a verb against the kernel of a runtime directory (None: the usual one); returns the exit status. Raises
    SyscallError."""
    command = VERBS[name]
    if wants_help(command, words):
        from llmasos.userland.programs.screen import Screen
        from llmasos.userland.shell import man

        man.show(Screen(), man.of_command(command, verb=True))
        return DONE
    try:
        line = read(command, words)
    except UsageError as error:
        return _misused(f"llmasos: {error}\nusage: llmasos {command.usage.removesuffix(' [&]')}")
    named = line.values.pop(_RUNTIME.flag, place)
    try:
        if (alone := _ALONE.get(name)) is not None:
            return alone(runtime.usual() if name in _KERNELLESS else runtime.locate(named), line)
        return _on_the_kernel(named if runtime.is_remote(named) else runtime.locate(named), line)
    except UsageError as error:
        return _misused(f"llmasos: {error}")


def no_verb(name: str, own: Collection[str]) -> str:
    """What to say of a verb that there is not; `own` are those that are no commands of the shell."""
    if name in SHELL_ONLY:
        return f"{name!r} is a command of the shell only, which `llmasos` opens; `llmasos --help` lists the verbs"
    near = nearest(name, (*own, *VERBS))
    hint = f"did you mean {near!r}? " if near else ""
    return f"no verb {name!r}; {hint}`llmasos --help` lists them"


def _misused(text: str) -> int:
    from llmasos.userland.programs.screen import Screen

    Screen().error(text)
    return MISUSED


def _on_the_kernel(where: Path | str | None, line: Line) -> int:
    """`where`: the runtime directory, or the address of a kernel on another machine (None: $LLMASOS_RUNTIME has it)."""
    name = line.command.name
    module = _HOMES.get(name, "main")  # main has all actions, and is slower to import
    import_module(f"llmasos.userland.shell.{module}")
    from llmasos.syscalls.blocking import connect
    from llmasos.syscalls.reconnect import RECONNECT_SECONDS
    from llmasos.userland.programs.screen import Screen
    from llmasos.userland.shell.session import DO, Session

    screen, booted = Screen(), []
    if name in BOOTS and isinstance(where, Path):
        from llmasos.userland.programs.boot import boot_if_none, booted_words

        booted = [booted_words] if boot_if_none(where, say=screen.note) else []
    with connect(where, name=name, reconnect=RECONNECT_SECONDS) as kernel:
        for words in booted:
            for text in words(kernel.boot):
                screen.note(text)
        shell = Session(cast("System", _LateSystem(kernel)), screen, _ask, interactive=False)
        # An answer is bare text then; of an agent that is only started, its line with the pid is the answer.
        shell.piped = not screen.terminal and not (name == "spawn" and not line.has("TEXT"))
        shell.verb = True
        if any(option.flag == "--detach" for option in line.command.options):
            line.values["--detach"] = ""
        _lasting_groups(kernel, line)
        try:
            status = DO[name](shell, line)
        except KeyboardInterrupt:
            if shell.screen.terminal:
                shell.screen.line()
            return INTERRUPTED
        finally:
            if name in MAKES:
                _leave_the_session(kernel)
        return status or (FAILED if shell.failures else shell.status or DONE)


def _lasting_groups(kernel: Client, line: Line) -> None:
    """A path of a group that begins without a slash is in the user's group, /users/NAME: the verb's own ends with it."""
    from llmasos.syscalls.table import Getinfo

    named = [
        *((param.name, param.kind) for param in line.command.params),
        *((o.flag, o.kind) for o in line.command.options),
    ]
    for name, kind in named:
        path = line.text(name)
        if kind is Kind.GROUP and path and not path.startswith("/"):
            line.values[name] = f"{kernel(Getinfo()).group.rpartition('/')[0]}/{path}"


def _leave_the_session(kernel: Client) -> None:
    """What the verb has started lives on in the user's group, /users/NAME: the verb's own then ends with it."""
    from llmasos.syscalls.table import Getinfo, GroupMove, GroupStat

    with suppress(SyscallError):  # the kernel has gone, or an agent: it stays where it is
        mine = kernel(Getinfo()).group
        (group,) = kernel(GroupStat(mine))
        for pid in group.processes:
            if pid != kernel.pid:
                kernel(GroupMove(pid, mine.rpartition("/")[0]))


class _LateSystem:
    """A System of the SDK that is made when something of it is wanted: importing it takes longer than most verbs."""

    def __init__(self, kernel: Client) -> None:
        self.kernel = kernel
        self._system: System | None = None

    def __getattr__(self, name: str) -> Any:
        if self._system is None:
            from llmasos.userland.sdk.system import System

            self._system = System(self.kernel, ExitStack())
        return getattr(self._system, name)


# Where the action of a command is, for those that do without the SDK.
_HOMES = {
    **dict.fromkeys(
        ("ps", "groups", "devices", "stats", "uptime", "dmesg", "strace", "trace", "read", "inventory"), "do_look"
    ),
    **dict.fromkeys(
        ("stop", "cont", "kill", "nice", "migrate", "fork", "rename", "limits", "group", "join", "policy"),
        "do_control",
    ),
    **dict.fromkeys(("pagein", "evict", "advise"), "do_control"),
    **dict.fromkeys(("checkpoint", "restore"), "do_images"),
    **dict.fromkeys(("grant", "grants", "revoke"), "do_grants"),
    "sandbox": "do_sandbox",
    **dict.fromkeys(("spawn", "say", "chat"), "do_talk"),
    "cat": "do_cat",
    "wait": "do_wait",
}


def _ask(prompt: str) -> str:
    """A line from the person, or from a pipe."""
    if sys.stdin is not None and sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401 - lines of input() can be edited
        return input(prompt)
    line = sys.stdin.readline() if sys.stdin is not None else ""
    if not line:
        raise EOFError
    return line


# --- verbs that want no kernel, or no connection to one ---------------------------------------------------------------


def _models(where: Path, line: Line) -> int:
    from llmasos.syscalls.blocking import connect
    from llmasos.userland.programs import models
    from llmasos.userland.programs.screen import Screen

    return models.run(Screen(), models.request(line), where, lambda: connect(where, name="models", reconnect=0.0))


def _audit(where: Path, line: Line) -> int:
    from llmasos.userland.programs import audit
    from llmasos.userland.programs.screen import Screen

    return audit.run(Screen(), line, where, lambda: _audit_directory(where))


def _audit_directory(where: Path) -> str:
    """Where the kernel of a runtime directory keeps its audit log; empty: none runs, or it keeps none."""
    from llmasos.syscalls.blocking import connect

    if runtime.holder(where) is None:
        return ""
    with connect(where, name="audit", reconnect=0.0) as kernel:
        return kernel.boot.audit


def _run(where: Path, line: Line) -> int:
    from llmasos.userland.programs.program import run

    return run(where, line.text("FILE"), line.words)


def _top(where: Path, line: Line) -> int:
    from llmasos.syscalls.blocking import connect
    from llmasos.syscalls.limits import MAX_TIMEOUT
    from llmasos.syscalls.reconnect import RECONNECT_SECONDS
    from llmasos.userland.programs.screen import Screen
    from llmasos.userland.top import main as top

    screen, once = Screen(), line.has("--once")
    if line.has("FILE"):
        if line.has("--record"):
            raise UsageError("top opens a recording or makes one, not both: leave out FILE or --record")
        top.replay(screen, line.text("FILE"), once=once)
        return DONE
    seconds = line.decimal("--seconds", top.SECONDS, least=top.SECONDS_MIN, most=MAX_TIMEOUT)
    with ExitStack() as held:

        def attach() -> Client:
            return held.enter_context(connect(where, name="top", reconnect=RECONNECT_SECONDS))

        top.run(screen, attach(), seconds=seconds, once=once, record=line.text("--record"), again=attach)
    return DONE


def _man(where: Path, line: Line) -> int:
    from llmasos.userland.programs.screen import Screen
    from llmasos.userland.shell import man

    man.show(Screen(), man.page(line.text("COMMAND"), verb=True) if line.has("COMMAND") else man.asked(line, verb=True))
    return DONE


_ALONE = {"models": _models, "audit": _audit, "run": _run, "top": _top, "man": _man, "help": _man}


# --- reading ----------------------------------------------------------------------------------------------------------


def wants_help(command: Command, words: Sequence[str]) -> bool:
    """Whether the words ask for help, before `--` and any word that is another program's."""
    for word in words:
        if word in ("-h", "--help"):
            return True
        if word == "--" or (not word.startswith("-") and _takes_rest(command.params)):
            return False
    return False


def _takes_rest(params: Sequence[Param]) -> bool:
    return any(param.kind is Kind.WORDS for param in params)


def read(command: Command, words: Sequence[str]) -> Line:
    """Separate words as a command line of `command`. Options stand anywhere, also behind a text; `--` ends them. A text
    that is wanted and not there is read from standard input, if that is no terminal. Raises UsageError."""
    line = Line(command)
    options = {option.flag: option for option in (*command.options, _RUNTIME)}
    flagged = [param for param in command.params if param.flagged]
    places = [param for param in command.params if not param.flagged]
    left, text = list(words), list[str]()
    plain = False  # whether `--` has been
    while left:
        word = left.pop(0)
        option = None if plain else options.get(word.partition("=")[0])
        if command.passes and line.words:
            line.words += [word, *left]
            left = []
        elif word == "--" and not plain:
            plain = True
        elif option is not None:
            _take(option, word, left, line)
        elif not plain and flagged and len(word) > 1 and word[0] == "-":
            line.values[flagged.pop(0).name] = word[1:]
        elif places and places[0].kind is Kind.TEXT:
            if not plain and _FLAG.fullmatch(word):
                known = ", ".join(options)
                guess = meant(word, options)
                raise UsageError(
                    f"there is no option {word}; {guess}there are: {known}. Text that begins so stands behind `--`"
                )
            text.append(word)
        elif places and places[0].kind is Kind.WORDS and (plain or not command.options):
            line.words += [word, *left]
            left = []
        elif not plain and _dashed(word):
            raise UsageError(f"there is no option {word}; {meant(word, options)}there are: {', '.join(options)}")
        elif not places:
            raise UsageError(f"nothing was expected at {word!r}")
        elif places[0].kind in MANY:
            line.words.append(word)
        else:
            line.values[places.pop(0).name] = word
    if text:
        line.values[places.pop(0).name] = " ".join(text)
    elif places and places[0].kind is Kind.TEXT and places[0].required and not sys.stdin.isatty():
        line.values[places.pop(0).name] = _input().rstrip("\n")
    for name, kind in _kinds(command).items():
        if kind is Kind.INTEGER:
            line.integer(name, 0)
        elif kind is Kind.DECIMAL and not _number(line.text(name, "0")):
            raise UsageError(f"{command.name}: {name} wants a number, found {line.text(name)!r}")
    missing = [param.name for param in places if param.required and not (param.kind in MANY and line.words)]
    if missing and not any(option.alone and line.has(option.flag) for option in command.options):
        raise UsageError(f"{' and '.join(missing)} is wanted")
    return line


def _input() -> str:
    """Standard input as text. Raises EINVAL if it is none."""
    found = sys.stdin.buffer.read()
    try:
        return found.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"standard input is no UTF-8: byte {error.start} is 0x{found[error.start]:02X}; `iconv -f LATIN1 -t UTF-8` "
            "makes UTF-8 of another encoding"
        ) from None


def _kinds(command: Command) -> dict[str, Kind]:
    """The kinds of a command's words, by the names of their parameters and options."""
    return {param.name: param.kind for param in command.params} | {o.flag: o.kind for o in command.options if o.kind}


def _take(option: Option, word: str, left: list[str], line: Line) -> None:
    _, equals, value = word.partition("=")
    if option.kind is None:
        if equals:
            raise UsageError(f"{option.flag} takes no value")
    elif not equals:
        if not left:
            raise UsageError(f"{option.flag} wants a value ({option.kind.value})")
        value = left.pop(0)
    line.take(option, value)


def _number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _dashed(word: str) -> bool:
    return word.startswith("-") and word != "-" and not word[1:].replace(".", "", 1).isdigit()
