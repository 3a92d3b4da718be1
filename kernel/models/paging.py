"""Paging of weights: which models are in a device's memory for weights, and which goes for which.

As in the Unix of the sixth edition, whose swapper took out a process only after it had been in core for some seconds, a
model that has come in stays for a turn: several times as long as it took to bring it in. So models that are wanted all
the time and do not fit together take turns, and most of the time is spent running. Idle models go first, then those whose
processes sleep, then, their turns over, those whose processes want to run; those advised against before the others, and
among equals in the order of a policy (kernel/memory/evictions.py). A pinned one never goes, one in the step on the device
not before the step is done.

This file only decides; loading.py carries it out. Models that are wanted are served in the order of scheduling class,
then of arrival; one that has been wanted for long is served before all classes, so none starves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmasos.kernel.clock import SECOND, nanoseconds
from llmasos.kernel.marks import dirty
from llmasos.kernel.objects.image import EVICTED, LOADING, RESIDENT, Image
from llmasos.kernel.sched.run_queue import CLASSES, rank
from llmasos.kernel.state import System
from llmasos.syscalls.records import SchedClass

if TYPE_CHECKING:
    from llmasos.kernel.objects.device import Device

TURN = 4  # a model's turn, in units of what paging it in took
LONGEST_TURN = 30 * SECOND  # the first page-in of a model may have been slow because something was made for it
NEVER = 1 << 62
_HINT = len(CLASSES)  # behind every class: wanted by nobody who waits


@dataclass(slots=True)
class Move:
    """Bring `image` in, with `room` bytes for its weights, after `victims` have gone."""

    image: Image
    room: int
    victims: list[Image]


def room_for(device: Device, image: Image) -> int:
    """Bytes that the image's weights could have if all weights that may go had gone."""
    tier, limit = device.tier_size, device.config.weight_bytes
    room = 1 << 62
    if tier:
        frames = sum(i.kv_bytes for i in device.images.values() if i is not image and _stays(i))
        room = tier - frames - image.kv_bytes
    if limit:
        room = min(room, limit)
    pinned = sum(i.allotted or i.size for i in device.images.values() if i is not image and i.pinned)
    return max(0, room - pinned)


def _stays(image: Image) -> bool:
    """Do its frames outlive its weights?"""
    return bool(image.mapped or image.loaded or image.pinned)


def allotment(device: Device, image: Image) -> int | None:
    """Bytes of memory for its weights: all they need, or what there is if the rest can be streamed. None: too few."""
    room = room_for(device, image)
    if image.size <= room:
        return image.size
    least = image.probed.stream_bytes if image.probed is not None else 0
    return room if 0 < least <= room else None


def turn(system: System, image: Image) -> int:
    """How long it may stay, once it has come in, before another one's processes get the memory."""
    return min(max(nanoseconds(system.config.weight_quantum), TURN * image.paging_time), LONGEST_TURN)


def decide(system: System, device: Device) -> Move | None:
    """What to do next for those that are wanted, if anything can be done now; else see to being asked again in time."""
    if device.page_timer is not None:
        device.page_timer.cancel()
        device.page_timer = None
    for image in device.images.values():
        if image.wanted_since is not None and not image.wanted:
            image.wanted_since = None
    if any(image.state == LOADING and image.probed is not None for image in device.images.values()):
        return None  # one load at a time: the driver does no more, and if it dies it is known in which
    waiting = [(_urgency(system, image), image) for image in device.images.values() if image.wanted_since is not None]
    again: list[int] = []
    for (_, since, _), image in sorted(waiting, key=lambda entry: entry[0]):
        if image.retry_at > system.now:
            again.append(image.retry_at)
            continue
        room = allotment(device, image)
        if room is None:
            continue  # what is pinned leaves too little: it waits until that is over
        victims, moments = _victims(system, device, image, room, since)
        if victims is not None:
            return Move(image, room, victims)
        again += moments
        if _rank(image) < _HINT:
            break  # nobody overtakes, or the room it waits for would never be there
    moment = min(again, default=NEVER)
    if moment < NEVER:
        device.page_timer = system.timers.at(moment, dirty, device)
    return None


def _rank(image: Image) -> int:
    """The strongest class among the processes and calls that want it, as a number; 0 is the strongest."""
    ranks = [rank(process.traits.sched_class) for process in image.active.values()]
    if image.loaded:
        ranks.append(rank(SchedClass.FAIR))
    return min(ranks, default=_HINT)


def _urgency(system: System, image: Image) -> tuple[int, int, int]:
    since = image.wanted_since if image.wanted_since is not None else system.now
    strength = _rank(image)
    if strength < _HINT and system.now - since >= nanoseconds(system.config.aging_seconds):
        strength = -1
    return strength, since, image.id


def _victims(system: System, device: Device, image: Image, room: int, since: int) -> tuple[list[Image] | None, list[int]]:
    """The models that go for the image, or None and the moments at which others may go."""
    going: list[Image] = []
    moments: list[int] = []
    if _fits(device, image, room, going):
        return going, moments
    running = {process.image for process in device.in_flight.processes} if device.in_flight else set()
    strength = _rank(image)
    others = [other for other in device.images.values() if other is not image and _can_go(other)]
    for other in sorted(others, key=lambda other: _order(device, other, system.now)):
        moment = _may_go(system, other, strength, since)
        if moment > system.now:
            moments.append(moment)
        elif other not in running:  # the end of the step asks again
            going.append(other)
            if _fits(device, image, room, going):
                return _least(device, image, room, going), moments
    return None, moments


def who_goes(device: Device, image: Image, room: int, going: list[Image], now: int) -> list[Image]:
    """The models that would go for the image, which is to have `room` bytes for its weights, beside those in `going`:
    as `decide` chooses once every turn is over."""
    gone = list(going)
    if not _fits(device, image, room, gone):
        others = [i for i in device.images.values() if i is not image and i not in going and _can_go(i)]
        for other in sorted(others, key=lambda other: _order(device, other, now)):
            gone.append(other)
            if _fits(device, image, room, gone):
                break
    return [*going, *(i for i in _least(device, image, room, gone) if i not in going)]


def _least(device: Device, image: Image, room: int, going: list[Image]) -> list[Image]:
    """The smallest subset that still makes room; models chosen first are dropped from it first."""
    for one in list(going):
        fewer = [other for other in going if other is not one]
        if _fits(device, image, room, fewer):
            going = fewer
    return going


def _can_go(image: Image) -> bool:
    """Are there weights that may be taken out, or frames that nobody needs?"""
    if image.pinned or image.state == RESIDENT:
        return not image.pinned
    return image.state == EVICTED and image.held and not _stays(image)


def _order(device: Device, image: Image, now: int) -> tuple[bool, int, int]:
    """The smallest goes first; the policy chooses between models that are needed alike."""
    needed = image.mapped + bool(image.active)
    return not image.unneeded, needed, device.evictions.worth(image, now)


def _may_go(system: System, image: Image, strength: int, since: int) -> int:
    """The moment from which an image may go for one that is wanted by a class of this strength since then."""
    if not image.mapped:
        return 0
    end = image.resident_since + turn(system, image)
    if not image.steps:  # it came for somebody who has not run yet
        return end + (nanoseconds(system.config.aging_seconds) if image.active else 0)
    if not image.active:  # who only waits for its group to let it run keeps its turn
        return end if any(process.throttled_by is not None for process in image.users.values()) else 0
    if strength == _HINT:
        return NEVER
    strongest = _rank(image)
    if strength < strongest:
        return 0
    return end if strength == strongest else max(end, since + nanoseconds(system.config.aging_seconds))


def _fits(device: Device, image: Image, room: int, going: list[Image]) -> bool:
    """Would there be memory for the image's weights (and its frames) without those that go?"""
    tier, limit = device.tier_size, device.config.weight_bytes
    weights = room + sum(i.allotted for i in device.images.values() if i is not image and i not in going)
    if limit and weights > limit:
        return False
    frames = image.kv_bytes + sum(
        i.kv_bytes for i in device.images.values() if i is not image and i.held and not (i in going and not i.mapped)
    )
    return not tier or weights + frames <= tier
