"""`python -m docs.generate`: write docs/syscalls.md, the manual of the system calls, from the ABI table, the list of
commands in docs/shell.md from their declarations, and the blocks of other documents that come from the sources
(blocks.py).

As seL4's manual is generated from its interface files: one source, so that a page cannot disagree with the code. With
`--check` nothing is written; the exit status is 1 if a page is stale, and the difference is shown.
"""

from __future__ import annotations

import argparse
import difflib
import enum
import inspect
import sys
import typing
from pathlib import Path
from typing import Any

import msgspec

from docs import blocks, comments
from llmasos.syscalls import limits, manual, records, table, trace_events
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.parts import LONG, PACKED
from llmasos.syscalls.records import Record
from llmasos.syscalls.table import CANCEL, COMMON, TABLE, Entry, Needs
from llmasos.userland.shell.words import COMMANDS, EXAMPLES, GROUPS

PAGE = Path(__file__).with_name("syscalls.md")
SHELL = Path(__file__).with_name("shell.md")
COMMANDS_FROM = "<!-- From here on generated from userland/shell/words.py by `python -m docs.generate`. -->\n"
HEAD = f"""\
# The system calls of LLMasOS

*Generated from `syscalls/table.py` by `python -m docs.generate`. Change the table, not this page.*

A program makes a call by sending one frame to the kernel, msgpack of `[version, seq, call number, [arguments]]`, and
gets one back, `[version, seq, errno, result or reason]`. The protocol version is {limits.PROTOCOL_VERSION}. `seq` is
the caller's choice among the numbers it has not in flight. Call number {CANCEL} with the argument `[seq]` takes back
the call of that number: it is then answered with EINTR, unless its result was on its way already. A connection's first
call must be `attach`.

From Python: `await kernel(Fork(pid, count=2))` with `llmasos.syscalls.client`, the same without `await` with
`llmasos.syscalls.blocking`. Arguments stand on the wire in the order shown; those with a default may be left out from the
end.

In a request of {LONG:,} bytes or more, a list of tokens may be packed: a msgpack `bin` of 4 bytes for each token, the
least significant one first. It is decoded sooner; clients of this version send {PACKED:,} tokens and more so.

A request has at most {limits.MAX_REQUEST_BYTES:,} bytes, a reply at most {limits.MAX_REPLY_BYTES:,}. A longer request
is not read but answered EMSGSIZE; at more than {2 * limits.MAX_REQUEST_BYTES:,} bytes the connection is cut. What else
programs may make the kernel keep is in [budgets.md](budgets.md).

Of one program at most {limits.MAX_PARKED_CALLS:,} calls wait in the kernel at once. A call marked *blocks* is answered
when what it waits for has happened; all others at once.
"""


def page() -> str:
    """The whole manual page."""
    parts = [HEAD, _contents(), "## Rights on objects\n", _rights(), "## Errors of every call\n", _errors(COMMON)]
    families: dict[str, list[Entry]] = {}
    for number in sorted(TABLE):
        families.setdefault(TABLE[number].family, []).append(TABLE[number])
    for family, entries in families.items():
        parts.append(f"## {family.capitalize()}\n")
        parts += [_call(entry) for entry in entries]
    parts.append("## Records\n\nEncoded as arrays of their fields, in this order.\n")
    parts += [_record(record) for record in _records()]
    parts.append("## Events of the trace\n")
    parts.append(_events())
    parts.append("## Enumerations\n")
    parts += [_enumeration(kind) for kind in _enumerations()]
    parts.append("## All errors\n")
    parts.append(_errors(tuple(Errno), numbers=True))
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _contents() -> str:
    rows = ["| number | call | result | right | |", "|---|---|---|---|---|"]
    for number in sorted(TABLE):
        entry = TABLE[number]
        blocks = "blocks" if entry.blocks else ""
        rows.append(
            f"| {number} | [`{entry.name}`](#{entry.name}) | `{manual.type_name(entry.result)}` | {manual.rights(entry)} "
            f"| {blocks} |"
        )
    return "\n".join(rows)


def _rights() -> str:
    said = inspect.cleandoc(Needs.__doc__ or "").replace(" (kernel/rights.py)", "").replace("\n", " ")
    rows = [
        f"| `{need.name}` | {comments.of(Path(table.__file__)).get(('Needs', need.name or ''), '')} |" for need in Needs
    ]
    return "\n".join(
        [
            f"{said} Where a call needs more than to see an object, its entry says so.\n",
            "| right | |",
            "|---|---|",
            *rows,
        ]
    )


def _call(entry: Entry) -> str:
    blocks = ", blocks" if entry.blocks else ""
    arguments = ", ".join(manual.signature(field) for field in msgspec.structs.fields(entry.record))
    needs = f" Needs {found}." if (found := manual.objects(entry)) else ""
    lines = [
        f"### {entry.name}",
        "",
        f"`{entry.record.__name__}({arguments}) -> {manual.type_name(entry.result)}`",
        "",
        f"Number {entry.number}. Right: {manual.rights(entry)}{blocks}.{needs}",
        "",
        inspect.getdoc(entry.record) or "",
        "",
        _fields(entry.record),
    ]
    if entry.errors:
        lines += ["", _errors(entry.errors)]
    return "\n".join(lines).rstrip() + "\n"


def _record(record: type[Record]) -> str:
    doc = inspect.getdoc(record) or ""
    if doc == inspect.getdoc(Record):
        doc = ""
    return "\n".join(filter(None, [f"### {record.__name__}\n", doc and doc + "\n", _fields(record)])) + "\n"


def _fields(struct: type[msgspec.Struct]) -> str:
    fields = msgspec.structs.fields(struct)
    if not fields:
        return ""
    said = comments.of(Path(inspect.getfile(struct)).resolve())
    rows = ["| field | type | default | limits | |", "|---|---|---|---|---|"]
    for field in fields:
        about = said.get((struct.__name__, field.name), "").replace("|", "\\|")
        default = manual.default(field)
        rows.append(f"| `{field.name}` | {_linked(field.type)} | {default} | {manual.bounds(field.type)} | {about} |")
    return "\n".join(rows)


def _events() -> str:
    rows = [
        "What `trace` gives, and `strace` and `top` show. An empty cell: the field has nothing, 0 or no text. `*`: the "
        "device that it happens on.",
        "",
        "| `what` | happens | `pid` | `device` | `amount` | `detail` |",
        "|---|---|---|---|---|---|",
    ]
    for name, event in trace_events.EVENTS.items():
        rows.append(f"| `{name}` | {' | '.join(text.replace('|', '&#124;') for text in event)} |")
    return "\n".join(rows) + "\n"


def _enumeration(kind: type[enum.Enum]) -> str:
    said = comments.of(Path(inspect.getfile(kind)).resolve())
    rows = ["| name | value | |", "|---|---|---|"]
    rows += [f"| `{member.name}` | {member.value!r} | {said.get((kind.__name__, member.name), '')} |" for member in kind]
    return f"### {kind.__name__}\n\n{inspect.getdoc(kind)}\n\n" + "\n".join(rows) + "\n"


def _errors(errors: tuple[Errno, ...], *, numbers: bool = False) -> str:
    rows = [
        f"| error |{' number |' if numbers else ''} what to do |",
        "|---|---|" + ("---|" if numbers else ""),
    ]
    for error in errors:
        number = f" {int(error)} |" if numbers else ""
        rows.append(f"| {error.name} |{number} {error.advice} |")
    return "\n".join(rows)


def _linked(annotation: Any) -> str:
    name = manual.type_name(annotation)
    for known in _mentioned(annotation):
        if known.__module__ == records.__name__:
            return f"[`{name}`](#{known.__name__.lower()})".replace("|", "\\|")
    return f"`{name}`".replace("|", "\\|")


def _mentioned(annotation: Any) -> list[type]:
    """The classes an annotation is made of."""
    if arguments := typing.get_args(annotation):
        return [found for argument in arguments for found in _mentioned(argument)]
    return [annotation] if isinstance(annotation, type) else []


def _records() -> list[type[Record]]:
    found = [kind for kind in vars(records).values() if isinstance(kind, type) and issubclass(kind, Record)]
    return [kind for kind in found if kind is not Record]


def _enumerations() -> list[type[enum.Enum]]:
    own = [kind for kind in vars(records).values() if isinstance(kind, type) and issubclass(kind, enum.Enum)]
    return [kind for kind in own if kind.__module__ == records.__name__]


def commands(page: str) -> str:
    """docs/shell.md with the list of commands made anew, which is its end."""
    before, mark, _ = page.partition(COMMANDS_FROM)
    if not mark:
        raise SystemExit(f"{SHELL} has no line {COMMANDS_FROM!r}")
    parts = [before + mark]
    for title, names in GROUPS:
        parts.append(f"### {title}\n")
        for name in names:
            command = COMMANDS[name]
            parts.append(f"**`{command.usage}`** {command.summary}. {command.details}".rstrip() + "\n")
            options = [
                f"- `{option.flag} {option.kind.value}`: {option.help}"
                if option.kind
                else f"- `{option.flag}`: {option.help}"
                for option in command.options
            ]
            examples = [f"- `{line}`: {meaning}" for line, meaning in EXAMPLES.get(name, ())]
            parts += ["\n".join(options) + "\n"] if options else []
            parts += ["For example:\n", "\n".join(examples) + "\n"] if examples else []
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is stale")
    check = parser.parse_args(arguments).check
    pages = {path: blocks.fill(path.read_text()) for path in sorted(PAGE.parent.glob("*.md")) if path != PAGE}
    pages |= {PAGE: page(), PAGE.with_name("schedule.svg"): blocks.schedule(), SHELL: commands(pages[SHELL])}
    stale = [_update(path, fresh, write=not check) for path, fresh in pages.items()]
    return 1 if check and any(stale) else 0


def _update(path: Path, fresh: str, *, write: bool) -> bool:
    """Write a page, or show how it differs; whether it was stale."""
    found = path.read_text() if path.exists() else ""
    if fresh == found:
        return False
    if write:
        path.write_text(fresh)
        print(f"wrote {path}")
        return True
    names = path.name, "the sources"
    sys.stdout.writelines(difflib.unified_diff(found.splitlines(True), fresh.splitlines(True), *names, n=1))
    print(f"{path} is stale: run `python -m docs.generate`", file=sys.stderr)
    return True


if __name__ == "__main__":
    sys.exit(main())
