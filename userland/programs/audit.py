"""audit: the lines of the audit log, and whether they are as the kernel has written them. Reads the files, which belong
to the kernel's user: no kernel need run, and one that runs need not be believed."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from llmasos.syscalls import audit_chain, runtime
from llmasos.syscalls.errno import Errno
from llmasos.userland.programs.audit_check import FirstKey, Head, Report, check
from llmasos.userland.programs.listing import Words, document
from llmasos.userland.programs.screen import Screen

ACTIONS = {"show": "the lines", "verify": "are they as they were written?"}
_STATE = struct.Struct("<8sQ")  # the beginning of the file `key`: magic, lines
T = TypeVar("T")


def run(screen: Screen, line: Words, where: Path, kept: Callable[[], str]) -> int:
    """Carry the command out; returns the exit status. `kept` asks the running kernel for the directory of its log ("": it
    keeps none, or none runs in `where`). Raises SyscallError."""
    action = line.text("SHOW")
    if action not in ACTIONS:
        raise Errno.EINVAL(f"audit has no action {action!r}; there are {', '.join(ACTIONS)}")
    directory = Path(line.text("--directory")).expanduser() if line.has("--directory") else find(where, kept)
    files = read(directory)
    if action == "verify":
        keys, heads = line.text("--keys"), line.text("--anchor")
        return verify(screen, directory, files, keys, heads, as_json=line.has("--json"))
    return show(screen, files, line.integer("--last", 0, least=1), as_json=line.has("--json"))


def find(where: Path, kept: Callable[[], str]) -> Path:
    """The directory of the audit log: that of the kernel which runs, else beside the journal of the last one."""
    if told := kept():
        return Path(told)
    beside = [(where / runtime.JOURNAL).resolve().parent, where]
    with suppress(RuntimeError):  # no home is known
        beside.append(runtime.journal_place(where))
    try:
        for place in beside:
            if (place / audit_chain.DIRECTORY).is_dir():
                return place / audit_chain.DIRECTORY
    except PermissionError:
        raise Errno.EPERM(
            f"the audit log of the kernel of {where} belongs to its user; he and, of a machine's kernel, those whom "
            "`[users] operators` named at its boot can read it"
        ) from None
    raise Errno.ENOENT(
        f"no audit log is known of the kernel of {where}; name its directory (--directory), or have one kept: "
        "[audit] enabled = true"
    )


def read(directory: Path) -> list[tuple[str, bytes]]:
    """The names and bytes of the files of a log, the oldest first. Raises SyscallError EPERM, ENOENT, EIO."""
    try:
        found = sorted(path for path in directory.glob(f"*{audit_chain.SUFFIX}") if path.stem.isdecimal())
        files = [(path.name, path.read_bytes()) for path in found]
    except PermissionError:
        raise Errno.EPERM(
            f"the audit log in {directory} belongs to the kernel's user; he and, of a machine's kernel, those whom "
            "`[users] operators` named at its boot can read it"
        ) from None
    except OSError as error:
        raise Errno.EIO(f"the audit log in {directory} cannot be read: {error.strerror}") from None
    if not files:
        raise Errno.ENOENT(f"there is no audit log in {directory}; name its directory (--directory)")
    return files


# --- show -----------------------------------------------------------------------------------------------------------


def show(screen: Screen, files: list[tuple[str, bytes]], last: int, *, as_json: bool) -> int:
    """Print lines, or those at the end, without their seals."""
    lines = [line for _, text in files for line in text.splitlines()]
    for text in lines[-last:] if last else lines:
        line = audit_chain.parse(text)
        if as_json:
            screen.line((line.body if line is not None else text).decode(errors="replace"))
        elif line is None:
            screen.line("(no line of an audit log; `audit verify` says more)", "red")
        else:
            style = "yellow" if line.fields.get("result") == Errno.EPERM.name else ""
            screen.line(" ".join(_told(line.fields)), style, indent=" " * 4)
    return 0


def _told(fields: dict[str, Any]) -> Iterator[str]:
    yield str(fields["n"])
    for name in ("at", "who"):
        if fields.get(name):
            yield str(fields[name])
    if fields.get("pid"):
        yield f"[{fields['pid']}]"
    yield str(fields.get("what"))
    details = fields.get("details")
    for group in (fields.get("on"), details if fields.get("what") != "head" else None):
        if isinstance(group, dict):
            yield from (
                f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in group.items()
            )
    if result := fields.get("result"):
        yield f"-> {result}" + (f" ({fields['reason']})" if fields.get("reason") else "")


# --- verify ---------------------------------------------------------------------------------------------------------


def verify(
    screen: Screen, directory: Path, files: list[tuple[str, bytes]], keys: str, heads: str, *, as_json: bool
) -> int:
    """Say whether the lines are as they were written, as far as that can be seen. 0: nothing is wrong."""
    beside = directory / audit_chain.VERIFICATION
    first = _rows(Path(keys), FirstKey) if keys else _rows(beside, FirstKey) if os.access(beside, os.R_OK) else []
    report = check(files, first, _rows(Path(heads), Head) if heads else [], _synced(directory))
    if as_json:
        document(screen, report)
    else:
        _say(screen, report, directory, keys_beside=bool(first) and not keys, anchored=bool(heads))
    return 1 if report.wrong else 0


def _rows(path: Path, kind: type[T]) -> list[T]:
    try:
        return [msgspec.json.decode(line, type=kind) for line in path.expanduser().read_bytes().splitlines() if line]
    except OSError as error:
        raise Errno.ENOENT(f"{path} cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise Errno.EINVAL(f"{path} is not what was wanted: {error}") from None


def _synced(directory: Path) -> int:
    """How many lines its kernel once had on the disk, as it noted for the next one; 0: that is not known."""
    try:
        return int(_STATE.unpack((directory / "key").read_bytes()[: _STATE.size])[1])
    except (OSError, struct.error):
        return 0


def _say(screen: Screen, report: Report, directory: Path, *, keys_beside: bool, anchored: bool) -> None:
    end = max(report.first, 0) + report.lines
    seals = f"{report.sealed} of {report.lines} are right"
    if not report.sealed:
        seals = "not checked: the verification keys are not here, or not to be read by you (--keys FILE)"
    elif keys_beside:
        seals += "; but the keys lie beside the log: who can read them can write another one. Keep them elsewhere"
    rows = [
        ("log", f"{directory}: {report.lines} lines, from {max(report.first, 0)} on"),
        ("seals", seals),
        ("heads", f"{report.signed_heads} are signed; the last stands for lines up to {report.signed - 1}"),
    ]
    after = end - report.anchored
    if anchored:
        rows.append(("anchor", f"{report.anchored_heads} heads are of this log; {after} lines came after the last"))
    else:
        rows.append(("anchor", "none was given (--anchor FILE): a log written anew by who held the keys is not found"))
    screen.pairs(rows)
    for note in report.notes:
        screen.note(note)
    for wrong in report.wrong:
        screen.line(wrong, "red")
    screen.line("something is wrong" if report.wrong else "nothing is wrong", "bold red" if report.wrong else "")
