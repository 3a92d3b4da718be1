"""One class of errors, with its kind, its reason and a hint."""

from __future__ import annotations

from llmasos import Errno, SyscallError, System, aio


def blocking(place: str) -> list[str]:
    told: list[str] = []
    with System.connect(place) as system, system.spawn() as agent:
        for model in ("./no-such-model", ""):
            try:
                system.spawn(model, nice=-30)
            except SyscallError as error:
                told += [error.errno.name, str(bool(error.reason and error.hint))]
        try:
            agent.ask("Who are you?", timeout=0)
        except SyscallError as error:
            told.append(str(error.errno is Errno.ETIME))
    return told


async def awaited(place: str) -> list[str]:
    told: list[str] = []
    async with aio.System.connect(place) as system, await system.spawn() as agent:
        for model in ("./no-such-model", ""):
            try:
                await system.spawn(model, nice=-30)
            except SyscallError as error:
                told += [error.errno.name, str(bool(error.reason and error.hint))]
        try:
            await agent.ask("Who are you?", timeout=0)
        except SyscallError as error:
            told.append(str(error.errno is Errno.ETIME))
    return told
