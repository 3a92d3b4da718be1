"""What an error tells people to do fits its reason: every raise in the tree is read, and its hint looked at."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

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


def raises() -> Iterator[Raise]:
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(file.read_text())
            for function in ast.walk(tree):
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                    for node in ast.walk(function):
                        if isinstance(node, ast.Call) and (made := _made(node)) is not None:
                            yield Raise(str(file.relative_to(ROOT)), made[0], _text(made[1], function))


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


ALL = list(raises())


def test_the_whole_tree_is_read() -> None:
    assert len(ALL) > 500
    assert {one.errno for one in ALL} == set(Errno)


# What a hint speaks of, and the places whose errors are about that.
ABOUT = {
    "passphrase": ("drivers/checkpoint_file.py",),
    "the right that this call needs": ("kernel/dispatch.py", "kernel/calls/lookup.py"),
    "`dmesg`": ("kernel/", "drivers/", "userland/sdk/answers.py"),
    "the hub": ("modelfiles/",),
    "of your own group": ("kernel/calls/lookup.py",),
    "the limit of the group": ("kernel/enforce.py", "kernel/groups/", "kernel/calls/context.py"),
    "longer one": ("kernel/", "userland/sdk/"),
    "`groups` lists": ("kernel/groups/", "userland/programs/groups.py"),
    "who may use it": ("drivers/checkpoint", "kernel/edge/", "syscalls/calls.py", "userland/"),
    "`models` lists": ("modelfiles/", "userland/programs/", "userland/sdk/", "kernel/", "drivers/"),
    "architecture and form": ("drivers/", "modelfiles/"),
    "the disk": ("modelfiles/download.py",),
}


@pytest.mark.parametrize("words", ABOUT)
def test_a_hint_is_given_where_it_fits(words: str) -> None:
    with_it = [one for one in ALL if words in one.hint]
    assert with_it, "nobody is told so"
    strange = [one for one in with_it if not one.place.startswith(ABOUT[words])]
    assert strange == []


@pytest.mark.parametrize(
    ("errno", "place", "words"),
    [
        (Errno.EPERM, "drivers/checkpoint_file.py", "passphrase"),
        (Errno.EPERM, "kernel/dispatch.py", "attach with the right"),
        (Errno.EPERM, "kernel/edge/lock.py", "who may use it"),
        (Errno.EPERM, "modelfiles/hub_api.py", "the hub"),
        (Errno.EPERM, "modelfiles/web.py", "the hub"),
        (Errno.EPERM, "userland/shell/files.py", "who may use it"),
        (Errno.ENOENT, "kernel/groups/group.py", "`groups`"),
        (Errno.ENOENT, "modelfiles/source.py", "`models`"),
        (Errno.EDQUOT, "modelfiles/download.py", "disk"),
        (Errno.ENOMEM, "userland/sdk/public.py", "this program"),
    ],
)
def test_and_all_errors_there_have_it(errno: Errno, place: str, words: str) -> None:
    there = [one for one in ALL if one.errno is errno and one.place == place and one.reason.strip("… ")]
    assert there
    assert [one for one in there if words not in one.hint] == []


def test_a_kernel_that_does_not_boot_is_to_be_booted_again() -> None:
    assert "boot again" in SyscallError(Errno.EIO, "the kernel did not boot: device cpu0 cannot start").hint


def test_what_holds_for_one_cause_only_is_no_kinds_general_advice() -> None:
    for errno in Errno:
        for words in ABOUT:
            assert words not in errno.advice
