"""Every place in the tree that raises an error of ours, with what it says: read from the sources."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmasos.syscalls.errno import Errno, SyscallError

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("drivers", "kernel", "modelfiles", "simulator", "syscalls", "userland")


@dataclass(frozen=True)
class Raise:
    """One place where an error is made: its reason with `…` for what is filled in."""

    place: str
    errno: Errno
    reason: str

    @property
    def hint(self) -> str:
        return SyscallError(self.errno, self.reason).hint


@functools.cache
def raises() -> tuple[Raise, ...]:
    """All of them; looked for when first asked, which takes seconds."""
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    return tuple(one for file in files for one in _in(file))


def _in(file: Path) -> Iterator[Raise]:
    place = str(file.relative_to(ROOT))
    nodes: list[tuple[ast.AST, tuple[ast.AST, ...]]] = [(ast.parse(file.read_text()), ())]
    while nodes:
        node, functions = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions = *functions, node
        elif functions and isinstance(node, ast.Call) and (made := _made(node)) is not None:
            for function in functions:
                yield Raise(place, made[0], _text(made[1], function))
        nodes += [(child, functions) for child in ast.iter_child_nodes(node)]


def _made(node: ast.Call) -> tuple[Errno, ast.expr] | None:
    if isinstance(node.func, ast.Attribute) and node.args and (errno := _errno(node.func)) is not None:
        return errno, node.args[0]  # Errno.EBUSY(reason)
    for argument, reason in zip(node.args, node.args[1:], strict=False):
        if isinstance(argument, ast.Attribute) and (errno := _errno(argument)) is not None:
            return errno, reason  # SyscallError(Errno.EBUSY, reason), desk.fail(..., Errno.EBUSY, reason)
    return None


def _errno(node: ast.Attribute) -> Errno | None:
    named = isinstance(node.value, ast.Name) and node.value.id in ("Errno", "E") and node.attr in Errno.__members__
    return Errno[node.attr] if named else None


def _text(node: ast.expr, function: ast.AST) -> str:
    """The text of an expression; of a name, what it is set to in the function."""
    match node:
        case ast.Constant():
            return str(node.value)
        case ast.JoinedStr():
            return "".join(_text(part, function) for part in node.values)
        case ast.FormattedValue():
            return "…"
        case ast.BinOp():
            return _text(node.left, function) + _text(node.right, function)
        case ast.IfExp():
            return _text(node.body, function) + _text(node.orelse, function)
        case ast.Name():
            set_to = [one.value for one in ast.walk(function) if isinstance(one, ast.Assign) and _sets(one, node.id)]
            return " ".join(_text(value, ast.Module([], [])) for value in set_to) or "…"
        case _:
            return "…"


def _sets(one: ast.Assign, name: str) -> bool:
    return any(isinstance(target, ast.Name) and target.id == name for target in one.targets)
