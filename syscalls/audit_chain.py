"""The form of the audit log: chained lines, each sealed under a key that is forgotten with it, and signed heads.

journald's sealing (Marson and Poettering, "Practical Secure Logging") is the model; here the key changes with every line,
not every quarter of an hour. A line is `SEAL BODY\\n`: 64 hexadecimal digits, a space, one JSON object without a line
break, whose first member `n` is the line's number, from 0 on.

    seal[n] = HMAC-SHA256(key[n], head[n-1] + body[n])
    head[n] = SHA-256(head[n-1] + seal[n] + body[n])           head[-1] = 32 zero bytes
    key[n+1] = HMAC-SHA256(key[n], b"llmasos audit: next key")

A head stands for all lines up to its own. It is signed with Ed25519 as b"llmasos audit: head", the number of lines it
stands for (8 bytes, the most significant first), then the head. Nothing here reads or writes files.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

DIRECTORY = "audit"  # beside the journal
SUFFIX = ".log"  # of its files, which are called after the number of their first line
VERIFICATION = "verification-keys"  # the first keys: whoever has them can check all seals, or make them
KEY_BYTES = 32
NOTHING = bytes(32)  # the head of no line
_NEXT = b"llmasos audit: next key"
_HEAD = b"llmasos audit: head"
SEAL_DIGITS = 64


def next_key(key: bytes) -> bytes:
    return hmac.digest(key, _NEXT, "sha256")


def seal(key: bytes, head: bytes, body: bytes) -> bytes:
    return hmac.digest(key, head + body, "sha256")


def next_head(head: bytes, sealed: bytes, body: bytes) -> bytes:
    return hashlib.sha256(head + sealed + body).digest()


def signed_words(lines: int, head: bytes) -> bytes:
    """The bytes that a signature of a head is of."""
    return _HEAD + lines.to_bytes(8, "big") + head


def file_name(first: int) -> str:
    return f"{first:012d}{SUFFIX}"


@dataclass(slots=True)
class Chain:
    """The end of the chain: the number, the key and the head that the next line is made with."""

    lines: int
    key: bytes
    head: bytes = NOTHING

    def add(self, fields: Mapping[str, object]) -> bytes:
        """The next line, and the chain goes on behind it; its key is forgotten."""
        body = json.dumps({"n": self.lines, **fields}, separators=(",", ":"), ensure_ascii=True).encode()
        sealed = seal(self.key, self.head, body)
        self.head = next_head(self.head, sealed, body)
        self.key = next_key(self.key)
        self.lines += 1
        return sealed.hex().encode() + b" " + body + b"\n"

    def follow(self, line: Line) -> bool:
        """Go on behind a line that is there already. False, and nothing changes: it is not the next of this chain."""
        if line.number != self.lines or not hmac.compare_digest(line.seal, seal(self.key, self.head, line.body)):
            return False
        self.head = next_head(self.head, line.seal, line.body)
        self.key = next_key(self.key)
        self.lines += 1
        return True


class Line(NamedTuple):
    """A line as it stands in a file."""

    number: int
    seal: bytes
    body: bytes
    fields: dict[str, Any]


def parse(text: bytes) -> Line | None:
    """A line without its end; None: it is none."""
    digits, space, body = text[:SEAL_DIGITS], text[SEAL_DIGITS : SEAL_DIGITS + 1], text[SEAL_DIGITS + 1 :]
    try:
        if space != b" " or digits != digits.lower():
            return None
        fields = json.loads(body)
        sealed = bytes.fromhex(digits.decode("ascii"))
    except (ValueError, RecursionError):
        return None
    if len(sealed) != KEY_BYTES or not isinstance(fields, dict):
        return None
    number = fields.get("n")
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        return None
    return Line(number, sealed, body, fields)
