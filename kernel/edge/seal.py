"""`llmasos seal` and `llmasos shred`: the keys of what is at rest, with and without a running kernel.

    seal status          where the master key is, and which keys are under it
    seal rotate          a new master key; all that the old one wraps is wrapped anew
    seal load FILE       put the master key in FILE into the kernel keyring
    shred FILE|OWNER...  forget the keys of process images or of an owner (shred.py)

A kernel that runs meanwhile is not disturbed: it reads its owners' keys when it boots, and the files of keys are locked
while somebody writes to them.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import stat
import sys
from pathlib import Path

from llmasos.kernel.edge import verbs
from llmasos.kernel.edge.keys import Keys, keys_of
from llmasos.kernel.edge.master import MOST_BYTES, name_of, parse
from llmasos.kernel.edge.shred import shred
from llmasos.kernel.edge.slots import IMAGE, JOURNAL, PROCESS
from llmasos.syscalls import runtime
from llmasos.syscalls.errno import Errno


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    where = verbs.where()
    parser = argparse.ArgumentParser(prog="llmasos", description="Keys of what is at rest.")
    kinds = parser.add_subparsers(dest="verb", required=True)
    seal = kinds.add_parser("seal", help="the keys of journal and process images").add_subparsers(
        dest="act", required=True
    )
    about = seal.add_parser("status", parents=[where], help="where the master key is, and what is under it")
    about.add_argument("--json", action="store_true", help="print it as JSON")
    turn = seal.add_parser("rotate", parents=[where], help="wrap all keys anew, under a new master key")
    turn.add_argument("--key", metavar="FILE", help="the new key, where its place is the keyring (default: a random one)")
    load = seal.add_parser("load", parents=[where], help="put a master key into the kernel keyring")
    load.add_argument("file", metavar="FILE", help="a file of mode 0600 that holds it in hexadecimal; -: standard input")
    gone = kinds.add_parser("shred", parents=[where], help="destroy process images, or all that an owner has said")
    gone.add_argument(
        "words", metavar="FILE|OWNER", nargs="+", help="what `checkpoint` has written; a user, a uid, or UID/TENANT"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """0 if all was done; 1 with one readable line for each thing that was not."""
    args = parsed(arguments)
    return verbs.done(args.verb, lambda: _act(args))


def _act(args: argparse.Namespace) -> int:
    wanted = verbs.configured(args).seal
    keys = keys_of(wanted)
    _check_user(keys.directory)
    if args.verb == "shred":
        return shred(keys, args.words, runtime.system() if args.system else runtime.locate(args.runtime))
    if args.act == "status":
        return _status(keys, as_json=args.json)
    if args.act == "load":
        return _load(keys, args.file, wanted.key)
    return _rotate(keys, args.key)


def _check_user(directory: Path) -> None:
    """EPERM for keys of another user's kernel: files that root writes there that kernel could not open, and whose words
    are under the keys of no user goes by who runs it."""
    try:
        uid = directory.stat().st_uid
    except OSError:
        return
    if uid != os.geteuid():
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            name = f"#{uid}"
        raise Errno.EPERM(
            f"the keys in {directory} are user {name}'s; run this as that user: `sudo -u {name} llmasos ...`"
        )


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


if __name__ == "__main__":
    sys.exit(main())
