"""Tickets: a program proves to a later kernel with the same journal who it was."""

from __future__ import annotations

import hmac

PID_BYTES = 8


def ticket(secret: bytes, pid: int, uid: str = "") -> bytes:
    """The ticket of a program: its pid, and a proof that a kernel with this journal gave it to a program of this uid
    (empty: the kernel's own user)."""
    number = pid.to_bytes(PID_BYTES, "big")
    return number + hmac.digest(secret, number + uid.encode(), "sha256")
