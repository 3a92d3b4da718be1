"""How policies of the user's own are named: `FILE.py:CLASS`, and `FILE.py:CLASS@DIGEST` once the kernel has the text."""

from __future__ import annotations

import os.path
import re
from pathlib import Path

DIGEST = 16  # hexadecimal digits of the text's SHA-256
SPEC = re.compile(rf"(?P<file>.+\.py):(?P<cls>[^\W\d]\w*)(?:@(?P<digest>[0-9a-f]{{{DIGEST}}}))?")


def located_policy(name: str, directory: Path | None = None) -> str:
    """The name of a policy as the kernel takes it: the path of a file made absolute, a relative one from `directory`
    (None: the current one). Other names stay as they are."""
    found = SPEC.fullmatch(name)
    if found is None or found["digest"]:
        return name
    place = (directory or Path.cwd()).absolute() / Path(found["file"]).expanduser()
    return f"{os.path.normpath(place)}:{found['cls']}"
