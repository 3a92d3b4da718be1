"""The interpreter of chat templates: jinja2's immutable sandbox as transformers sets it up, with limits of work and
memory.

A template is a program that came with a model. jinja2's sandbox keeps it from the system, but not from looping 10^15
times, or from doubling a string forty times. So everything that makes a value is metered: operators, filters, methods,
literals and output each pay for the size of the result, blocks, calls and tests look at the clock, and operations that
could make much of little (`center`, `*`, `%`) are checked beforehand (meter.py).
"""

from __future__ import annotations

import functools
import json
import os
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.runtime import markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.meter import NUMBER, WIDEST, Exceeded, Meter

_ALIKE = 4  # inputs that differ by this factor are alike
SOURCE = 256_000  # characters of a template; the longest published has some 30,000


class _Generator(CodeGenerator):
    """Compiles a template so that its work is metered."""

    def blockvisit(self, nodes: Any, frame: Any) -> None:
        self.writeline("environment.meter.tick()")
        super().blockvisit(nodes, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        escaped = "context.eval_ctx.volatile" if frame.eval_ctx.volatile else str(bool(frame.eval_ctx.autoescape))
        self.write(f"environment.joined({escaped}, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Any) -> None:
        self.write("environment.meter.made(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Any) -> None:
        self.write("environment.meter.made(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Any) -> None:
        if node.ctx != "load":
            super().visit_Tuple(node, frame)
            return
        self.write("environment.meter.made(")
        super().visit_Tuple(node, frame)
        self.write(")")

    def _output_const_repr(self, group: Any) -> str:
        return f"environment.meter.made({super()._output_const_repr(group)})"

    def _output_child_pre(self, node: Any, frame: Any, finalize: Any) -> None:
        self.write("environment.meter.made(")
        super()._output_child_pre(node, frame, finalize)

    def _output_child_post(self, node: Any, frame: Any, finalize: Any) -> None:
        super()._output_child_post(node, frame, finalize)
        self.write(")")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the model's text, for training; it renders as its content."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_rendered"), [], [], body).set_lineno(line)

    def _rendered(self, caller: Callable[[], str]) -> str:
        return caller()


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        if NUMBER.search(format_spec):
            raise Exceeded(f"it formats with {format_spec[:40]!r}")
        return super().format_field(value, format_spec)


class _Namespace(jinja2.utils.Namespace):
    """A namespace with a template's own attributes."""

    def __init__(*args: Any, **given: Any) -> None:
        self, *others = args
        attributes = dict(*others, **given)
        for name in attributes:
            _own_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _own_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _own_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace of a template has no attribute {name!r}: its names do not begin with _")


class _Dict:
    """`dict` for a template: makes dictionaries, without access to the class."""

    def __call__(self, *args: Any, **given: Any) -> dict[Any, Any]:
        return dict(*args, **given)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        self.meter = Meter()
        self.now: datetime | None = None
        self.filters["tojson"] = _tojson
        for name, function in self.filters.items():
            self.filters[name] = self._metered(name, function)
        for name, test in self.tests.items():  # `select` asks one of each item
            self.tests[name] = self._ticking(test)
        self.globals |= {
            "raise_exception": _raise, "strftime_now": self._strftime_now, "dict": _Dict(), "namespace": _Namespace,
            "lipsum": _refuse_lipsum,
        }  # fmt: skip

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        passed = 0 if getattr(function, "jinja_pass_arg", None) is None else 1

        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            values = args[passed:]
            if name in ("join", "sum") and values and not isinstance(values[0], (str, list, tuple)):
                values = (self.meter.made(list(values[0])), *values[1:])
                args = (*args[:passed], *values)
            self.meter.check(name, values, given)
            return self.meter.made(function(*args, **given))

        return call

    def _ticking(self, test: Any) -> Callable[..., Any]:
        @functools.wraps(test)
        def call(*args: Any, **given: Any) -> Any:
            self.meter.tick()
            return test(*args, **given)

        return call

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        size = self.meter.size
        if operator == "+":
            self.meter.room(size(left) + size(right))
        elif operator == "*":
            if isinstance(left, int) and isinstance(right, int):
                self.meter.bits(left.bit_length() + right.bit_length())
            else:
                for one, times in ((left, right), (right, left)):
                    if isinstance(times, int) and not isinstance(one, (int, float)):
                        self.meter.room(size(one) * max(0, times))
        elif operator == "**":
            if isinstance(left, int) and isinstance(right, int):
                self.meter.bits(left.bit_length() * max(0, right))
        else:
            self.meter.check("%", (left, right), {})
        return self.meter.made(super().call_binop(context, operator, left, right))

    def joined(self, escaped: bool, parts: tuple[Any, ...]) -> Any:
        """The result of `~`."""
        self.meter.room(sum(map(self.meter.size, parts)))
        return self.meter.made(markup_join(parts) if escaped else str_join(parts))

    def call(__self, __context: Any, __obj: Any, *args: Any, **given: Any) -> Any:
        meter = __self.meter
        of = getattr(__obj, "__self__", None)
        if isinstance(__obj, (types.BuiltinMethodType, types.MethodType)) and isinstance(of, (str, bytes, int)):
            name = __obj.__name__
            if name == "join" and args and not isinstance(args[0], (str, list, tuple)):
                args = (meter.made(list(args[0])), *args[1:])
            meter.check(f".{name}" if name in ("join", "to_bytes") else name, (of, *args), given)
        else:
            meter.room(sum(map(meter.size, args)) + sum(map(meter.size, given.values())))
        meter.tick()
        return meter.made(super().call(__context, __obj, *args, **given))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if not isinstance(value, types.BuiltinMethodType) or value.__name__ not in ("format", "format_map"):
            return super().wrap_str_format(value)
        text = value.__self__
        if not isinstance(text, str):
            return None
        formatter = _Formatter(self)

        def formatted(*args: Any, **given: Any) -> str:
            if value.__name__ == "format_map":
                [given], args = args, ()
            self.meter.room(len(text) + text.count("{") * sum(map(self.meter.size, (*args, *given.values()))))
            return formatter.vformat(text, args, given)

        return formatted

    def _strftime_now(self, format: str) -> str:
        if len(format) > WIDEST or NUMBER.search(format):
            raise Exceeded(f"it writes a date with {format[:40]!r}")
        return (self.now or datetime.now()).strftime(format)


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers' templates have it: without HTML escapes, with all characters as they are."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _refuse_lipsum(*args: Any, **given: Any) -> NoReturn:
    raise Exceeded("it calls lipsum, which templates here cannot")


_templates: weakref.WeakSet[Template] = weakref.WeakSet()


def _forked() -> None:
    for template in _templates:
        template.unlock()


os.register_at_fork(after_in_child=_forked)


class Template:
    """A compiled template. Raises SyscallError EINVAL that names the error in it."""

    def __init__(self, source: str) -> None:
        if len(source) > SOURCE:
            raise SyscallError(Errno.EINVAL, f"the chat template has {len(source)} characters; at most {SOURCE} are read")
        self._environment = _Environment()
        self._lock = threading.Lock()  # one rendering at a time has the meter
        self._refused: tuple[int, str] | None = None  # size of the least input for which it did too much, and the error
        with _told():
            self._template = self._environment.from_string(source)
        _templates.add(self)

    def unlock(self) -> None:
        """In a fork: the thread that held the lock, if one did, is the parent's."""
        self._lock = threading.Lock()

    def render(self, variables: Mapping[str, Any], now: datetime | None = None) -> str:
        """The text; `now` is the time of its dates. Raises EINVAL with the words of a template that refuses, or that does
        too much.

        A template that did too much is not tried again with as much input or more: a program renders many small
        conversations to learn what a template does, and each would run into the limits.
        """
        with self._lock, _told():
            self._environment.meter = meter = Meter()
            given = meter.size(dict(variables))
            if self._refused is not None and given * _ALIKE >= self._refused[0]:
                raise Exceeded(self._refused[1])
            self._environment.now = now
            try:
                return self._rendered(variables, meter)
            except Exceeded as error:
                self._refused = given, str(error)
                raise

    def _rendered(self, variables: Mapping[str, Any], meter: Meter) -> str:
        parts = []
        for part in self._template.generate(**variables):
            meter.tick()
            parts.append(part)
        text = "".join(parts)
        meter.room(len(text))
        return text


class _told:
    """A template's exception as an errno with its words."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, TemplateSyntaxError):
            raise SyscallError(
                Errno.EINVAL, f"the model's chat template is broken in line {error.lineno}: {error.message}"
            ) from None
        if isinstance(error, Exceeded):
            raise SyscallError(Errno.EINVAL, f"the model's chat template is refused: {error}") from None
        if isinstance(error, TemplateError):
            raise SyscallError(Errno.EINVAL, f"the model's chat template says: {error}") from None
        if isinstance(error, Exception) and not isinstance(error, SyscallError):
            why = str(error).strip() or "no reason given"
            raise SyscallError(
                Errno.EINVAL, f"the model's chat template cannot render this: {type(error).__name__}: {why}"
            ) from None


@functools.lru_cache(maxsize=32)
def compiled(source: str) -> Template:
    return Template(source)


@functools.lru_cache(maxsize=32)
def literals(source: str) -> str:
    """The texts that a template writes by itself: its text and string constants, separated by NULs; empty if it cannot be
    read."""
    try:
        return "\0".join(_strings(_Environment().parse(source)))
    except Exception:  # a template is anybody's text
        return ""


def _strings(tree: nodes.Template) -> Iterator[str]:
    for data in tree.find_all(nodes.TemplateData):
        yield data.data
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, str):
            yield constant.value
