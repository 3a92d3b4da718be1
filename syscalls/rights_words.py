"""The rights that can be handed on, as words: `read control`."""

from __future__ import annotations

from collections.abc import Iterable

from llmasos.syscalls.errno import Errno
from llmasos.syscalls.table import HANDED, Needs

WORDS = {(need.name or "").lower(): int(need) for need in Needs if need and not need & ~HANDED}


def rights_of(words: Iterable[str]) -> int:
    """The bits of the call `grant` that words mean, each of which may be several with commas between them. EINVAL."""
    rights = 0
    for word in (one for several in words for one in several.replace(",", " ").split()):
        if word not in WORDS:
            raise Errno.EINVAL(f"no right {word!r} can be handed on; there are: {', '.join(WORDS)}")
        rights |= WORDS[word]
    if not rights:
        raise Errno.EINVAL(f"say which rights; there are: {', '.join(WORDS)}")
    return rights


def words_of(rights: int) -> str:
    """Those bits as words."""
    return ",".join(word for word, bit in WORDS.items() if rights & bit)
