"""The border of the simulator: arguments that cannot be are refused with an errno and a reason that names them, as every
call of the system refuses them, and not by whatever Python runs into with them later."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from llmasos.syscalls.constraint import span
from llmasos.syscalls.errno import Errno, SyscallError

P = ParamSpec("P")
R = TypeVar("R")
Check = Callable[[str, Any], None]  # raises EINVAL, which names the argument


def wanted(name: str, what: str, found: object) -> SyscallError:
    shown = repr(found)
    return Errno.EINVAL(f"{name}: wanted {what}, found {shown if len(shown) <= 60 else shown[:57] + '...'}")


def whole(low: int, high: int | None = None) -> Check:
    def check(name: str, value: Any) -> None:
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= low and (high is None or value <= high)
        if not fits:
            raise wanted(name, f"a whole number, {span(low, high)}", value)

    return check


def number(low: float, *, optional: bool = False) -> Check:
    def check(name: str, value: Any) -> None:
        if value is None and optional:
            return
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= low
        if not fits:
            raise wanted(name, f"a number, {span(low, None)}{' (or None)' if optional else ''}", value)

    return check


def a(kind: type[Any], what: str) -> Check:
    """A value of a type, in words."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, kind):
            raise wanted(name, what, value)

    return check


def function(name: str, value: Any) -> None:
    if not callable(value):
        raise wanted(name, "a function", value)


def options(name: str, value: Any) -> None:
    """Options of a device: texts, or numbers that are written as such."""
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise wanted(name, "a dictionary of a device's options, as {'context': 512} (docs/policies.md)", value)
    for key, one in value.items():
        if not isinstance(key, str):
            raise wanted(name, "names of options", key)
        if not isinstance(one, str | int | float):
            raise wanted(f"{name}[{key!r}]", "text or a number", one)


def known(name: str, names: Iterable[str], where: str) -> SyscallError:
    """The error for a keyword that is none."""
    there = list(names)
    near = difflib.get_close_matches(name, there, 1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return Errno.EINVAL(f"{where} takes no {name!r}{meant} It takes {', '.join(there)}")


def wants(**checks: Check) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check the arguments so named before a function is called; a call that does not fit its signature is EINVAL too."""

    def decorate(inner: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(inner)
        places = [(at, name, checks[name]) for at, name in enumerate(signature.parameters) if name in checks]
        who = f"{inner.__name__}()"

        @functools.wraps(inner)
        def call(*args: P.args, **more: P.kwargs) -> R:
            for at, name, check in places:
                if at < len(args):
                    check(f"{who} {name}", args[at])
                elif name in more:
                    check(f"{who} {name}", more[name])
            try:
                return inner(*args, **more)
            except TypeError:
                _refuse(signature, who, args, more)
                raise

        return call

    return decorate


def _refuse(signature: inspect.Signature, who: str, args: tuple[Any, ...], more: dict[str, Any]) -> None:
    names = [name for name in signature.parameters if name != "self"]
    try:
        signature.bind(*args, **more)
    except TypeError as error:
        strange = next((name for name in more if name not in names), None)
        raise (
            known(strange, names, who) if strange else Errno.EINVAL(f"{who}: {error}; it takes {', '.join(names)}")
        ) from None
