"""CurveZMQ (rfc.zeromq.org/spec/26), the kernel's side: encrypted and authenticated connections from other machines.

The mechanism of ZeroMQ that libzmq speaks too, so any of its clients can connect. Four commands, HELLO, WELCOME, INITIATE
and READY, show each side that the other holds the secret half of its lasting key, and agree on keys that are thrown away
with the connection: what was recorded cannot be read later, even by who gets the lasting keys. Each message after that is
a box of its own (XSalsa20 and Poly1305, by libsodium), numbered, so none can be changed, repeated, left out unnoticed
before another, or put in.

Only who holds the kernel's public key is answered at all. What somebody has recorded of another connection is worth
nothing: the cookie and the key that INITIATE is sealed with are of one connection. As in zmtp.py there is no socket here.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from typing import ClassVar

from nacl import bindings
from nacl.exceptions import CryptoError

from llmasos.syscalls import limits, zmtp
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.zmtp import Arrived, Broken, Frame, Pong, Refused, Shown

OVERHEAD = 33  # bytes that a message grows by: name and number of its command, seal, flags
OPENING = zmtp.greeting(b"CURVE", server=True)
_HELLO, _INITIATE = 194, 248  # bytes behind the name of the command; of the second at least
_MORE, _COMMAND = 1, 2  # flags within a message
_STRANGE = "it speaks CURVE, but not to the key of this kernel"


class Incoming(zmtp.Incoming):
    """What comes from one peer, as zmtp.Incoming, through CURVE. `Shown` has to be answered at once: by `welcome`, whose
    bytes are to be sent, or by `turned_away` and the end of the connection."""

    __slots__ = ("_cookie", "_identity", "_key", "_number", "_own", "_peers", "_secret", "_theirs")
    mechanism: ClassVar[bytes] = b"CURVE"

    def __init__(self, secret: bytes, most: int = limits.MAX_REQUEST_BYTES) -> None:
        """`secret`: the kernel's lasting key; `most`: bytes of a message."""
        super().__init__(most + OVERHEAD)
        self._secret = secret
        self._cookie = self._theirs = self._own = self._key = b""
        self._peers = 0  # the number of the latest box from there,
        self._number = 0  # and from here

    def next(self, room: Callable[[int], str]) -> Arrived | None:
        while True:
            arrived = super().next(room)
            if isinstance(arrived, Refused):  # in what was not decrypted no sequence number can be found
                return arrived._replace(prefix=b"")
            if not isinstance(arrived, bytes | bytearray):
                return arrived
            opened = self._opened(arrived)
            if opened is not None:
                return opened

    def _refuse(self, start: int, size: int, errno: Errno, why: str) -> Arrived | None:
        """Which call a message is of stands in what cannot be decrypted before it is whole. So one for which there is no
        room is not refused: it waits."""
        return zmtp.Full(why) if errno is Errno.EAGAIN else super()._refuse(start, size, errno, why)

    # --- the handshake ---

    def _said(self, name: bytes, rest: bytes) -> Arrived | None:
        if name == b"HELLO" and self._stage == 1 and not self._key and len(rest) == _HELLO:
            return self._hello(rest)
        if name == b"INITIATE" and self._stage == 1 and self._cookie and len(rest) >= _INITIATE:
            return self._initiate(rest)
        raise Broken(f"it says {name[:16]!r} where CURVE has something else")

    def _hello(self, rest: bytes) -> Arrived:
        version, theirs, number, box = rest[:2], rest[74:106], rest[106:114], rest[114:]
        if version != b"\x01\x00":
            raise Broken(f"it speaks CURVE {version[0]}.{version[1]}; this kernel speaks 1.0")
        key = _agreed(theirs, self._secret)
        if not hmac.compare_digest(_unsealed(box, b"CurveZMQHELLO---" + number, key, _STRANGE), bytes(64)):
            raise Broken(_STRANGE)
        self._peers = int.from_bytes(number, "big")
        self._theirs = theirs
        public, self._own = bindings.crypto_box_keypair()
        self._key = _agreed(theirs, self._own)
        self._cookie = secrets.token_bytes(96)
        nonce = secrets.token_bytes(16)
        box = bindings.crypto_box_afternm(public + self._cookie, b"WELCOME-" + nonce, key)
        return Pong(zmtp.command(b"WELCOME", nonce + box))

    def _initiate(self, rest: bytes) -> Arrived:
        cookie, number, box = rest[:96], rest[96:104], rest[104:]
        if not hmac.compare_digest(cookie, self._cookie):
            raise Broken("it repeats what another connection has said")
        self._cookie = b""
        said = self._unnumbered(number, box, b"CurveZMQINITIATE")
        public, nonce, vouch, metadata = said[:32], said[32:48], said[48:128], said[128:]
        why = "it does not hold the key that it shows"
        vouched = _unsealed(vouch, b"VOUCH---" + nonce, _agreed(public, self._own), why)
        own = bindings.crypto_scalarmult_base(self._secret)
        if not hmac.compare_digest(vouched, self._theirs + own):
            raise Broken(why)
        return Shown(public, zmtp.identity_of(metadata))

    def welcome(self) -> bytes:
        """READY: the peer is let in."""
        self._stage = 2
        self._own = b""
        return zmtp.command(b"READY", self._numbered(zmtp.METADATA, b"CurveZMQREADY---"))

    # --- messages ---

    def _opened(self, frame: Frame) -> Arrived | None:
        """What a message holds; None: nothing for us."""
        if frame[:8] != b"\x07MESSAGE" or len(frame) < OVERHEAD:
            raise Broken("it sends what is not encrypted")
        said = self._unnumbered(bytes(frame[8:16]), bytes(memoryview(frame)[16:]), b"CurveZMQMESSAGEC")
        flags = said[0]
        if flags & _MORE:
            raise Broken("it sends a message of several parts; a message is one frame")
        if flags & _COMMAND:
            if said[1:6] == b"\x04PING":
                return Pong(self.sealed(b"\x04PONG" + said[8:24], _COMMAND))
            return None
        return said[1:]

    def sealed(self, message: bytes, flags: int = 0) -> bytes:
        """The frame of a message, with its head."""
        body = b"\x07MESSAGE" + self._numbered(bytes((flags,)) + message, b"CurveZMQMESSAGES")
        return zmtp.head(len(body)) + body

    def _numbered(self, said: bytes, prefix: bytes) -> bytes:
        self._number += 1
        number = self._number.to_bytes(8, "big")
        box: bytes = bindings.crypto_box_afternm(said, prefix + number, self._key)
        return number + box

    def _unnumbered(self, number: bytes, box: bytes, prefix: bytes) -> bytes:
        count = int.from_bytes(number, "big")
        if count <= self._peers:
            raise Broken("it repeats what was said before")
        said = _unsealed(
            box, prefix + number, self._key, "what it sends was changed on its way, or sealed by another key"
        )
        self._peers = count
        return said


def turned_away() -> bytes:
    """ERROR with status 400, by which libzmq tells its user that his key is not accepted (rfc.zeromq.org/spec/27)."""
    return zmtp.command(b"ERROR", b"\x03400")


def _agreed(public: bytes, secret: bytes) -> bytes:
    try:
        agreed: bytes = bindings.crypto_box_beforenm(public, secret)
    except (CryptoError, ValueError):
        raise Broken("it shows a key that is none") from None
    return agreed


def _unsealed(box: bytes, nonce: bytes, key: bytes, why: str) -> bytes:
    try:
        said: bytes = bindings.crypto_box_open_afternm(box, nonce, key)
    except (CryptoError, ValueError):
        raise Broken(why) from None
    return said
