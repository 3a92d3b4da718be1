"""Paging of weights: which models are in a device's memory for weights, and which makes room for which.

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

from llmasos.kernel.clock import SECOND, nanoseconds
from llmasos.kernel.marks import dirty
from llmasos.kernel.objects.device import Device
from llmasos.kernel.objects.image import EVICTED, LOADING, RESIDENT, Image
from llmasos.kernel.sched.run_queue import CLASSES, rank
from llmasos.kernel.state import System
from llmasos.syscalls.records import SchedClass

TURN = 4  # a model's turn, in units of what paging it in took
LONGEST_TURN = 30 * SECOND  # the first page-in of a model may have been slow because something was made for it
NEVER = 1 << 62
_UNLIMITED = 1 << 62
_HINT = len(CLASSES)  # behind every class: wanted, but no process or call waits


def room_for(device: Device, image: Image) -> int:
    """Bytes that the image's weights could have once all weights that may go have gone."""
    others = [other for other in device.images.values() if other is not image]
    pinned = sum(other.allotted or other.size for other in others if other.pinned)
    return max(0, _left(device, image, pinned, sum(other.kv_bytes for other in others if _stays(other))))


def _left(device: Device, image: Image, weights: int, frames: int) -> int:
    """Bytes left for the image's weights beside `weights` and `frames` bytes of others; below 0: too few."""
    left = device.config.weight_bytes or _UNLIMITED
    if tier := device.tier_size:
        left = min(left, tier - frames - image.kv_bytes)
    return left - weights


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
    """How long a loaded image may stay before another one's processes get the memory."""
    return min(max(nanoseconds(system.config.weight_quantum), TURN * image.paging_time), LONGEST_TURN)


def decide(system: System, device: Device) -> tuple[Image, int, list[Image]] | None:
    """The next of the wanted images that can be brought in now, the bytes for its weights, and the images that go first.
    If there is none, see to being asked again in time."""
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
            continue  # pinned models leave too little: it waits until they are pinned no longer
        victims, moments = _victims(system, device, image, room, since)
        if victims is not None:
            return image, room, victims
        again += moments
        if _rank(image) < _HINT:
            break  # the next may not overtake, or the room that this one waits for would never be there
    moment = min(again, default=NEVER)
    if moment < NEVER:
        device.page_timer = system.timers.at(moment, dirty, device)
    return None


def _rank(image: Image) -> int:
    """The strongest class among the processes and calls that want it, as a number; 0 is the strongest."""
    ranks = [rank(process.sched_class) for process in image.active.values()]
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
    running = {process.image for process in device.in_flight.processes} if device.in_flight else set()
    strength = _rank(image)
    ready: list[Image] = []
    moments: list[int] = []
    for other in _candidates(device, image, system.now):
        moment = _may_go(system, other, strength, since)
        if moment > system.now:
            moments.append(moment)
        elif other not in running:  # the end of the step asks again
            ready.append(other)
    going = _enough(device, image, room, [], ready)
    return (going if _fits(device, image, room, going) else None), moments


def _candidates(device: Device, image: Image, now: int) -> list[Image]:
    """The models that could go for the image, first those that go first."""
    others = [other for other in device.images.values() if other is not image and _can_go(other)]
    return sorted(others, key=lambda other: _order(device, other, now))


def who_goes(device: Device, image: Image, room: int, going: list[Image], now: int) -> list[Image]:
    """The models that would go for the image, which is to have `room` bytes for its weights, beside those in `going`:
    as `decide` chooses once every turn is over."""
    others = [other for other in _candidates(device, image, now) if other not in going]
    chosen = _enough(device, image, room, going, others)
    return [*going, *(other for other in chosen if other not in going)]


def _enough(device: Device, image: Image, room: int, first: list[Image], then: list[Image]) -> list[Image]:
    """Take `first`, then as many of `then`, in order, as make room (all, if not even they do). The smallest subset that
    still makes room goes; models chosen first are dropped from it first."""
    going = list(first)
    for other in then:
        if _fits(device, image, room, going):
            break
        going.append(other)
    for one in list(going):
        fewer = [other for other in going if other is not one]
        if _fits(device, image, room, fewer):
            going = fewer
    return going


def _can_go(image: Image) -> bool:
    """Does it have weights that may be dropped, or frames that no process needs?"""
    if image.pinned or image.state == RESIDENT:
        return not image.pinned
    return image.state == EVICTED and image.held and not _stays(image)


def _order(device: Device, image: Image, now: int) -> tuple[bool, int, int]:
    """The smallest goes first; the policy chooses between models that are needed alike."""
    needed = image.mapped + bool(image.active)
    return not image.unneeded, needed, device.evictions.worth(image, now)


def _may_go(system: System, image: Image, strength: int, since: int) -> int:
    """The moment from which an image may go for one that a class of this strength has wanted since `since`."""
    if not image.mapped:
        return 0
    end = image.resident_since + turn(system, image)
    if not image.steps:  # the process that it was loaded for has not run yet
        return end + (nanoseconds(system.config.aging_seconds) if image.active else 0)
    if not image.active:  # processes that only wait for their group's leave keep their turn
        return end if any(process.throttled_by is not None for process in image.users.values()) else 0
    if strength == _HINT:
        return NEVER
    strongest = _rank(image)
    if strength < strongest:
        return 0
    return end if strength == strongest else max(end, since + nanoseconds(system.config.aging_seconds))


def _fits(device: Device, image: Image, room: int, going: list[Image]) -> bool:
    """Would there be memory for the image's weights (and its frames) without those that go?"""
    others = [other for other in device.images.values() if other is not image]
    weights = sum(other.allotted for other in others if other not in going)
    frames = sum(other.kv_bytes for other in others if other.held and (other.mapped or other not in going))
    return room <= _left(device, image, weights, frames)
