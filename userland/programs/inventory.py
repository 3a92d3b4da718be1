"""inventory: what a kernel consists of and has loaded, by its own report. verify: is another installation the same as
this one, and as its own list of files says?"""

from __future__ import annotations

import base64
import csv
from pathlib import Path

from llmasos.syscalls import installation
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Measure, Record
from llmasos.userland.programs.listing import Field, Listing, document
from llmasos.userland.programs.screen import Screen

LISTING: Listing[Measure] = Listing(
    (
        Field("KIND", "kind", keep=5),
        Field("NAME", "name", style="bold", elastic=True, keep=6, least=12),
        Field("SHA-256", "digest", keep=7, least=16, elastic=True),
        Field("DEVICE", "device", shown=lambda one: one.device or "-", keep=3),
        Field("WHERE", "place", elastic=True, keep=4, least=16),
        Field("TRUSTED", "trusted", shown=lambda one: one.trusted or "-", elastic=True, keep=2),
    ),
)


class Comparison(Record):
    """Another installation, file by file. `changed`, `missing` and `added` are against this one; `unlike_its_list`
    against the list of files that its installer has left."""

    place: str
    digest: str
    ours: str
    changed: list[str] = []
    missing: list[str] = []
    added: list[str] = []
    unlike_its_list: list[str] = []
    listed: bool = False  # whether it has such a list


def verify(screen: Screen, place: Path, *, as_json: bool = False) -> int:
    """Compare the package in `place`, or in a directory of packages, with this one. 0: they are the same. Raises
    SyscallError ENOENT, EIO."""
    package = next((one for one in (place, place / "llmasos") if (one / "syscalls" / "table.py").is_file()), None)
    if package is None:
        raise Errno.ENOENT(
            f"there is no installation of llmasos in {place}; name its directory, .../site-packages/llmasos"
        )
    try:
        theirs, ours = installation.digests(package), installation.digests()
        listed = _listed(package)
    except OSError as error:
        raise Errno.EIO(f"{error.filename} cannot be read: {error.strerror}") from None
    found = Comparison(
        str(package),
        installation.whole(theirs),
        installation.whole(ours),
        [name for name in theirs if name in ours and theirs[name] != ours[name]],
        [name for name in ours if name not in theirs],
        [name for name in theirs if name not in ours],
        [name for name, digest in theirs.items() if listed.get(name, "") != digest] if listed else [],
        bool(listed),
    )
    if as_json:
        document(screen, found)
    else:
        _say(screen, found)
    return 1 if found.changed or found.missing or found.added or found.unlike_its_list else 0


def _listed(package: Path) -> dict[str, str]:
    """The digests in the installer's list of files (RECORD of the wheel), by paths within the package; empty: there is
    none."""
    for record in package.parent.glob("llmasos-*.dist-info/RECORD"):
        with record.open(newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == 3 and row[1].startswith("sha256=")]
        found = {
            name.removeprefix("llmasos/"): base64.urlsafe_b64decode(digest.removeprefix("sha256=") + "=").hex()
            for name, digest, _ in rows
            if name.startswith("llmasos/")
        }
        if found:  # that of an editable installation lists no files of the package
            return found
    return {}


def _say(screen: Screen, found: Comparison) -> None:
    screen.pairs([("there", f"sha256:{found.digest}  {found.place}"), ("here", f"sha256:{found.ours}")])
    for what, names in (
        ("has another content", found.changed),
        ("is missing there", found.missing),
        ("is there and not here", found.added),
        ("is not as its installer's list says", found.unlike_its_list),
    ):
        for name in names:
            screen.line(f"{name} {what}", "red")
    if not found.listed:
        screen.note("it has no list of files of its own (RECORD): it was not installed from a wheel")
