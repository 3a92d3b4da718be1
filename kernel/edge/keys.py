"""Keys of what is at rest: master key -> root of a file -> key of an owner -> key of a process, journal or image.

The master key is elsewhere (master.py). All others are in files of slots, wrapped with AES-256-GCM by the one above: one
file for the user's image files, one for each journal (key_store.py, slot_file.py, slots.py). A slot can be overwritten,
and then what was encrypted under its key is gone, wherever copies of it went (crypto-shredding). `docs/seal.md` says what
that protects, and what it does not.
"""

from __future__ import annotations

import secrets
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Protocol

from llmasos.kernel.edge.key_store import Store
from llmasos.kernel.edge.locked import KEY_BYTES, Locked
from llmasos.kernel.edge.master import KEY_FILE, Kind, Source, source_of
from llmasos.kernel.edge.slot_file import told
from llmasos.kernel.edge.slots import SLOT_BYTES
from llmasos.kernel.edge.stores import FILES, Listed, stores_in
from llmasos.syscalls import runtime
from llmasos.syscalls.errno import Errno, SyscallError


class Wanted(Protocol):
    """Where keys are, as the configuration says (settings.py)."""

    enabled: bool
    key: Kind
    key_file: str
    key_command: str
    directory: str


def keys_of(wanted: Wanted) -> Keys:
    """The keys as they are configured; nothing is read yet. Raises SyscallError ENOENT: no home is known, and no place is
    named."""
    try:
        config, state = runtime.settings_place(), runtime.state()
    except RuntimeError as error:
        if not (wanted.directory and (wanted.key != "file" or wanted.key_file)):
            raise Errno.ENOENT(
                f"no place for keys: {error}; name some ([seal] key_file and directory), or boot without encryption "
                "(--plain)"
            ) from None
        config = state = Path()
    place = Path(wanted.directory).expanduser() if wanted.directory else state / "keys"
    file = Path(wanted.key_file).expanduser() if wanted.key_file else config / KEY_FILE
    return Keys(source_of(wanted.key, file.absolute(), wanted.key_command), place.absolute(), plain=not wanted.enabled)


class Keys:
    """All keys of the kernel's user, of which the master key is read when it is first needed. `plain`: what is written is
    not encrypted; what was before can still be read."""

    def __init__(self, source: Source, directory: Path, *, plain: bool = False) -> None:
        self.source, self.directory, self.plain = source, directory, plain
        self.listed = Listed(source.listed)
        self.locked = Locked()
        self.troubles: list[str] = []  # why the last rotation has left the old master key
        self._known: list[bytes] = []
        self._stores: dict[str, Store] = {}
        self._loop = 0  # the thread that must not wait for a slow source
        self._asking: threading.Thread | None = None
        self._answered = False

    def serve(self, *, images: bool) -> str:
        """This thread handles events from here on, so that it must not wait for a command. The master key is not kept:
        for all that is in use the root keys are at hand, and that of `images` if it will be in use; returns why not:
        whoever writes an image has it tried again."""
        trouble = ""
        if images or self.source.slow:
            try:
                self.files.open()
            except SyscallError as error:
                trouble = error.reason
        self._loop, self._known = threading.get_ident(), []
        return trouble

    def masters(self, anew: bool = False) -> list[bytes]:
        """The master keys, newest first; read `anew`, or as they are known. The first of all is made here, if its place
        is a file. Raises SyscallError EPERM: it is not at hand, and what to do; EAGAIN: a command is being asked."""
        if (anew or not self._known) and not self._ask():
            self._known = self.source.read() or self._make()
        return self._known

    def _ask(self) -> bool:
        """Whether a slow source has been asked by a thread of its own, since this one must not wait."""
        if not self.source.slow or threading.get_ident() != self._loop:
            return False
        if not self._answered:
            if self._asking is None:
                self._asking = threading.Thread(target=self._hear, name="key command", daemon=True)
                self._asking.start()
            raise Errno.EAGAIN(f"the master key is being asked for ({self.source.about}); try again in a moment")
        self._answered = False
        return True

    def _hear(self) -> None:
        with suppress(SyscallError):  # whoever wants it next has it asked again
            self._known, self._answered = self.source.read(), True
        self._asking = None

    def _make(self) -> list[bytes]:
        held = [place for place in self._directories() if self._holds(place)]
        if held or not self.source.makes:
            under = f"; what is in {', '.join(map(str, held))} is under it" if held else ""
            raise Errno.EPERM(
                f"no master key is there ({self.source.about}){under}: {self.source.missing()}, or boot without "
                "encryption and with another journal (--plain --journal DIR)"
            )
        with self.listed.alone():
            if found := self.source.read():
                return found
            key = secrets.token_bytes(KEY_BYTES)
            self.source.write([key])
            return [key]

    def _directories(self) -> list[Path]:
        """All that have files under the master key, as far as is known."""
        return list(dict.fromkeys([self.directory, *self.listed.read()]))

    def _holds(self, directory: Path) -> bool:
        with told(directory):
            return directory.exists() and any(path.stat().st_size > SLOT_BYTES for path in stores_in(directory))

    def stores(self) -> list[Path]:
        """The files of slots in the directory. Raises SyscallError EIO."""
        with told(self.directory):
            return stores_in(self.directory) if self.directory.exists() else []

    def store(self, name: str) -> Store:
        """One of them; it is made if it is not there. Raises SyscallError."""
        if name not in self._stores:
            with self.listed.alone():
                self._open(name)
        return self._stores[name]

    def renew(self, store: Store) -> None:
        """Have what wrapped forgotten keys forgotten too, up to the master key where that is ours to make."""
        with self.listed.alone():  # else the root may be under a master key that somebody forgets meanwhile
            store.renew()
        if self.source.makes:
            self.rotate()

    def remove(self, store: Store) -> None:
        """Overwrite and remove a file: nothing under its keys is to be read again."""
        self._stores.pop(store.path.name, None)
        store.remove()
        self.listed.drop(self.directory)

    def _open(self, name: str) -> Store:
        self.listed.note(self.directory)
        return self._stores.setdefault(name, Store(self.directory / name, self.masters, self.locked))

    @property
    def files(self) -> Store:
        """The keys of the user's image files."""
        return self.store(FILES)

    def rotate(self, new: bytes | None = None) -> tuple[int, list[str]]:
        """Wrap what is under the master key under a new one, wherever it is, and forget the old ones. Returns how many
        keys there were, and what could not be done: then the old ones stay. A kernel that runs meanwhile is not
        disturbed: it has its root keys."""
        self.masters()
        with self.listed.alone():
            old = self.source.read()
            if new is None and self.source.makes and len(old) == 1:  # more: a rotation was begun
                new = secrets.token_bytes(KEY_BYTES)
            if new is not None:
                self.source.write([new, *old])
            # From here on nobody wraps under the old ones; who has done so is in the list.
            count, self.troubles = 0, []
            for place in self._directories():
                count += self._wrap_anew(place)
            if (new is not None or self.source.makes) and not self.troubles:
                self.source.write([new or old[0]])
            self._known = []
        return count, self.troubles

    def _wrap_anew(self, place: Path) -> int:
        """Wrap what is under another master key in all files of a directory under the newest; returns how many there
        were."""
        count = 0
        try:
            for path in stores_in(place):
                try:
                    if place == self.directory:
                        count += (self._stores.get(path.name) or self._open(path.name)).wrap_anew()
                    else:
                        with closing(Store(path, self.masters, self.locked)) as store:
                            count += store.wrap_anew()
                except SyscallError as error:
                    self.troubles.append(error.reason)
        except OSError as error:
            if place in self.listed.read():  # else nothing was ever there
                self.troubles.append(
                    f"the keys in {place} cannot be reached: {error.strerror}; bring them back, or take the line out of "
                    f"{self.listed.path} if they have gone for good"
                )
        return count
