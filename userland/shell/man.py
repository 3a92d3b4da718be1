"""man: the manual pages of the shell's commands, of the system calls and of the errors, made of their declarations.

As with man(1), sections are headings in capitals and bodies are indented; a page longer than the screen goes through a
pager (pager.py). Text is kept as parts until it is shown, because only then the width of the terminal is known.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from llmasos.syscalls import manual, trace_events
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import BY_NAME, COMMON, Entry
from llmasos.userland.programs.screen import Screen
from llmasos.userland.shell.grammar import Command, Line, UsageError, parse
from llmasos.userland.shell.pager import paged
from llmasos.userland.shell.words import COMMANDS, EXAMPLES, GROUPS, OWN, SHELL_ONLY

INDENT = "    "
_TRACED = ("trace", "strace")  # whose pages list the events
TERM = 18  # cells of a term that its text stands beside


@dataclass(frozen=True)
class Part:
    """A heading, or a paragraph: its term, if it has one, and its text below that."""

    text: str
    term: str = ""
    heading: bool = False
    below: bool = False  # the text stands below its term


def topics() -> dict[str, str]:
    """Everything that has a page, with what it is in a few words."""
    errors = {errno.name: f"error: {errno.advice}" for errno in Errno if errno is not Errno.OK}
    calls = {name: f"system call: {_first_sentence(entry)}" for name, entry in BY_NAME.items()}
    verbs = {name: summary for name, (summary, _) in OWN.items()}
    return {**errors, **calls, **verbs, **{name: command.summary for name, command in COMMANDS.items()}}


def page(topic: str, *, verb: bool = False) -> list[Part]:
    """The page of a topic; without one the list of the commands. `verb` says that it is read on the command line. Raises
    ENOENT, with near topics."""
    if not topic:
        return overview(verb=verb)
    parts: list[Part] = []
    if topic in COMMANDS:
        parts += of_command(COMMANDS[topic], verb=verb)
    elif topic in OWN:
        parts += of_own(topic)
    if topic.lower() in BY_NAME:
        parts += of_call(BY_NAME[topic.lower()])
    if topic.lower() in _TRACED:
        parts += of_events()
    if topic.upper() in Errno.__members__:
        parts += of_error(Errno[topic.upper()])
    if not parts:
        import difflib

        near = difflib.get_close_matches(topic, topics(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`help` lists the commands"
        raise SyscallError(Errno.ENOENT, f"there is no command, system call or error {topic!r}; {hint}")
    return parts


def asked(line: Line, *, verb: bool = False) -> list[Part]:
    """The page of a line of `man`. A number before a name is a section of man(1), which there are none of here."""
    if line.has("-k"):
        word = line.text("-k").casefold()
        found = [Part(about, name) for name, about in topics().items() if word in f"{name} {about}".casefold()]
        if not found:
            raise SyscallError(Errno.ENOENT, f"no page has {line.text('-k')!r} in its name or summary; `help` lists all")
        return found
    topic = line.text("TOPIC")
    if line.has("NAME") and not topic.isdigit():
        raise UsageError(f"man explains one topic, found {topic} and {line.text('NAME')}")
    return page(line.text("NAME") or topic, verb=verb)


def overview(*, verb: bool = False) -> list[Part]:
    """The commands, by what they are for."""
    width = max(map(len, COMMANDS))
    parts: list[Part] = []
    for title, names in GROUPS:
        shown = [name for name in names if not verb or name not in SHELL_ONLY]
        parts += [Part(title, heading=True)] if shown else []
        parts += [Part(COMMANDS[name].summary, f"{name:<{width}}") for name in shown]
    if verb:
        parts.append(Part("`llmasos man TOPIC` explains a command, a system call or an error."))
        return parts
    remarks = (
        "`help COMMAND` explains one, `man TOPIC` a system call or an error too; `?` is short for help.",
        "`&` behind a command leaves it to the background.",
        "`# ...` behind a command is a comment; behind say and spawn it is part of their text.",
        "Pipes, `>`, `;`, `&&`, `||`, variables, `$(...)`, if, for, while and functions are as in a Unix shell. A word "
        "that is no command here is a program of the host; `!NAME` is one in any case (`!ps`).",
    )
    return [*parts, *map(Part, remarks)]


def of_command(command: Command, *, verb: bool = False) -> list[Part]:
    """The page of a command, or of the verb of that name."""
    before = "llmasos " if verb and command.name not in SHELL_ONLY else ""
    usage = command.usage.removesuffix(" [&]") if before else command.usage
    parts = [
        Part("NAME", heading=True),
        Part(f"{command.name}: {command.summary}"),
        Part("USAGE", heading=True),
        Part(before + usage),
    ]
    details = (command.of_verb or command.details) if before else command.details
    if details:
        parts += [Part("DESCRIPTION", heading=True), Part(details)]
    if command.options or before:
        parts.append(Part("OPTIONS", heading=True))
        parts += [
            Part(
                "what a verb starts outlives it in any case" if before and option.flag == "--detach" else option.help,
                f"{option.flag} {option.kind.value}" if option.kind else option.flag,
            )
            for option in command.options
        ]
    if before:
        parts.append(
            Part("the kernel's runtime directory (default: $LLMASOS_RUNTIME, else the user's usual one)", "--runtime DIR")
        )
    if examples := EXAMPLES.get(command.name):
        parts.append(Part("EXAMPLES", heading=True))
        parts += [Part(meaning, before + (_quoted(line) if before else line), below=True) for line, meaning in examples]
    if before:
        parts += [
            Part("EXIT STATUS", heading=True),
            Part(
                "0 done; 1 refused or failed, with the error in one line on stderr; 2 if that is EINVAL (a wrong word, "
                "or a value that cannot be); 130 Ctrl-C"
            ),
        ]
    return parts


def of_own(name: str) -> list[Part]:
    """The page of a verb of the command line that is no command of the shell."""
    summary, words = OWN[name]
    options = [f"[{word}]" for word in words if word.startswith("-")]
    choice = ["|".join(chosen)] if (chosen := [word for word in words if not word.startswith("-")]) else []
    return [
        Part("NAME", heading=True),
        Part(f"{name}: {summary}"),
        Part("USAGE", heading=True),
        Part(" ".join(("llmasos", name, *options, *choice))),
        Part("DESCRIPTION", heading=True),
        Part(f"A verb of the command line. `llmasos {name} --help` explains all its words."),
    ]


def _quoted(line: str) -> str:
    """An example of the shell as the operating system's shell takes it: its text in quotes."""
    read = parse(line, COMMANDS)
    text = read.text("TEXT") if read is not None else ""
    if not text or shlex.quote(text) == text:
        return line
    quoted = f'"{text}"' if not set(text) & set('"$`\\!') else shlex.quote(text)
    return line.removesuffix(text) + quoted


def of_call(entry: Entry) -> list[Part]:
    """The page of a system call, from its row of the table."""
    fields = msgspec.structs.fields(entry.record)
    arguments = ", ".join(manual.signature(field) for field in fields)
    blocks = ", blocks" if entry.blocks else ""
    text = inspect.cleandoc(entry.record.__doc__ or "")
    parts = [
        Part(f"SYSTEM CALL {entry.name}", heading=True),
        Part(f"{entry.record.__name__}({arguments}) -> {manual.type_name(entry.result)}"),
        Part(f"number {entry.number}, family {entry.family}, right {manual.rights(entry)}{blocks}"),
        *([Part(f"needs {needs}")] if (needs := manual.objects(entry)) else []),
        *(Part(" ".join(paragraph.split())) for paragraph in text.split("\n\n")),
    ]
    bounded = [(field.name, manual.bounds(field.type)) for field in fields if manual.bounds(field.type)]
    if bounded:
        parts.append(Part("LIMITS", heading=True))
        parts += [Part(limits, name) for name, limits in bounded]
    parts.append(Part("ERRORS", heading=True))
    parts += [Part(errno.advice, errno.name) for errno in sorted({*entry.errors, *COMMON}, key=lambda errno: errno.name)]
    return parts


def of_events() -> list[Part]:
    """What the trace tells."""
    parts = [Part("EVENTS", heading=True)]
    for name, event in trace_events.EVENTS.items():
        said = trace_events.fields(name)
        parts.append(Part(event.about + (f" ({said})" if said else ""), name, below=True))
    return parts


def of_error(errno: Errno) -> list[Part]:
    """The page of an error: what to do, and which calls say it."""
    calls = sorted(name for name, entry in BY_NAME.items() if errno in entry.errors)
    by = "every system call" if errno in COMMON else ", ".join(calls) or "programs, without a system call"
    return [
        Part(f"ERROR {errno.name} ({errno.value})", heading=True),
        Part(f"What to do: {errno.advice}."),
        Part(f"Said by: {by}."),
    ]


def show(screen: Screen, parts: Sequence[Part]) -> None:
    """Print a page, through the pager if it is longer than the screen."""
    with paged(screen):
        for part in parts:
            _show(screen, part)


def _show(screen: Screen, part: Part) -> None:
    if part.heading:
        screen.line(part.text, "bold")
    elif not part.term:
        screen.prose(INDENT + part.text, indent=INDENT)
    elif len(part.term) <= TERM and not part.below:
        screen.write(f"{INDENT}{part.term:<{TERM}} ", "cyan")
        screen.line(part.text, indent=" " * (len(INDENT) + TERM + 1))
    else:
        screen.prose(INDENT + part.term, "cyan", indent=INDENT * 2)
        screen.prose(INDENT * 2 + part.text, indent=INDENT * 2)


def _first_sentence(entry: Entry) -> str:
    return " ".join((entry.record.__doc__ or "").split()).partition(". ")[0].rstrip(".")
