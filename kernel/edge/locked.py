"""Memory for keys: a buffer that is never written to swap nor into a core dump, and is zeroed when it is left.

What is made of a key (OpenSSL's contexts, Python's copies on the way) lies in ordinary memory; docs/seal.md says so.
"""

from __future__ import annotations

import ctypes
import mmap

KEY_BYTES = 32
_PAGES = 4


class Locked:
    """A store of keys of KEY_BYTES bytes each. `sure`: the operating system has locked it in memory."""

    def __init__(self) -> None:
        self._maps: list[mmap.mmap] = []
        self._used = 0
        self._left: list[memoryview] = []  # places of keys that were dropped
        self.sure = True

    def put(self, key: bytes) -> memoryview:
        """Keep a key; the view is good until it is dropped, or `wipe`."""
        if self._left:
            view = self._left.pop()
            view[:] = key
            return view
        if not self._maps or self._used + KEY_BYTES > len(self._maps[-1]):
            self._add()
        at, self._used = self._used, self._used + KEY_BYTES
        view = memoryview(self._maps[-1])[at : at + KEY_BYTES]
        view[:] = key
        return view

    def drop(self, view: memoryview) -> None:
        """Forget one key."""
        view[:] = bytes(KEY_BYTES)
        self._left.append(view)

    def wipe(self) -> None:
        """Forget all keys: views of them show zeros from here on."""
        for pages in self._maps:
            pages[:] = bytes(len(pages))

    def _add(self) -> None:
        pages = mmap.mmap(-1, _PAGES * mmap.PAGESIZE)
        if hasattr(mmap, "MADV_DONTDUMP"):
            pages.madvise(mmap.MADV_DONTDUMP)
        start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        libc = ctypes.CDLL(None)
        self.sure &= libc.mlock(ctypes.c_void_p(start), ctypes.c_size_t(len(pages))) == 0
        self._maps.append(pages)
        self._used = 0
