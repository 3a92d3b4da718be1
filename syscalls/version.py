"""The version of this package that is installed."""

from __future__ import annotations

import os
import sys

_BEGINS, _ENDS = (
    "llmasos-",
    ".dist-info",
)  # the directory's name: https://packaging.python.org/specifications/recording-installed-packages


def version() -> str:
    """It stands in the name of a directory; importlib.metadata opens that with parsers of mail, of ZIP and of CSV, whose
    import takes as long as a tenth of a boot. Empty if the package is not installed."""
    for place in sys.path:
        try:
            names = os.listdir(place or ".")
        except OSError:  # a ZIP, or nothing
            continue
        for name in names:
            if name.startswith(_BEGINS) and name.endswith(_ENDS):
                return name[len(_BEGINS) : -len(_ENDS)]
    return ""
