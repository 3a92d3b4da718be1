"""Which model's weights go first, among models that may go and are needed alike: replaceable policies, like those for
the pages of processes (victims.py).

A policy is a small pure object, one for each device. It says how much an image's weights are worth. `lru`, the default,
evicts the least recently used. `cost` is GreedyDual-Size again (Cao and Irani 1997): weights that can be read again
quickly, for their size, go before weights that are slow to read, and weights that have been idle for long go before both.
"""

from __future__ import annotations

from llmasos.kernel.clock import MILLISECOND
from llmasos.kernel.objects.image import Image
from llmasos.syscalls.constraint import near
from llmasos.syscalls.errno import Errno


class Evictions:
    """`lru`: evict the image that ran, or was used, longest ago."""

    name = "lru"
    fault = ""  # of a module of the user's: why its guard (kernel/edge/guards.py) lets it go on no longer

    def worth(self, image: Image, now: int) -> int:
        """The image with the smallest worth goes first. Compare only worths of the same moment."""
        return max(image.ran, image.used)


class Cost(Evictions):
    """Evict the image that is quickest to read again, for its size and the time that it has been idle."""

    name = "cost"

    def worth(self, image: Image, now: int) -> int:
        """The time that the last page-in took for each byte, divided by the time that the image has been idle, in units
        of 2**-64. 0 if its weights are out already: evicting it costs nothing."""
        if not image.allotted:
            return 0
        idle = max(now - max(image.ran, image.used), MILLISECOND)
        return (image.paging_time << 64) // (image.allotted * idle)


EVICTIONS: dict[str, type[Evictions]] = {policy.name: policy for policy in (Evictions, Cost)}


def make_evictions(name: str) -> Evictions:
    """A fresh policy; EINVAL names the ones there are."""
    if name not in EVICTIONS:
        raise Errno.EINVAL(
            f"no policy {name!r} for the eviction of models{near(name, EVICTIONS)}; there are: {', '.join(EVICTIONS)}"
        )
    return EVICTIONS[name]()
