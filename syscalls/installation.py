"""What an installation of the package consists of: its files, and the SHA-256 of each.

It is what software alone can say of itself: a report, and no attestation. The file that a tampered installation reads
is the one that it wants to be seen; so another installation looks (`llmasos verify`). Compiled modules that Python keeps
(`__pycache__`) are not among the files: Python makes them from these, and believes them if time and size are right.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

PACKAGE = Path(__file__).absolute().parents[1]
_PIECE = 1 << 20
_MADE = ("__pycache__",)  # folders of what is made from the files, or is no part of the package
_ENDINGS = (".pyc", ".pyo", ".o", ".a")


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits. Raises OSError."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            found.update(piece)
    return found.hexdigest()


def digests(package: Path = PACKAGE, rest: Callable[[], None] = lambda: None) -> dict[str, str]:
    """The digests of a package's files, by their paths within it; `rest` is called after each. Raises OSError."""
    found: dict[str, str] = {}
    for place, folders, names in os.walk(
        package, onerror=_raise, followlinks=True
    ):  # in the repository folders are links
        folders[:] = sorted(name for name in folders if name not in _MADE and not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if not name.endswith(_ENDINGS) and not name.startswith(".") and path.is_file():
                found[path.relative_to(package).as_posix()] = digest_of(path)
                rest()
    return found


def _raise(error: OSError) -> NoReturn:
    """Else a folder that cannot be listed would count as one that is not there."""
    raise error


def whole(found: Mapping[str, str]) -> str:
    """One digest for all files: the SHA-256 of `PATH\\0DIGEST\\n` of each, in the order of the paths."""
    lines = (f"{name}\0{digest}\n" for name, digest in sorted(found.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
