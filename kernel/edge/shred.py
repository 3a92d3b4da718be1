"""`llmasos shred FILE|OWNER`: forget the keys of process images, or all that an owner has said.

A kernel that runs has to do it itself, for its own journal (ShredOwner in syscalls/table.py); what lies under the same
master key besides is done here: process images, and the journals of kernels that do not run. Such a journal is first
written anew without the owner's processes, since what others have forked stands in their parents' parts, and then the
keys are forgotten.
"""

from __future__ import annotations

import os
import pwd
import re
import sys
from pathlib import Path

from llmasos.kernel.edge import journal_file
from llmasos.kernel.edge.images import MAGIC, remove_image
from llmasos.kernel.edge.key_store import OWN, Store
from llmasos.kernel.edge.keys import Keys
from llmasos.kernel.edge.slots import IMAGE, JOURNAL, PROCESS
from llmasos.kernel.edge.stores import FILES
from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import ShredInfo
from llmasos.syscalls.table import BootInfoCall
from llmasos.syscalls.table import ShredOwner as ShredOwnerCall

# Where a process image says how it is encrypted, and under which key (drivers/checkpoint_file.py).
_WAY, _SEALED, _NAME = 12, 2, slice(16, 24)
_OTHER_COPIES = "other names and copies of it are as they were; `--plain` and a passphrase leave only overwriting"
_ELSEWHERE = "so whoever has it reads copies of it: the machine's kernel, until `kill --shred PID` or `shred OWNER` there"
_ON_DISK = (
    "not sure: the master key is on the disk of the keys that it wraps, whose old blocks may hold both; it is sure where "
    "that key lies elsewhere ([seal] key)"
)
_OWNER = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*)((?:/[A-Za-z0-9_.-]+)?)")
_SECONDS = 300.0  # that a kernel may take to end and destroy all processes of an owner
_LEFT = (
    "process images under a passphrase, and what was written with --plain (`shred FILE`; boot "
    "that journal, and `shred OWNER`)",
    "copies of model files that were shown to the kernel of a machine (docs/files.md): they are no words of an owner's",
    "children that other owners forked, whoever read it or was sent it, and what programs, terminals and swap still have",
)


def shred(keys: Keys, words: list[str], directory: Path) -> int:
    """0 if all was destroyed. `directory`: of the kernel, if one runs."""
    failed, forgotten = 0, False
    for word in words:
        try:
            if (owner := owner_named(word)) is None:
                forgotten |= _shred_file(keys, word)
            else:
                shred_owner(keys, owner, directory)
        except SyscallError as error:
            print(f"llmasos shred: {error.reason}", file=sys.stderr)
            failed += 1
    if forgotten:
        keys.renew(keys.files)
        for text in keys.troubles:
            print(f"not sure: the old master key stays until this is mended: {text}")
        if not keys.source.apart(keys.directory):
            print(_ON_DISK)
    return 1 if failed else 0


# --- an owner -------------------------------------------------------------------------------------------------------


def owner_named(word: str) -> str | None:
    """The owner (`1000`, `1000/acme`) that is meant by a uid, the name of a user, or either and a tenant; None: it is a
    file. Raises SyscallError EINVAL: it may be both."""
    found = _OWNER.fullmatch(word)
    if found is None:
        return None
    user, tenant = found.groups()
    if user.isdecimal():
        uid = int(user)
    else:
        try:
            uid = pwd.getpwnam(user).pw_uid
        except KeyError:
            return None
    if os.path.lexists(word):
        raise Errno.EINVAL(f"{word} is an owner and a file here; write ./{word} for the file")
    return f"{uid}{tenant}"


def key_name(owner: str) -> str:
    """What an owner is called in files of keys. Root and the user of the kernel are one owner there, as they are in the
    kernel, and their tenants are that user's."""
    uid, _, tenant = owner.partition("/")
    if int(uid) not in (0, os.geteuid()):
        return owner
    return f"{os.geteuid()}/{tenant}" if tenant else OWN


def shred_owner(keys: Keys, owner: str, directory: Path) -> None:
    """Forget all of an owner, in the kernel that runs, if one does, and in the files of this user. Raises SyscallError,
    ESRCH if there is nothing of it."""
    key = key_name(owner)
    told: list[ShredInfo] = []
    journal, unknown = "", None
    if runtime.holder(directory) is not None:
        with blocking.connect(directory, name="shred", timeout=_SECONDS, reconnect=0.0) as kernel:
            journal = kernel(BootInfoCall(), timeout=_SECONDS).journal_path
            try:
                told.append(kernel(ShredOwnerCall(owner), timeout=_SECONDS))
            except SyscallError as error:
                if error.errno is not Errno.ESRCH:
                    raise
                unknown = error
    gone, busy = ([], []) if keys.plain else _shred_stores(keys, key, journal)
    if not told and not gone and not busy:
        raise unknown or Errno.ESRCH(f"no key of {owner} is in {keys.directory}, and no kernel runs in {directory}")
    left = dict.fromkeys([text for one in told for text in one.left] + [*_LEFT, *keys.troubles])
    for text in [text for one in told for text in one.gone] + gone:
        print(f"{owner}: gone: {text}")
    for text in left:
        print(f"{owner}: not reached: {text}")
    if not all(one.sure for one in told) or (gone and (keys.troubles or not keys.source.apart(keys.directory))):
        print(f"{owner}: {_ON_DISK}")
    if busy:
        raise Errno.EBUSY(
            f"a kernel runs that {owner} has agents in, which are as they were: its journal is {', '.join(busy)}; name "
            "that kernel (--runtime or LLMASOS_RUNTIME), or halt it, and do this again"
        )


def _shred_stores(keys: Keys, owner: str, running: str) -> tuple[list[str], list[str]]:
    """Returns what is gone, and the journals that kernels hold. `running`: that of a kernel that has seen to it."""
    gone, busy = [], []
    for path in keys.stores():
        store = keys.store(path.name)
        if path.name == FILES:
            slots = store.of_owner(owner, IMAGE)
            store.forget([slot.name for slot in slots])
            gone += [f"the key of process image {slot.text}, and of all copies of it" for slot in slots]
        else:
            journal = next((slot.text for slot in store.find(JOURNAL)), "")
            if journal == running or not (slots := store.of_owner(owner, PROCESS)):
                continue
            try:
                _shred_journal(keys, store, journal, owner)
            except SyscallError as error:
                if error.errno is not Errno.EBUSY:
                    raise
                busy.append(journal)
                continue
            gone.append(f"the keys of {len(slots)} processes in the journal {journal}, and in all copies of it")
        if slots:
            keys.renew(store)
    if gone:
        gone.append("the owner's key, under which no copy of these can be read any more")
    return gone, busy


def _shred_journal(keys: Keys, store: Store, journal: str, owner: str) -> None:
    """In a journal of no kernel that runs, and in the file of its keys. Raises SyscallError EBUSY: one does."""
    path = Path(journal)
    if not path.exists():
        store.forget([slot.name for slot in store.of_owner(owner, PROCESS)])
        return
    opened = journal_file.open_journal(path.parent, keys)
    try:
        if opened.seal is not None and opened.seal.store is store:
            opened.write_without({slot.pid for slot in store.of_owner(owner, PROCESS)})
        store.forget([slot.name for slot in store.of_owner(owner, PROCESS)])
    finally:
        os.close(opened.fd)
        os.close(opened.lock)


# --- a file ---------------------------------------------------------------------------------------------------------


def _shred_file(keys: Keys, file: str) -> bool:
    """Whether a key was forgotten."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(64)
    except OSError as error:
        raise Errno.ENOENT(
            f"{file} cannot be read: {error.strerror}; name what `checkpoint` has written, or a user"
        ) from None
    if not start.startswith(MAGIC):
        raise Errno.EINVAL(f"{file} is no process image; name what `checkpoint` has written")
    name = start[_NAME] if start[_WAY] == _SEALED else b""
    there = bool(name) and keys.files.get(name) is not None
    if there:
        keys.files.forget([name])
    if why := remove_image(Path(file)):
        raise Errno.EPERM(f"{file}: {why}" + ("; its key is forgotten, so it is noise" if there else ""))
    if there:
        print(f"{file}: its key is forgotten, so that all copies of it are noise; overwritten and removed")
    elif name:
        print(f"{file}: overwritten and removed; its key was not among yours, {_ELSEWHERE}")
    else:
        print(f"{file}: overwritten and removed; {_OTHER_COPIES}, and old blocks of the disk may hold it")
    return there
