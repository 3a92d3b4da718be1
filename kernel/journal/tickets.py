"""Tickets, by which a program is known again to a later kernel with the same journal."""

from __future__ import annotations

import hmac

PID_BYTES = 8


def ticket(secret: bytes, pid: int) -> bytes:
    """What a program shows to be known again: its pid, and a proof that a kernel with this journal gave it."""
    number = pid.to_bytes(PID_BYTES, "big")
    return number + hmac.digest(secret, number, "sha256")
