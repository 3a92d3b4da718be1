"""Tickets: a program proves to a later kernel with the same journal who it was."""

from __future__ import annotations

import hmac

PID_BYTES = 8


def ticket(secret: bytes, pid: int) -> bytes:
    """The ticket of a program: its pid, and a proof that a kernel with this journal gave it."""
    number = pid.to_bytes(PID_BYTES, "big")
    return number + hmac.digest(secret, number, "sha256")
