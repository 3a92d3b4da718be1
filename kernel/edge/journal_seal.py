"""The journal as it is encrypted: segments, and in each frame a part for each process.

A segment begins with each boot, each new file, and after a torn tail was cut off. Its key is made of the journal's key
and a new random salt, and its frames are encrypted with AES-256-GCM, the number of the frame being the nonce; so a nonce
never comes twice under a key, whatever is cut off and written again. What a process has said lies deeper: its tokens, its
records and the answers about it are first encrypted (AES-256-CTR, one stream for a segment) under a key of the process's
own. When that key is forgotten they are gone, and the rest of the frame can still be read. The frame's tag covers
both.

In the file a frame that is encrypted begins with a byte that no msgpack begins with. Frames keep their checksums, by
which damage is told from a wrong key.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec.structs import replace

from llmasos.kernel.edge.key_store import OWN, Store
from llmasos.kernel.edge.keys import Keys
from llmasos.kernel.edge.slots import JOURNAL, PROCESS
from llmasos.kernel.journal.records import (
    Answer,
    AnyEntry,
    BadFrame,
    Copied,
    Frame,
    Gone,
    Grown,
    Noted,
    ProcessHead,
    Sealed,
    decode,
    encode,
)
from llmasos.syscalls.errno import Errno

SALT_BYTES = 32
_BEGIN, _FRAME = b"\xc1\x01", b"\xc1\x02"
_SEGMENT = struct.Struct("<2s8s8s32s")  # the mark, the file of slots, the journal's key in it, the salt
_NUMBER = struct.Struct("<2sQ")
_KEPT = 256  # streams of processes that are held open: each has some kilobytes
_CONTENT = msgspec.msgpack.Encoder().encode
_content = msgspec.msgpack.Decoder(Grown | Noted | Answer).decode
_CTR_BLOCK = 16


class _Stream:
    """The key stream of a process in a segment, from byte `at`; `name` is that of the process's key."""

    __slots__ = ("at", "name", "turn")

    def __init__(self, name: bytes, key: bytes, salt: bytes, at: int) -> None:
        counter = (at // _CTR_BLOCK).to_bytes(_CTR_BLOCK, "big")
        own = hmac.digest(key, b"process" + salt, "sha256")
        cipher = Cipher(algorithms.AES(own), modes.CTR(counter)).encryptor()
        cipher.update(bytes(at % _CTR_BLOCK))
        # Encrypts what comes next, or decrypts it, which is the same. Whoever calls it moves `at` on.
        self.turn: Callable[[bytes], bytes] = cipher.update
        self.name, self.at = name, at


class _Segment:
    """What both sides need of a segment."""

    def __init__(self, store: Store, name: bytes, salt: bytes) -> None:
        """Raises SyscallError EPERM: the master key is not at hand; EIO: the journal's key is not there."""
        key = store.get(name)
        if key is None:
            raise Errno.EIO(
                f"the key of the journal is not in {store.path}: bring that file back, or move the journal away and "
                "begin anew"
            )
        self.store, self.name, self.salt = store, name, salt
        self.outer = AESGCM(hmac.digest(key, b"segment" + salt, "sha256"))


class Writer(_Segment):
    """A segment that is being written."""

    def __init__(self, store: Store, name: bytes, known: dict[int, bytes]) -> None:
        """`known`: the names of processes' keys by pid, for all segments of a kernel together."""
        super().__init__(store, name, secrets.token_bytes(SALT_BYTES))
        self.begin = _SEGMENT.pack(_BEGIN, bytes.fromhex(store.path.name), name, self.salt)
        self._known = known
        self._number = 0
        self.gone: set[int] = set()  # processes whose keys may be of no use any more
        self._owners: dict[int, str] = {}  # of processes that are not the kernel's user's
        self._open: dict[int, _Stream] = {}  # by pid, the first that was opened first
        self._at: dict[int, int] = {}  # how far streams had come that were closed

    @property
    def pids(self) -> set[int]:
        """The processes of which something is in it."""
        return {*self._open, *self._at}

    def forget(self, pid: int) -> None:
        """What would be written of a process goes under a new key."""
        self._open.pop(pid, None)
        self._at.pop(pid, None)

    def encode(self, frame: Frame) -> bytes:
        """The body of a frame of the file. Raises SyscallError EIO: a new key cannot be kept."""
        entries: list[AnyEntry] = []
        for entry in frame.entries:
            if isinstance(entry, (Grown, Noted)):
                pid = entry.pid
            elif isinstance(entry, Answer) and entry.about:
                pid = entry.about
            else:
                entries.append(entry)
                if isinstance(entry, Gone):
                    self.gone.add(entry.pid)
                    self._owners.pop(entry.pid, None)
                elif isinstance(entry, ProcessHead) and entry.owner:
                    self._owners[entry.pid] = entry.owner
                continue
            stream = self._open.get(pid) or self._reopen(pid)
            data = _CONTENT(entry)
            entries.append(Sealed(pid, stream.name, stream.at, stream.turn(data)))
            stream.at += len(data)
        body = encode(replace(frame, entries=entries))
        self._number += 1
        return _NUMBER.pack(_FRAME, self._number) + self.outer.encrypt(self._number.to_bytes(12, "big"), body, None)

    def _reopen(self, pid: int) -> _Stream:
        """The stream of a process, where it was, or at its beginning."""
        name, key = self._known.get(pid), None
        at = self._at.pop(pid, 0)
        if name is not None:
            key = self.store.get(name)
        if name is None or key is None:
            name, key = self.store.add(PROCESS, pid, self._owners.get(pid, OWN))
            self._known[pid], at = name, 0
        stream = self._open[pid] = _Stream(name, key, self.salt, at)
        while len(self._open) > _KEPT:
            first = next(iter(self._open))
            self._at[first] = self._open.pop(first).at
        return stream


class Reader:
    """Makes frames of what is in a journal's file. `lost`: processes that are there without what they said, since their
    keys are gone; they are to be taken out of what is read.

    In a file that is encrypted nothing else counts, and the numbers of a segment's frames show whether all are there, in
    order. A segment begins once in a file. Its first frame has number 1, unless it is the second: a file that was written
    anew begins with a segment of what there was, and goes on in that of the kernel that wrote it."""

    def __init__(self, keys: Keys | None, *, encrypted: bool) -> None:
        self._keys, self._encrypted = keys, encrypted
        self._number: int | None = None  # of the next frame; None: any
        self._salts: set[bytes] = set()
        self._now: _Segment | None = None
        self._streams: OrderedDict[tuple[bytes, bytes], _Stream] = OrderedDict()  # latest used last
        self.lost: set[int] = set()
        self.names: dict[int, bytes] = {}  # of processes' keys
        self.journal: tuple[Store, bytes] | None = None  # the store and the name of the journal's key

    def decode(self, body: bytes) -> Frame | None:
        """The frame; None: a segment begins. Raises BadFrame; SyscallError EPERM: a key is missing."""
        if not self._encrypted:
            return decode(body)
        if body[:2] == _BEGIN:
            self._begin(body)
            return None
        if body[:2] != _FRAME or self._now is None or len(body) < _NUMBER.size:
            raise BadFrame("an encrypted frame of no segment")
        number = _NUMBER.unpack_from(body)[1]
        try:
            plain = self._now.outer.decrypt(number.to_bytes(12, "big"), body[_NUMBER.size :], None)
        except InvalidTag:
            raise BadFrame("it is not what was encrypted") from None
        if self._number not in (None, number):
            raise BadFrame(f"it is number {number}, and number {self._number} is to come: frames were moved or left out")
        self._number = number + 1
        frame = decode(plain)
        return replace(frame, entries=[one for entry in frame.entries if (one := self._opened(entry)) is not None])

    def _begin(self, body: bytes) -> None:
        if len(body) != _SEGMENT.size:
            raise BadFrame("the head of a segment has another length")
        _, file, name, salt = _SEGMENT.unpack(body)
        if salt in self._salts:
            raise BadFrame("a segment begins twice")
        if self._keys is None:
            raise Errno.EPERM("the journal is encrypted, and no keys are named here")
        path = self._keys.directory / file.hex()
        if not path.exists():
            raise Errno.EPERM(
                f"the journal is encrypted, and the file of its keys is not there: bring {path} back, or move the "
                "journal away and begin anew"
            )
        store = self._keys.store(path.name)
        self._now, self.journal = _Segment(store, name, salt), (store, name)
        self._salts.add(salt)
        self._number = None if len(self._salts) == 2 else 1

    def _opened(self, entry: AnyEntry) -> AnyEntry | None:
        if isinstance(entry, Copied) and entry.parent in self.lost:
            self.lost.add(entry.pid)
        if isinstance(entry, Gone):
            self.lost.discard(entry.pid)
        if not isinstance(entry, Sealed):
            return entry
        stream = self._stream(entry)
        if stream is None:
            self.lost.add(entry.pid)
            return None
        self.names[entry.pid] = entry.name
        stream.at += len(entry.data)
        try:
            inner = _content(stream.turn(entry.data))
        except (msgspec.DecodeError, UnicodeError) as error:
            raise BadFrame(f"what process {entry.pid} said makes no sense: {error}") from None
        about = inner.about if isinstance(inner, Answer) else inner.pid
        if about != entry.pid:
            raise BadFrame(f"what process {entry.pid} said is of process {about}")
        return None if entry.pid in self.lost else inner

    def _stream(self, entry: Sealed) -> _Stream | None:
        """The stream under which an entry is, where it begins; None: its key is gone."""
        assert self._now is not None
        salt = self._now.salt
        stream = self._streams.pop((salt, entry.name), None)
        if stream is None or stream.at != entry.at:
            if (key := self._now.store.get(entry.name)) is None:
                return None
            stream = _Stream(entry.name, key, salt, entry.at)
        self._streams[salt, entry.name] = stream
        while len(self._streams) > _KEPT:
            self._streams.popitem(last=False)
        return stream


class Seal:
    """The encryption of a kernel's journal: the keys, and the segment that is written now."""

    def __init__(self, keys: Keys, found: tuple[Store, bytes] | None, names: dict[int, bytes], path: str) -> None:
        """`found`: the store and the key that the file has, with the `names` of processes' keys; None: it is new."""
        if found is None:
            store = keys.store(secrets.token_hex(8))
            found = store, store.add(JOURNAL, text=path)[0]
        self.keys = keys
        self.store, self._name = found
        self.names = names
        self.live = self.segment()
        self.live.gone.update(slot.pid for slot in self.store.find(PROCESS))

    @property
    def line(self) -> bytes:
        """The journal's name, which tells its processes from those of others."""
        return self.store.path.name.encode()

    def segment(self) -> Writer:
        """A new one."""
        self.latest = Writer(self.store, self._name, self.names)
        return self.latest

    def tidy(self, gone: set[int]) -> None:
        """A file has just been written anew, after these processes had gone: forget the keys of those that it does not
        name any more."""
        self.forget(gone.difference(self.latest.pids), sync=False)
        self.live.gone -= gone
        self.live.gone.update(gone.intersection(self.latest.pids))
        self.store.tidy()

    def forget(self, pids: Iterable[int], *, sync: bool = True) -> None:
        """Forget the keys of these processes."""
        gone = set(pids)
        names = [slot.name for slot in self.store.find(PROCESS) if slot.pid in gone]
        self.store.forget(names, sync=sync)
        for pid in gone:
            self.names.pop(pid, None)
            self.live.forget(pid)
