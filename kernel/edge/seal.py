"""`llmasos seal` and `llmasos shred FILE`: the keys of what is at rest, with and without a running kernel.

    seal status          where the master key is, and which keys are under it
    seal rotate          a new master key; all that the old one wraps is wrapped anew
    seal load FILE       put the master key in FILE into the kernel keyring
    shred FILE...        forget the keys of process images, and overwrite the files

A kernel that runs meanwhile is not disturbed: it reads its owners' keys when it boots, and the files of keys are locked
while somebody writes to them.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from pathlib import Path

from llmasos.kernel.edge import settings
from llmasos.kernel.edge.images import MAGIC, remove_image
from llmasos.kernel.edge.keys import Keys, keys_of
from llmasos.kernel.edge.master import MOST_BYTES, name_of, parse
from llmasos.kernel.edge.slots import IMAGE, JOURNAL, PROCESS
from llmasos.syscalls import runtime
from llmasos.syscalls.errno import Errno, SyscallError

# Where a process image says how it is encrypted, and under which key (drivers/checkpoint_file.py).
_WAY, _SEALED, _NAME = 12, 2, slice(16, 24)
_OTHER_COPIES = "other names and copies of it are as they were; `--plain` and a passphrase leave only overwriting"


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--config", metavar="FILE.toml", help="the configuration (default: that of the user's kernels)")
    where.add_argument("--runtime", metavar="DIR", help=argparse.SUPPRESS)
    parser = argparse.ArgumentParser(prog="llmasos", description="Keys of what is at rest.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    seal = verbs.add_parser("seal", help="the keys of journal and process images").add_subparsers(
        dest="act", required=True
    )
    about = seal.add_parser("status", parents=[where], help="where the master key is, and what is under it")
    about.add_argument("--json", action="store_true", help="print it as JSON")
    turn = seal.add_parser("rotate", parents=[where], help="wrap all keys anew, under a new master key")
    turn.add_argument("--key", metavar="FILE", help="the new key, where its place is the keyring (default: a random one)")
    load = seal.add_parser("load", parents=[where], help="put a master key into the kernel keyring")
    load.add_argument("file", metavar="FILE", help="a file of mode 0600 that holds it in hexadecimal; -: standard input")
    gone = verbs.add_parser("shred", parents=[where], help="destroy process images: their keys, and the files")
    gone.add_argument("files", metavar="FILE", nargs="+", help="what `checkpoint` has written")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """0 if all was done; 1 with one readable line for each thing that was not."""
    args = parsed(arguments)
    try:
        usual = runtime.configuration()
        config = args.config if args.config is not None else os.fspath(usual) if usual is not None else None
        wanted = settings.read(config).seal
        keys = keys_of(wanted)
        if args.verb == "shred":
            return _shred(keys, args.files)
        if args.act == "status":
            return _status(keys, as_json=args.json)
        if args.act == "load":
            return _load(keys, args.file, wanted.key)
        return _rotate(keys, args.key)
    except SyscallError as error:
        print(f"llmasos {args.verb}: {error.reason}", file=sys.stderr)
        return 1


def _status(keys: Keys, *, as_json: bool) -> int:
    found = keys.source.read()
    files = []
    for path in keys.stores():
        store = keys.store(path.name)
        counts = {kind: len(store.find(kind)) for kind in (PROCESS, IMAGE)}
        known = {name_of(key) for key in found}
        files.append(
            {
                "file": os.fspath(path),
                "journal": next((slot.text for slot in store.find(JOURNAL)), ""),
                "owners": len(store.owners()),
                "processes": counts[PROCESS],
                "images": counts[IMAGE],
                "readable": known.issuperset(store.parents()),
            }
        )
    facts = {
        "encrypts": not keys.plain,
        "master_key": keys.source.about,
        "masters": [name_of(key).hex() for key in found],
        "apart": keys.source.apart(keys.directory),
        "directory": os.fspath(keys.directory),
        "files": files,
    }
    if as_json:
        print(json.dumps(facts))
        return 0
    print("what is written is encrypted" if not keys.plain else "what is written is NOT encrypted (--plain)")
    named = ", ".join(name_of(key).hex() for key in found) or f"none: {keys.source.missing()}"
    place = "outside" if facts["apart"] else "on"
    print(f"master key: {keys.source.about} ({named}), {place} the disk of the keys that it wraps")
    print(f"keys under it: in {keys.directory}")
    for one in files:
        of = f"journal {one['journal']}, {one['processes']} processes" if one["journal"] else f"{one['images']} images"
        print(f"  {Path(str(one['file'])).name}: {of}" + ("" if one["readable"] else "; under another master key"))
    return 0


def _rotate(keys: Keys, file: str | None) -> int:
    new = _key_in(file) if file is not None else None
    if new is None and not keys.source.makes and len(keys.source.read()) < 2:
        keys.source.write([])  # a command says what to do
    count, troubles = keys.rotate(new)
    print(f"{count} root keys are wrapped under {name_of(keys.masters(anew=True)[0]).hex()}")
    for text in troubles:
        print(f"llmasos seal: {text}; the old master key stays until that is mended", file=sys.stderr)
    return 1 if troubles else 0


def _load(keys: Keys, file: str, kind: str) -> int:
    if kind != "keyring":
        raise Errno.EINVAL(f'the master key is not in the keyring, but here: {keys.source.about} ([seal] key = "{kind}")')
    key = _key_in(file)
    keys.source.write([key])
    print(f"master key {name_of(key).hex()} is in the {keys.source.about}, until the machine is started again")
    return 0


def _key_in(file: str) -> bytes:
    """The first key in a file that nobody else may read."""
    try:
        if file == "-":
            text = sys.stdin.buffer.read(MOST_BYTES)
        else:
            with open(file, "rb") as opened:
                if stat.S_IMODE(os.fstat(opened.fileno()).st_mode) & 0o077:
                    raise Errno.EPERM(f"others may read {file}; `chmod 600 {file}`, or make a new key")
                text = opened.read(MOST_BYTES)
    except OSError as error:
        raise Errno.ENOENT(f"{file} cannot be read: {error.strerror}") from None
    found = parse(text, file)
    if not found:
        raise Errno.EINVAL(f"{file} holds no key")
    return found[0]


def _shred(keys: Keys, files: list[str]) -> int:
    failed = 0
    forgotten = False
    for file in files:
        try:
            forgotten |= _shred_one(keys, file)
        except SyscallError as error:
            print(f"llmasos shred: {error.reason}", file=sys.stderr)
            failed += 1
    if forgotten:
        keys.renew(keys.files)
        for text in keys.troubles:
            print(f"not sure: the old master key stays until this is mended: {text}")
        if not keys.source.apart(keys.directory):
            print(
                "not sure: the master key is on the disk of the keys that it wraps, whose old blocks may hold both; it "
                "is sure where that key lies elsewhere ([seal] key)"
            )
    return 1 if failed else 0


def _shred_one(keys: Keys, file: str) -> bool:
    """Whether a key was forgotten."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(64)
    except OSError as error:
        raise Errno.ENOENT(f"{file} cannot be read: {error.strerror}; name what `checkpoint` has written") from None
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
        print(f"{file}: overwritten and removed; its key was not among yours")
    else:
        print(f"{file}: overwritten and removed; {_OTHER_COPIES}, and old blocks of the disk may hold it")
    return there


if __name__ == "__main__":
    sys.exit(main())
