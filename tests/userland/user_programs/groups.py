"""A control group with a limit, and what it counts."""

from __future__ import annotations

from llmasos import GroupInfo, System, aio


def blocking(place: str) -> list[int]:
    with System.connect(place) as system:
        made: GroupInfo = system.group("guests", cpu_weight=50, kv_max=64 << 20, kv_action="fail")
        with system.spawn(group="guests") as guest:
            guest.join("guests")
        system.remove_group("guests")
        return [made.settings.cpu_weight, made.settings.kv_max]


async def awaited(place: str) -> list[int]:
    async with aio.System.connect(place) as system:
        made: GroupInfo = await system.group("guests", cpu_weight=50, kv_max=64 << 20, kv_action="fail")
        async with await system.spawn(group="guests") as guest:
            await guest.join("guests")
        await system.remove_group("guests")
        return [made.settings.cpu_weight, made.settings.kv_max]
