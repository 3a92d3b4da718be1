"""Every public method says what it does and shows it: the examples of all docstrings run, in both faces."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest

import llmasos
from llmasos import aio
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.system import System

pytestmark = pytest.mark.processes

OWN = ["System", "Process", "LLM", "Client", "Image", "Instance"]


def methods(module: ModuleType) -> list[tuple[str, str]]:
    """The public methods and properties that are functions of ours."""
    found = []
    for owner in OWN:
        for base in getattr(module, owner).__mro__:
            if base.__module__.startswith("llmasos"):
                members = [name for name, member in vars(base).items() if callable(getattr(member, "__func__", member))]
                properties = [name for name, member in vars(base).items() if isinstance(member, property)]
                found += [(owner, name) for name in [*members, *properties] if name[0] != "_" or name == "__call__"]
    return sorted(set(found))


def example(module: ModuleType, owner: str, name: str) -> str:
    member = inspect.getattr_static(getattr(module, owner), name)
    said = inspect.getdoc(getattr(member, "__func__", member)) or ""
    _, mark, code = said.partition("\nExample:\n")
    assert mark, f"{owner}.{name} shows no example"
    return textwrap.dedent(code)


@contextlib.contextmanager
def held_where_it_can_be() -> Iterator[None]:
    """Not every machine lets a program be put into a sandbox."""
    try:
        yield
    except SyscallError as error:
        if error.errno is not Errno.ENOTSUP:
            raise
        pytest.skip(error.reason)


@pytest.mark.parametrize(("owner", "name"), methods(llmasos))
def test_the_example_of_a_method_runs(cpu_system: System, tmp_path: Path, owner: str, name: str) -> None:
    place = cpu_system.kernel.runtime
    with llmasos.System.connect(place) as system, llmasos.Client(place) as client:
        image = client.load_image("tiny")
        names: dict[str, Any] = {
            "llmasos": llmasos,
            "place": place,
            "folder": tmp_path,
            "system": system,
            "agent": system.spawn(),
            "llm": llmasos.LLM.from_pretrained("tiny", system=system),
            "client": client,
            "image": image,
            "instance": client.create_instance(image),
        }
        with held_where_it_can_be():
            exec(compile(example(llmasos, owner, name), f"{owner}.{name}", "exec"), names)


@pytest.mark.parametrize(("owner", "name"), methods(aio))
def test_the_example_of_a_method_runs_awaited(cpu_system: System, tmp_path: Path, owner: str, name: str) -> None:
    place = cpu_system.kernel.runtime
    code = compile(example(aio, owner, name), f"{owner}.{name}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert isinstance(code, CodeType)

    async def main() -> None:
        async with aio.System.connect(place) as system, aio.Client(place) as client:
            image = await client.load_image("tiny")
            names: dict[str, Any] = {
                "llmasos": llmasos,
                "place": place,
                "folder": tmp_path,
                "system": system,
                "agent": await system.spawn(),
                "llm": await aio.LLM.from_pretrained("tiny", system=system),
                "client": client,
                "image": image,
                "instance": await client.create_instance(image),
            }
            with held_where_it_can_be():
                ran = eval(code, names)
                if inspect.isawaitable(ran):
                    await ran

    asyncio.run(main())


@pytest.mark.parametrize(("owner", "name"), methods(llmasos))
def test_every_keyword_is_in_the_signature(owner: str, name: str) -> None:
    """`help()` and editors show it; nothing hides behind `**more`, and all of it is typed."""
    member = inspect.getattr_static(getattr(llmasos, owner), name)
    if isinstance(member, property):
        return
    found = inspect.signature(getattr(member, "__func__", member))
    assert [one.name for one in found.parameters.values() if one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL)] == []
    assert [one.name for one in found.parameters.values() if one.annotation is one.empty] in (["self"], ["cls"])


@pytest.mark.parametrize(("owner", "name"), methods(aio))
def test_whatever_asks_the_kernel_takes_a_timeout(owner: str, name: str) -> None:
    member = inspect.getattr_static(getattr(aio, owner), name)
    function = getattr(member, "__func__", member)
    if isinstance(member, property) or name in ("close", "language"):  # closing is bounded by itself
        return
    assert "timeout" in inspect.signature(function).parameters
