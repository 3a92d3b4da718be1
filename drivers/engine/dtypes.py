"""The dtypes in which a device runs models: those it offers, why it does not offer others, and which one it takes where
nobody asks for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmasos.syscalls.errno import Errno, SyscallError


@dataclass(frozen=True, slots=True)
class Dtypes:
    """`refused` says why a dtype that other devices offer is not among the `offered`. `chosen`: a person has chosen the
    `default`, so it holds for quantised checkpoints too, whose integers are otherwise run as they are."""

    offered: Sequence[str]
    refused: Mapping[str, str]
    default: str
    chosen: bool = False

    def find(self, name: str) -> str:
        """The dtype of that name, or the default for "". Raises ENOTSUP."""
        dtype = name or self.default
        if dtype in self.refused:
            raise SyscallError(Errno.ENOTSUP, f"dtype {dtype}: {self.refused[dtype]}")
        if dtype not in self.offered:
            raise SyscallError(Errno.ENOTSUP, f"dtype {dtype!r}: this driver offers {', '.join(self.offered)}")
        return dtype


def choose(offered: Sequence[str], refused: Mapping[str, str], wanted: str, usual: str) -> Dtypes:
    """With the option dtype=`wanted`, else the `usual` default. Raises EINVAL for one that is not offered."""
    if wanted and wanted not in offered:
        why = refused.get(wanted, f"{', '.join(offered)} are there")
        raise SyscallError(Errno.EINVAL, f"dtype={wanted!r}: {why}")
    return Dtypes(offered, refused, wanted or usual, bool(wanted))
