"""The two faces of the SDK, `llmasos` and `llmasos.aio`: the same names, of the same kinds, described in the same words.
What waits for the kernel is awaited in the one and not in the other; nothing else differs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest
import trio

import llmasos
from llmasos import aio
from llmasos.syscalls.table import Ps
from tests.booted import SIM, Booted, booted

OWN = [
    "System",
    "Process",
    "LLM",
    "Client",
    "Image",
    "Instance",
    "Sandboxed",
]  # a class for each face; all other names are shared


def face(module: ModuleType) -> set[str]:
    return set(module.__all__) - {"aio"}


def names(owner: str) -> set[str]:
    """The public names of a class in either face, and its special ones that are called by name or by parentheses."""
    ours = {
        name
        for module in (llmasos, aio)
        for base in getattr(module, owner).__mro__
        if base.__module__.startswith("llmasos")
        for name in vars(base)
    }
    # A connection is made by `connect`; its constructor is each face's own.
    special = {"__call__", "__repr__"} | ({"__init__"} if owner != "System" else set())
    return {name for name in ours if not name.startswith("_") or name in special}


def members() -> list[tuple[str, str]]:
    return [(owner, name) for owner in OWN for name in sorted(names(owner))]


def kind(member: object) -> str:
    """What a name is, apart from how it waits."""
    if isinstance(member, classmethod | staticmethod):
        return f"{type(member).__name__} {kind(member.__func__)}"
    return "function" if isinstance(member, FunctionType) else type(member).__name__


def said(text: str | None) -> str | None:
    """A docstring with the words that tell of waiting taken out."""
    told = text and re.sub(r"(?<!\w)\(await ([\w.]+\((?:[^()]|\([^()]*\))*\))\)", r"\1", text)  # `(await f()).x`
    return told and " ".join(re.sub(r"\b(async (?=with|for)|await |aio\.)", "", told).split())


def signature(member: Any) -> str:
    return str(inspect.signature(getattr(member, "__func__", member))).replace("AsyncGenerator[", "Generator[")


def test_the_faces_have_the_same_names() -> None:
    assert face(llmasos) == face(aio)
    shared = face(llmasos) - set(OWN)
    assert [name for name in shared if getattr(llmasos, name) is not getattr(aio, name)] == []


@pytest.mark.parametrize("owner", OWN)
def test_a_class_is_described_in_the_same_words_in_both(owner: str) -> None:
    blocking, awaited = getattr(llmasos, owner), getattr(aio, owner)
    assert said(inspect.getdoc(blocking)) == said(inspect.getdoc(awaited))
    assert inspect.getdoc(blocking)


@pytest.mark.parametrize(("owner", "name"), members())
def test_a_member_is_of_one_kind_signature_and_wording_in_both(owner: str, name: str) -> None:
    blocking = inspect.getattr_static(getattr(llmasos, owner), name, "there is none")
    awaited = inspect.getattr_static(getattr(aio, owner), name, "there is none")
    assert kind(blocking) == kind(awaited)
    assert said(inspect.getdoc(blocking)) == said(inspect.getdoc(awaited))
    assert inspect.getdoc(blocking) or name in ("__init__", "__repr__"), "the reference has nothing to say of it"
    if not isinstance(blocking, property):
        assert signature(blocking) == signature(awaited)


@pytest.mark.parametrize(("owner", "name"), members())
def test_nothing_of_the_blocking_face_is_awaited_and_no_property_makes_a_call(owner: str, name: str) -> None:
    """A property cannot be awaited, so what asks the kernel is a method in both."""
    blocking = inspect.getattr_static(getattr(llmasos, owner), name)
    function = getattr(blocking, "__func__", blocking)
    assert not inspect.iscoroutinefunction(function)
    assert not inspect.isasyncgenfunction(function)
    if isinstance(blocking, property):
        assert blocking.fget is not None
        assert not re.search(r"\.(run|kernel|tokens|info)\(", inspect.getsource(blocking.fget))


@pytest.fixture(scope="module")
def kernel() -> Iterator[Booted]:
    with booted(*SIM) as found:
        yield found


def test_what_is_connected_and_spawned_has_the_same_attributes_in_both(kernel: Booted) -> None:
    async def attributes() -> list[set[str]]:
        async with aio.System.connect(kernel.place) as system, await system.spawn("sim", [7]) as process:
            return [{*vars(system)}, {*vars(process)}, {*dir(system.kernel)}]

    with llmasos.System.connect(kernel.place) as system, system.spawn("sim", [7]) as process:
        here = [{*vars(system)}, {*vars(process)}, {*dir(system.kernel)}]
    for blocking, awaited in zip(here, trio.run(attributes), strict=True):
        assert {n for n in blocking if n[0] != "_"} == {n for n in awaited if n[0] != "_"}


def test_a_trio_program_may_connect_and_close_without_a_with(kernel: Booted) -> None:
    async def main() -> None:
        system = await aio.System.connect(kernel.place)
        process = await system.spawn("sim", [7] * 3, detached=False)
        async with system:  # connected already
            assert await process.tokens() == [7] * 3
        await system.close()
        with pytest.raises(llmasos.SyscallError, match="closed its connection"):
            await process.info()

    trio.run(main)


def test_a_private_kernel_of_a_trio_program_halts_when_it_is_closed() -> None:
    async def main() -> None:
        system = await aio.System.connect(boot=True, flags=SIM)
        other = await aio.System.connect(system.kernel.runtime, reconnect=0)
        await system.close()
        with pytest.raises(llmasos.SyscallError) as gone:
            await other.kernel(Ps(), timeout=30)
        assert gone.value.errno is llmasos.Errno.EPIPE
        await other.close()

    trio.run(main)
