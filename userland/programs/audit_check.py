"""Is an audit log as its kernels have written it? Pure: the bytes of its files in, what was found out.

Three things are looked at, each of which finds what the others cannot (docs/audit.md): the seals, with the verification
keys; the signed heads in the log; and heads that an anchor has kept elsewhere.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from llmasos.syscalls import audit_chain
from llmasos.syscalls.audit_chain import NOTHING, Line

_SAID = {  # lines by which a kernel tells of what it found
    "rekeyed": "the key of the log had been lost, and nobody vouches for what stands before",
    "missing": "lines before it were missing when its kernel was booted",
    "strange": "something that was no line of the log stood here when its kernel was booted",
}


class FirstKey(msgspec.Struct):
    """A row of the verification keys: the key of line `from`, and the key that heads are signed with from there on."""

    key: str
    sign: str
    since: int = msgspec.field(name="from")


class Head(msgspec.Struct):
    """What an anchor was sent."""

    lines: int
    head: str
    key: str
    signature: str
    at: str = ""


class Report(msgspec.Struct):
    """What was found. `wrong` is empty if all is as it was written, as far as it could be looked at."""

    first: int = -1  # number of the first line; -1: there is none
    lines: int = 0  # in all
    sealed: int = 0  # whose seal was checked and is right
    signed_heads: int = 0  # in the log, with a right signature
    signed: int = 0  # lines that the last of these stands for, counted from line 0
    anchored_heads: int = 0  # that are heads of this log
    anchored: int = 0  # lines that the last of these stands for, counted from line 0
    wrong: list[str] = []
    notes: list[str] = []


@dataclass(slots=True)
class _Keys:
    """The key of each line, in ascending order of lines."""

    rows: Sequence[FirstKey]
    number: int = -1
    key: bytes = b""

    def of(self, number: int) -> bytes | None:
        known = [row for row in self.rows if row.since <= number]
        if not known:
            return None
        row = max(known, key=lambda row: row.since)
        if not row.since <= self.number <= number:
            self.number, self.key = row.since, bytes.fromhex(row.key)
        while self.number < number:
            self.number, self.key = self.number + 1, audit_chain.next_key(self.key)
        return self.key

    def signs(self, number: int) -> str:
        """The public key that heads are signed with at a line; empty: not known."""
        known = [row for row in self.rows if row.since <= number]
        return max(known, key=lambda row: row.since).sign if known else ""


@dataclass(slots=True)
class _Check:
    """A walk along the lines of all files."""

    keys: _Keys
    anchored: Mapping[int, list[Head]]
    report: Report = field(default_factory=Report)
    expected: int = -1  # the number of the next line; -1: any
    head: bytes | None = None  # None: not known, after something was wrong
    signs: str = ""  # the key of signatures that the log itself names
    dropped: int = 0  # lines before this number were removed by the kernel, which keeps so many files

    def wrong(self, where: str, why: str) -> None:
        self.report.wrong.append(f"{where}: {why}")

    def line(self, where: str, line: Line, *, opens: bool) -> bool:
        """Look at the next line; `opens`: it is the first of a file. False: what follows cannot be looked at."""
        report, body = self.report, line.fields
        if self.expected < 0:
            report.first = line.number
        elif line.number != self.expected:
            self.wrong(where, f"its number is {line.number}, and {self.expected} was to come: lines are missing or moved")
        self.expected = line.number + 1
        if opens != (body.get("what") == "begin"):
            self.wrong(where, "a file begins with a line 'begin', and no other line is one")
            return False
        if opens and not self._opens(where, body):
            return False
        if self.head is None:
            return False
        if (key := self.keys.of(line.number)) is not None:
            if not hmac.compare_digest(audit_chain.seal(key, self.head, line.body), line.seal):
                self.wrong(where, "its seal is wrong: it, or a line before it, is not as it was written")
                return False
            report.sealed += 1
        if body.get("what") == "head" and not self._signed(where, line):
            return False
        if body.get("what") in _SAID and body.get("of") == "log":
            self.wrong(where, _SAID[body["what"]])
        if body.get("what") == "dropped" and body.get("of") == "log":
            self.dropped = _number(body.get("details"), "before")
        self.head = audit_chain.next_head(self.head, line.seal, line.body)
        report.lines += 1
        self._anchor()
        return True

    def _opens(self, where: str, body: dict[str, Any]) -> bool:
        try:
            before = bytes.fromhex(str(body.get("before")))
        except ValueError:
            before = b""
        self.signs = str(body.get("key", ""))
        if len(before) != len(NOTHING):
            self.wrong(where, "it names no head of the lines before it")
            return False
        if self.head is not None and before != self.head:
            self.wrong(where, "it does not go on from the end of the file before it")
        if self.head is None and not self.report.wrong and self.expected == 1 and before != NOTHING:
            self.wrong(where, "it is line 0 and names lines before it")
        self.head = before
        return True

    def _signed(self, where: str, line: Line) -> bool:
        details = line.fields.get("details")
        details = details if isinstance(details, dict) else {}
        key = self.keys.signs(line.number) or self.signs
        signature = str(details.get("signature", ""))
        assert self.head is not None
        if details.get("head") != self.head.hex() or not is_signed(key, signature, line.number, self.head):
            self.wrong(where, "the head that was signed here is not that of the lines before it")
            return False
        self.report.signed_heads += 1
        self.report.signed = line.number
        return True

    def _anchor(self) -> None:
        """Compare with what an anchor was sent when the log had come so far."""
        assert self.head is not None
        for head in self.anchored.get(self.expected, ()):
            if head.head != self.head.hex():
                self.wrong(f"the anchor's head of {head.lines} lines", "it is of other lines than those in the log")
            else:
                self.report.anchored_heads += 1
                self.report.anchored = head.lines


def _number(details: object, name: str) -> int:
    found = details.get(name) if isinstance(details, dict) else None
    return found if isinstance(found, int) else 0


def is_signed(key: str, signature: str, lines: int, head: bytes) -> bool:
    """Whether a signature (Ed25519) of a head is right; keys and signatures are in hexadecimal digits."""
    from cryptography.exceptions import InvalidSignature  # late: 20 ms
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
        public.verify(bytes.fromhex(signature), audit_chain.signed_words(lines, head))
    except (InvalidSignature, ValueError):
        return False
    return True


def check(
    files: Sequence[tuple[str, bytes]],
    keys: Sequence[FirstKey] = (),
    heads: Sequence[Head] = (),
    synced: int = 0,
) -> Report:
    """Look at the files of a log (name, bytes), the oldest first. `synced`: lines its kernel once had on the disk."""
    anchored: dict[int, list[Head]] = {}
    for head in heads:
        anchored.setdefault(head.lines, []).append(head)
    walk = _Check(_Keys(keys), anchored)
    for name, text in files:
        opens = True
        for number, line in _lines(text):
            where = f"{name}, line {number} of the file"
            if line is None:
                walk.wrong(where, "it is no line of an audit log")
            if line is None or not walk.line(where, line, opens=opens):
                walk.head = None  # the next file says where it goes on
                break
            opens = False
        if text and not text.endswith(b"\n"):
            last = name == files[-1][0]
            torn = "its last line has no end: it is being written, or its kernel was killed while writing"
            walk.report.notes.append(f"{name}: {torn}") if last else walk.wrong(name, "its last line has no end")
    _end(walk, heads, synced)
    return walk.report


def _lines(text: bytes) -> Iterator[tuple[int, Line | None]]:
    whole, _, _ = text.rpartition(b"\n")
    for number, line in enumerate(whole.split(b"\n") if whole or text.startswith(b"\n") else [], 1):
        yield number, audit_chain.parse(line)


def _end(walk: _Check, heads: Sequence[Head], synced: int) -> None:
    report, total, whole = walk.report, max(walk.expected, 0), walk.head is not None
    if report.first > walk.dropped:
        walk.wrong("the beginning", f"the lines before {report.first} are not here, and the kernel did not remove them")
    elif report.first:
        report.notes.append(f"the log begins with line {report.first}: the kernel keeps no more files")
    known = {row.sign for row in walk.keys.rows} or {walk.signs}
    for head in heads:
        try:
            right = head.key in known and is_signed(head.key, head.signature, head.lines, bytes.fromhex(head.head))
        except (ValueError, OverflowError):
            right = False
        if not right:
            walk.wrong(f"the anchor's head of {head.lines} lines", "its signature is not this log's")
        elif head.lines > total and whole:
            walk.wrong(
                "the end", f"the log has lines up to {total - 1}, and {head.lines} lines were anchored: it was cut"
            )
        elif head.lines <= max(report.first, 0):
            report.notes.append(f"the anchor's head of {head.lines} lines is older than the first line that is here")
    if synced > total and whole:
        walk.wrong("the end", f"the log has lines up to {total - 1}, and its kernel had {synced} on the disk: it was cut")
