"""Tickets: a program proves to a later kernel with the same journal who it was."""

from __future__ import annotations

import hmac

PID_BYTES = 8


def ticket(secret: bytes, pid: int, uid: str = "", key: bytes = b"") -> bytes:
    """The ticket of a program: its pid, and a proof that a kernel with this journal gave it to a program of this uid
    (empty: the kernel's own user), which came by this public key (empty: it is on the kernel's machine)."""
    number = pid.to_bytes(PID_BYTES, "big")
    return number + hmac.digest(secret, number + uid.encode() + (b"/" + key if key else b""), "sha256")
