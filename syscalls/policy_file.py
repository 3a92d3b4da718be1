"""How policies of the user's own are named: `FILE.py:CLASS`, and `FILE.py:CLASS@DIGEST` once the kernel has the text."""

from __future__ import annotations

import ast
import glob
import hashlib
import os.path
import re
from collections.abc import Iterable
from pathlib import Path

from llmasos.syscalls.errno import Errno

MOST_FILES = 100  # of a directory that are offered
DIGEST = 16  # hexadecimal digits of the text's SHA-256
_SHOWN = 8  # of these in a table
SPEC = re.compile(rf"(?P<file>.+\.py):(?P<cls>[^\W\d]\w*)(?:@(?P<digest>[0-9a-f]{{{DIGEST}}}))?")


def located_policy(name: str, directory: Path | None = None) -> str:
    """The name of a policy as the kernel takes it: the path of a file made absolute, a relative one from `directory`
    (None: the current one). Other names stay as they are. Raises EINVAL for a file whose class is not named."""
    found = SPEC.fullmatch(name)
    file = name.partition(":")[0]
    if found is None and (file.endswith(".py") or "/" in name or ":" in name[1:]):
        classes = classes_in((directory or Path.cwd()) / Path(file).expanduser())
        there = f"; its classes are: {', '.join(classes)}" if classes else ""
        raise Errno.EINVAL(f"a policy of your own is named FILE.py:CLASS, found {name!r}{there}")
    if found is None or found["digest"]:
        return name
    place = (directory or Path.cwd()).absolute() / Path(found["file"]).expanduser()
    return f"{os.path.normpath(place)}:{found['cls']}"


def shown_policy(name: str) -> str:
    """The name in a table: with half of its digest."""
    found = SPEC.fullmatch(name)
    return name[: _SHOWN - DIGEST] if found is not None and found["digest"] else name


def whole_policy(shown: str, known: Iterable[str]) -> str:
    """The one of `known` that is so shown; any other text unchanged."""
    meant = {name for name in known if shown_policy(name) == shown}
    return meant.pop() if len(meant) == 1 else shown


def changed_since(name: str, directory: Path | None = None) -> str:
    """What to say of a policy that is named by its digest while the file, in this directory, has another text by now;
    empty otherwise."""
    found = SPEC.fullmatch(name)
    if found is None or not found["digest"]:
        return ""
    try:
        text = ((directory or Path.cwd()) / found["file"]).read_bytes()
    except OSError:
        return ""
    if digest_of(text) == found["digest"]:
        return ""
    now = f"{found['file']}:{found['cls']}"
    return f"{found['file']} has changed since that text was loaded: `policy {now}` takes it as it is now"


def digest_of(text: bytes) -> str:
    """The digest by which a policy's text is known."""
    return hashlib.sha256(text).hexdigest()[:DIGEST]


def own_policies(word: str, directory: Path | None = None) -> list[tuple[str, str]]:
    """What a name that begins with `word` may go on as: FILE.py:CLASS of each Python file with classes, and the
    directories; each with its meaning."""
    here, name = directory or Path.cwd(), word.partition(":")[0]
    before = name[: name.rfind("/") + 1]
    found: list[tuple[str, str]] = []
    try:
        beside = sorted((here / Path(before).expanduser()).glob(f"{glob.escape(name[len(before) :])}*"))
        for file in [one for one in beside if not one.name.startswith(".")][:MOST_FILES]:
            if file.suffix == ".py" and file.is_file():
                found += [(f"{before}{file.name}:{cls}", "class of a file") for cls in classes_in(file)]
            elif before and file.is_dir():
                found.append((f"{before}{file.name}/", "directory"))
    except (OSError, RuntimeError):  # no such directory, or home
        return []
    return found


def classes_in(file: Path) -> list[str]:
    """The classes of a Python file, as far as it can be read; nothing of it is run."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []
    return [one.name for one in body if isinstance(one, ast.ClassDef)]
