"""Whose weights go first of the models that may go and are needed alike: replaceable policies, as those for the pages of
processes (victims.py) are.

A policy is a small pure object, one for each device: it says how much an image's weights are worth. `lru`, the default,
is what it is called. `cost` is GreedyDual-Size again (Cao and Irani 1997): what is quickly read again, for its size, goes
before what is read slowly, and what has been idle for long before both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmasos.syscalls.errno import Errno

if TYPE_CHECKING:
    from llmasos.kernel.objects.image import Image

_SHORTEST_IDLE = 1e-3  # seconds


class Evictions:
    """`lru`: the one that ran, or was used, longest ago."""

    name = "lru"

    def worth(self, image: Image, now: float) -> float:
        """The image of the least worth goes first. Worths are compared only with those of the same moment."""
        return max(image.ran, image.used)


class Cost(Evictions):
    name = "cost"

    def worth(self, image: Image, now: float) -> float:
        """Seconds to have back a byte of its weights, as its last page-in was measured, for each second that it has been
        idle. Nothing has to be read again of one whose weights are out already."""
        if not image.allotted:
            return 0.0
        idle = max(now - max(image.ran, image.used), _SHORTEST_IDLE)
        return image.paging_seconds / image.allotted / idle


EVICTIONS: dict[str, type[Evictions]] = {policy.name: policy for policy in (Evictions, Cost)}


def make_evictions(name: str) -> Evictions:
    """A fresh policy; EINVAL names the ones there are."""
    if name not in EVICTIONS:
        raise Errno.EINVAL(f"no policy {name!r} for the eviction of models; there are: {', '.join(EVICTIONS)}")
    return EVICTIONS[name]()
