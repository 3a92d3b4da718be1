"""Where drivers keep files unless their options say otherwise: installed models, digests of models, the swap file.

One directory for all drivers of a user, as systems keep one cache for all programs: $LLMASOS_CACHE, else below
$XDG_CACHE_HOME or ~/.cache.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

DIRECTORY = "LLMASOS_CACHE"  # names the directory of installed models; set to "": nothing is kept


def installed_directory() -> Path | None:
    """The directory of installed models (cpu/native/installed.py); None: they are not kept."""
    chosen = os.environ.get(DIRECTORY)
    if chosen is not None:
        return Path(chosen).expanduser().absolute() if chosen else None
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "llmasos", "installed")


def digests_directory() -> Path | None:
    """The directory where digests of models' files are remembered (engine/digest.py); None: they are not."""
    installed = installed_directory()
    return installed / "digests" if installed else None


def swap_directory() -> Path:
    """The directory of the swap file: beside the installed models, which are on a disk; else that of temporary files."""
    installed = installed_directory()
    return installed.parent / "swap" if installed else Path(tempfile.gettempdir())
