"""Text of another author made fit to be shown: it cannot command a terminal or forge a line of a log.

Names and reasons pass through here once, where they become an error (errno.py), a line of the kernel log, or a cell of a
table, so that no code that prints them has to think of it.
"""

from __future__ import annotations

import re
import unicodedata

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # C0 but newline and tab, DEL, C1
# Categories of invisible characters, and of those that change how the following ones look.
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(text: str, *, one_line: bool = False) -> str:
    """Text with its control characters (C0 but newline and tab, DEL, C1) shown as `\\x1b`, so that what a model or
    another user wrote cannot command the terminal. `one_line`, for names and reasons, also shows newlines, tabs and all
    invisible characters (marks of direction, halves of surrogate pairs) so."""
    if text.isprintable():
        return text
    if not one_line:
        return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return "".join(_escaped(c) if unicodedata.category(c) in _HIDDEN else c for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
