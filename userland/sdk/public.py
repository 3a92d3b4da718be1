"""The border of the SDK: what comes in is of the types that are declared, and what goes out as an error is SyscallError.

`public` stands on every public function. Type checkers see through it; `help()` and editors show the function's own
signature. Its checks are of the kind of a value, not of what is in it: arguments.py looks into lists, the kernel at
ranges. typeguard and beartype would check as well, but speak of annotations, to who wrote them; here the caller is to
be told, in the words of the system's other errors.
"""

from __future__ import annotations

import difflib
import enum
import errno as os_errno
import functools
import inspect
import operator
import os
import sys
import types
import typing
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterable, Mapping
from typing import Any, Literal, TypeVar, cast

import msgspec

from llmasos.syscalls.errno import Errno, SyscallError

F = TypeVar("F", bound=Callable[..., Any])

_OF_THE_SYSTEM = {
    os_errno.ENOENT: Errno.ENOENT,
    os_errno.ENOTDIR: Errno.ENOENT,
    os_errno.EACCES: Errno.EPERM,
    os_errno.EPERM: Errno.EPERM,
    os_errno.ENOMEM: Errno.ENOMEM,
    os_errno.EAGAIN: Errno.EAGAIN,
    os_errno.EBUSY: Errno.EBUSY,
    os_errno.ECONNREFUSED: Errno.ECONNREFUSED,
    os_errno.EPIPE: Errno.EPIPE,
    os_errno.EISDIR: Errno.EINVAL,
    os_errno.EINVAL: Errno.EINVAL,
    os_errno.ENAMETOOLONG: Errno.EINVAL,
    os_errno.ETIMEDOUT: Errno.ETIME,
    os_errno.EDQUOT: Errno.EDQUOT,
}
_OF_ARGUMENTS = (ValueError, TypeError, OverflowError, RecursionError, LookupError)
_MADE_BY = {
    "Connection()": "System.connect() makes one",
    "AsyncConnection()": "System.connect() makes one",
    "Talk()": "System.spawn(), or System.process(PID), makes one",
    "LLM()": "LLM.from_pretrained(MODEL) makes one",
}
_SAMPLED = "sampling is chosen at `spawn`, or by `generate(sampler=Sampler(...))`, which keeps it"
_ELSEWHERE = dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"), _SAMPLED)
_SECRETS = ("passphrase",)  # arguments that no error shows
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "True or False", bytes: "bytes"}


def escaped(error: Exception) -> SyscallError:
    """Any error as the system's own. One that is of a group of errors stands for it."""
    if isinstance(error, SyscallError):
        return error
    if isinstance(error, ExceptionGroup):
        leaves = [leaf for leaf in error.exceptions if isinstance(leaf, SyscallError)]
        return leaves[0] if leaves else escaped(error.exceptions[0])
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError):
        kind = _OF_THE_SYSTEM.get(error.errno or 0, Errno.EIO)
        where = f": {error.filename}" if error.filename is not None else ""
        return SyscallError(kind, f"{error.strerror or what}{where}")
    if isinstance(error, MemoryError):
        return SyscallError(Errno.ENOMEM, "this program has no memory left")
    if isinstance(error, _OF_ARGUMENTS):
        return SyscallError(Errno.EINVAL, f"an argument cannot be used ({what})")
    return SyscallError(Errno.EIO, what)


def _advise(error: SyscallError) -> None:
    """Have a traceback show the hint, once."""
    if not getattr(error, "__notes__", None):
        error.add_note(f"hint: {error.hint}")


def public(function: F) -> F:
    """A public function: its arguments are checked against its annotations (EINVAL), and what it raises is
    SyscallError."""
    border = _Border(function)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = border.check(args, kwargs)
            try:
                return await function(*args, **kwargs)
            except SyscallError as error:
                _advise(error)
                raise
            except Exception as error:  # a fault of ours, told as such
                raise escaped(error) from error

        return cast(F, awaited)

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = border.check(args, kwargs)
        try:
            return function(*args, **kwargs)
        except SyscallError as error:
            _advise(error)
            raise
        except Exception as error:  # a fault of ours, told as such
            raise escaped(error) from error

    return cast(F, called)


class _Border:
    """The parameters of one function. Annotations are read at its first call: they may name what is defined below it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._name = f"{function.__qualname__.removesuffix('.__init__').rpartition('.')[2]}()"

    @functools.cached_property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(self._function).parameters)

    @functools.cached_property
    def _places(self) -> list[str]:
        return [
            name for name, one in self._parameters.items() if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        ]

    @functools.cached_property
    def _required(self) -> frozenset[str]:
        return frozenset(name for name, one in self._parameters.items() if one.default is one.empty)

    @functools.cached_property
    def _checks(self) -> dict[str, _Check]:
        names = vars(sys.modules[self._function.__module__])
        found = {}
        for name, one in self._parameters.items():
            if name not in ("self", "cls"):
                alone = types.SimpleNamespace(__annotations__={name: one.annotation})
                try:
                    hint = typing.get_type_hints(alone, names, include_extras=True)[name]
                except NameError:  # imported for type checkers only
                    hint = Any
                found[name] = check_of(hint)
        return found

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, numbers of other libraries and texts of other classes made plain. Raises EINVAL for those that
        the function does not take."""
        if len(args) > len(self._places):
            most, own = len(self._places), self._places[:1] == ["self"] or self._places[:1] == ["cls"]
            raise self._refused(f"takes {most - own} arguments by place, found {len(args) - own}; name the others")
        checks = self._checks
        given = dict(zip(self._places, args, strict=False))
        for name in kwargs:
            if name not in self._parameters or self._parameters[name].kind is inspect.Parameter.POSITIONAL_ONLY:
                raise self._refused(f"takes no {name!r}; {_ELSEWHERE.get(name) or _nearest(name, checks)}")
            if name in given:
                raise self._refused(f"was given {name!r} twice, by place and by name")
        given.update(kwargs)
        if missing := [name for name in self._parameters if name in self._required and name not in given]:
            if self._name in _MADE_BY and self._function.__name__ == "__init__":
                raise SyscallError(Errno.EINVAL, f"{_MADE_BY[self._name]}, not {self._name}")
            raise self._refused(f"needs {' and '.join(map(repr, missing))}")
        for name, value in given.items():
            if name in checks and not checks[name].fits(value):
                found = type(value).__name__ if name in _SECRETS else _shown(value)
                hint = "; `turn` says messages" if name == "text" and _is_several(value) else ""
                raise SyscallError(Errno.EINVAL, f"{self._name} {name}: wanted {checks[name].words}, found {found}{hint}")
        placed = zip(self._places, args, strict=False)
        return (
            tuple(checks[name].plain(value) if name in checks else value for name, value in placed),
            {name: checks[name].plain(value) for name, value in kwargs.items()},
        )

    def _refused(self, what: str) -> SyscallError:
        return SyscallError(Errno.EINVAL, f"{self._name} {what}")


def _nearest(name: str, known: Collection[str]) -> str:
    near = [word for word in known if word.startswith(name)] or difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"it takes {', '.join(sorted(known))}"


def _shown(value: object) -> str:
    if value is None:
        return "None"
    kind = "text" if isinstance(value, str) else type(value).__name__
    text = repr(value)
    return f"{kind} {text if len(text) <= 60 else text[:57] + '...'}"


class _Check:
    """A test of a value, and words for what passes it."""

    def __init__(
        self, fits: Callable[[Any], bool], words: str, plain: Callable[[Any], Any] = lambda value: value
    ) -> None:
        self.fits, self.words, self.plain = fits, words, plain


def check_of(hint: Any) -> _Check:
    """The check of an annotation. Raises TypeError for one of a form that no public function has so far."""
    origin = typing.get_origin(hint)
    if hint in (Any, object):
        return _Check(lambda _: True, "anything")
    if hint is None or hint is types.NoneType:
        return _Check(lambda value: value is None, "None")
    if origin in (typing.Union, types.UnionType):
        kinds = typing.get_args(hint)
        if any(isinstance(one, type) and issubclass(one, enum.Enum) for one in kinds):
            kinds = tuple(one for one in kinds if typing.get_origin(one) is not Literal)  # the enum's own words
        either = [check_of(one) for one in kinds]
        words = list(dict.fromkeys(one.words for one in either))
        return _Check(
            lambda value: any(one.fits(value) for one in either),
            " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0],
            lambda value: next(one.plain(value) for one in either if one.fits(value)),
        )
    if origin is Literal:
        values = typing.get_args(hint)
        return _Check(
            lambda value: any(value == one and type(value) is type(one) for one in values), " or ".join(map(repr, values))
        )
    if origin is typing.Annotated:
        return check_of(typing.get_args(hint)[0])
    kind = origin or hint
    if not isinstance(kind, type):
        raise TypeError(f"no check is known for {hint!r}")
    if issubclass(kind, enum.Enum):
        spelled = [repr(one.value if isinstance(one.value, str) else one.name) for one in kind]
        return _Check(lambda value: _is_member(kind, value), f"{kind.__name__} ({', '.join(spelled)})")
    if kind is bool:
        return _Check(_is_bool, _WORDS[bool], bool)
    if kind is int:
        return _Check(_is_int, _WORDS[int], operator.index)
    if kind is float:
        return _Check(_is_number, _WORDS[float], lambda value: value if type(value) in (int, float) else float(value))
    if kind is str:
        return _Check(lambda value: isinstance(value, str), _WORDS[str], str.__str__)
    if kind in _WORDS:
        return _Check(lambda value: isinstance(value, kind), _WORDS[kind])
    if issubclass(kind, os.PathLike):
        return _Check(lambda value: isinstance(value, os.PathLike), "a path")
    if issubclass(kind, Mapping):
        return _Check(lambda value: isinstance(value, Mapping), "a dictionary")
    if kind in (Generator, AsyncGenerator):
        return _Check(lambda value: isinstance(value, kind), "a generator")
    if issubclass(kind, Iterable):
        several = "several of these" if origin is None else f"a sequence of {_plural(typing.get_args(hint)[:1])}"
        return _Check(lambda value: _is_several(value), several)
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    return _Check(lambda value: isinstance(value, kind), f"{article} {kind.__name__}")


def _plural(kinds: tuple[Any, ...]) -> str:
    names = {str: "texts", typing.SupportsIndex: "whole numbers", int: "whole numbers"}
    kind = kinds[0] if kinds else object
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return f"{kind.__name__}s"
    origin = typing.get_origin(kind)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "dictionaries"
    if origin is tuple:
        return "pairs"
    return names.get(kind, "values")


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ == "bool_" or type(value).__name__ == "bool"


def _is_int(value: Any) -> bool:
    if _is_bool(value):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _is_number(value: Any) -> bool:
    if isinstance(value, str | bytes) or _is_bool(value):
        return False
    return _is_int(value) or isinstance(value, float) or hasattr(value, "__float__")


def _is_several(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, str | bytes | bytearray | Mapping)


def _is_member(kind: type[enum.Enum], value: Any) -> bool:
    if isinstance(value, str) and value in kind.__members__:
        return True
    try:
        kind(value)
    except ValueError:
        return False
    return not isinstance(value, bool)
