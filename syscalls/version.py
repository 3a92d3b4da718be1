"""The version of this package that is installed."""

from __future__ import annotations

import os
import sys

from llmasos.syscalls.errno import Errno

_BEGINS, _ENDS = (
    "llmasos-",
    ".dist-info",
)  # the directory's name: https://packaging.python.org/specifications/recording-installed-packages


def version() -> str:
    """It stands in the name of a directory; importlib.metadata opens that with parsers of mail, of ZIP and of CSV, whose
    import takes as long as a tenth of a boot. Empty if the package is not installed. Raises
    SyscallError EIO: a directory of packages cannot be listed."""
    for place in sys.path:
        try:
            names = os.listdir(place or ".")
        except (FileNotFoundError, NotADirectoryError, PermissionError):  # nothing, a ZIP, or another user's
            continue
        except OSError as error:
            raise Errno.EIO(f"the installed packages in {place} cannot be listed: {error.strerror}; mend that") from None
        for name in names:
            if name.startswith(_BEGINS) and name.endswith(_ENDS):
                return name[len(_BEGINS) : -len(_ENDS)]
    return ""
