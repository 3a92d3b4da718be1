"""No safety hangs on an `assert`: with PYTHONOPTIMIZE=1 they are gone, and everything must go on as it does with them.

An assert may tell the type checker what is known, or be in a struct's own `check`, which simulations call. Others are
listed here with why nothing that comes from outside can make them fail.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("kernel", "drivers", "syscalls", "modelfiles", "userland")  # asserts of the simulator are its findings

KNOWN = {
    "kernel/sched/plan.py: the first claim can take every frame": "admission refuses what all frames cannot hold",
    "kernel/models/loading.py: a process that waits for a model does not map it yet": "join comes after the wait",
}


def asserts(tree: ast.AST, function: str = "") -> Iterator[tuple[str, ast.Assert]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Assert):
            yield function, node
        yield from asserts(node, node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function)


def tells_a_type(test: ast.expr) -> bool:
    """`x is not None`, `isinstance(x, T)`, and several of these."""
    match test:
        case ast.BoolOp(op=ast.And(), values=values):
            return all(map(tells_a_type, values))
        case ast.Compare(left=left, ops=[ast.IsNot()], comparators=[ast.Constant(value=None)]):
            return is_plain(left)
        case ast.Call(func=ast.Name(id="isinstance"), args=[thing, _]):
            return is_plain(thing)
    return False


def is_plain(thing: ast.expr) -> bool:
    """A name or an attribute: looking at it does nothing."""
    return isinstance(thing, ast.Name) or (isinstance(thing, ast.Attribute) and is_plain(thing.value))


def shipped() -> Iterator[tuple[str, str, ast.Assert]]:
    """Path, function and assert."""
    for folder in SHIPPED:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for function, node in asserts(ast.parse(file.read_text())):
                yield file.relative_to(ROOT).as_posix(), function, node


def test_asserts_tell_types_or_check_structs_or_are_known() -> None:
    rest = [(path, node) for path, function, node in shipped() if function != "check" and not tells_a_type(node.test)]
    said = {f"{path}: {ast.literal_eval(node.msg) if node.msg else 0}" for path, node in rest}
    assert said == set(KNOWN)


def test_no_assert_computes_what_is_used_after_it() -> None:
    for path, function, node in shipped():
        kept = [one for one in ast.walk(node) if isinstance(one, ast.NamedExpr | ast.Await | ast.Yield)]
        assert not kept or function == "check", f"{path}:{node.lineno}"
