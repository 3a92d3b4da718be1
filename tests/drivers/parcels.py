"""A parcel of five parts."""

from __future__ import annotations

from llmasos.drivers import checkpoint
from llmasos.drivers.protocol import BLOCK_TOKENS, Export

PARTS = [bytes([number]) * 96 for number in range(5)]


WAY = {"engine": "this"}


def made(key: bytes = b"") -> tuple[str, bytes]:
    request = Export(1, 1, 2, "", b"head", 5 * BLOCK_TOKENS - 3, [], [], key)
    done = checkpoint.save(request, WAY, 96, PARTS, "", lambda: None)
    assert (done.tokens, done.reason) == (5 * BLOCK_TOKENS - 3, "")
    return done.path, done.id
