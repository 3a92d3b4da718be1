"""`llmasos key`: who may come to this user's kernels by TCP, and the keys of programs and kernels. No kernel need run;
one that does notices by itself.

    key new [FILE]            make a key for this user's programs; prints its public half, which the operator adds
    key trust HOST:PORT KEY   the kernel there has this key
    key server                print the public key of this user's kernels
    key add KEY NAME          let whoever holds it come
    key list                  who may come
    key revoke NAME           no longer; its connections are cut
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmasos.kernel.edge import verbs
from llmasos.kernel.edge.server_key import authorized_keys, server_key
from llmasos.syscalls import curve_keys
from llmasos.syscalls.curve_keys import Key, text_of
from llmasos.syscalls.errno import Errno


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    where = verbs.where()
    parser = argparse.ArgumentParser(prog="llmasos key", description="Keys of programs and kernels on other machines.")
    kinds = parser.add_subparsers(dest="act", required=True)
    new = kinds.add_parser("new", parents=[where], help="make a key for this user's programs, and print its public half")
    new.add_argument("file", metavar="FILE", nargs="?", help="where to (default: client.key, among the settings)")
    trust = kinds.add_parser("trust", parents=[where], help="note which key the kernel on another machine has")
    trust.add_argument("address", metavar="HOST:PORT")
    trust.add_argument("key", metavar="KEY", help="what `llmasos key server` prints there")
    kinds.add_parser("server", parents=[where], help="print the public key of this user's kernels")
    add = kinds.add_parser("add", parents=[where], help="let whoever holds a key come")
    add.add_argument("key", metavar="KEY", help="what `llmasos key new` has printed")
    add.add_argument("name", metavar="NAME", help="a name for it")
    add.add_argument("whose", metavar="uid=N|tenant=NAME", nargs="?", default="", help="whose its programs are (its own)")
    shown = kinds.add_parser("list", parents=[where], help="who may come")
    shown.add_argument("--json", action="store_true", help="print it as JSON")
    gone = kinds.add_parser("revoke", parents=[where], help="let the holder of a key come no longer")
    gone.add_argument("name", metavar="NAME")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """0 if it was done; 1 with one readable line if not."""
    args = parsed(arguments)
    return verbs.done("key", lambda: _act(args))


def _act(args: argparse.Namespace) -> int:
    net = verbs.configured(args).net
    match args.act:
        case "new":
            path = Path(args.file) if args.file else curve_keys.place(curve_keys.CLIENT)
            print(text_of(curve_keys.new_secret(path)))
        case "trust":
            _trust(args.address, args.key)
        case "server":
            print(text_of(curve_keys.public_half(server_key(net))))
        case "add":
            _add(authorized_keys(net), args.key, args.name, args.whose)
        case "list":
            _list(authorized_keys(net), as_json=args.json)
        case _:
            _revoke(authorized_keys(net), args.name)
    return 0


def _trust(address: str, key: str) -> None:
    host, port = curve_keys.host_and_port(address)
    path = curve_keys.place(curve_keys.KNOWN)
    with _alone(path):
        kernels = curve_keys.known(path)
        kernels[curve_keys.shown(host, port)] = curve_keys.public_of(key)
        curve_keys.write_known(path, kernels)


def _add(path: Path, text: str, name: str, whose: str) -> None:
    key = curve_keys.named(curve_keys.public_of(text), curve_keys.checked_name(name), whose)
    with _alone(path):
        keys = curve_keys.authorized(path)
        for other in keys.values():
            if other == key:
                return
            if other.name == name or other.public == key.public:
                raise Errno.EBUSY(f"there is a key {other.name!r} already; `llmasos key revoke {other.name}` first")
        curve_keys.write_authorized(path, {**keys, key.public: key})
    print(f"{name} may come, as {key.owner}")


def _list(path: Path, *, as_json: bool) -> None:
    keys = sorted(curve_keys.authorized(path).values(), key=lambda one: one.name)
    if as_json:
        print(json.dumps([{"name": key.name, "key": text_of(key.public), "owner": key.owner} for key in keys]))
        return
    for key in keys:
        print(f"{key.name:<20} {text_of(key.public)}  {key.owner}")
    if not keys:
        print(f"no keys are in {path}: nobody may come")


def _revoke(path: Path, name: str) -> None:
    with _alone(path):
        keys = curve_keys.authorized(path)
        left: dict[bytes, Key] = {public: key for public, key in keys.items() if key.name != name}
        if len(left) == len(keys):
            raise Errno.ENOENT(f"there is no key {name!r}; `llmasos key list` lists them")
        curve_keys.write_authorized(path, left)
    print(f"{name} may come no longer")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While one command changes a file others wait. Raises SyscallError EIO."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Errno.EIO(f"{path.parent} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


if __name__ == "__main__":
    sys.exit(main())
