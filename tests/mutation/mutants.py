"""Mutants of a module: its syntax tree with one small fault each (DeMillo, Lipton and Sayward, 1978).

The operators are the usual ones: relations, connectives, arithmetic and constants replaced, conditions negated,
statements deleted. What people only read is left out (texts, log lines, the reasons of errors), and so is what does not
run: annotations and their imports, asserts, docstrings, and the `check` of a struct, which the running kernel never
calls.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_RELATIONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_TWINS = {"min": "max", "max": "min", "any": "all", "all": "any"}
_UNSEEN = {"check", "__repr__", "__str__"}  # functions that nobody's work depends on
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_CONDITIONS = (ast.If, ast.IfExp, ast.While)


@dataclass(frozen=True)
class Mutant:
    """`number` counts the mutants of a file; with the file's text it says which it is."""

    path: str  # from the repository's root
    number: int
    line: int
    statement: int  # the line where its statement begins
    function: str  # its qualified name; "" outside of functions
    operator: str
    change: str  # for people: "a < b -> a <= b"

    @property
    def name(self) -> str:
        return f"{self.path}:{self.line} #{self.number}"


@dataclass
class _Edit:
    """What one mutant is in a tree: `owner.field` (an item of it, where that is a list) becomes `new`."""

    owner: ast.AST
    field: str
    index: int | None
    old: ast.AST
    new: ast.AST
    operator: str
    function: str
    statement: int

    def apply(self) -> None:
        new = ast.copy_location(self.new, self.old)
        if self.index is None:
            setattr(self.owner, self.field, new)
        else:
            getattr(self.owner, self.field)[self.index] = new


def mutants(path: str, text: str) -> list[Mutant]:
    """All mutants of a file, in the order of its text."""
    return [
        Mutant(path, number, _line(edit.old), edit.statement, edit.function, edit.operator, _told(edit))
        for number, edit in enumerate(_edits(ast.parse(text)))
    ]


def mutated(text: str, number: int) -> ast.Module:
    """The tree of a file with its mutant `number`."""
    tree = ast.parse(text)
    _edits(tree)[number].apply()
    return ast.fix_missing_locations(tree)


def _told(edit: _Edit) -> str:
    before, after = (" ".join(ast.unparse(one).split()) for one in (edit.old, edit.new))
    return f"{before[:120]} -> {after[:120]}"


def _edits(tree: ast.Module) -> list[_Edit]:
    return sorted(_within(tree, [], "", 0), key=lambda edit: (_line(edit.old), getattr(edit.old, "col_offset", 0)))


def _line(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0))


def _within(node: ast.AST, scope: list[str], function: str, statement: int) -> Iterator[_Edit]:
    for field, value in ast.iter_fields(node):
        if _is_unseen(node, field):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or _is_text(child):
                continue
            inner = [*scope, child.name] if isinstance(child, (ast.ClassDef, *_FUNCTIONS)) else scope
            within = ".".join(inner) if isinstance(child, _FUNCTIONS) else function
            begin = _line(child) if isinstance(child, ast.stmt) else statement
            for operator, new in _replaced(child, node):
                yield _Edit(node, field, index, child, new, operator, function, begin)
            yield from _within(child, inner, within, begin)


def _is_unseen(node: ast.AST, field: str) -> bool:
    """Annotations and decorators, what an error says, and the choice between two wordings."""
    if isinstance(node, ast.IfExp) and any(map(_is_words, (node.body, node.orelse))):
        return True
    return isinstance(node, ast.Raise) or field in ("annotation", "returns", "decorator_list", "type_params")


def _is_words(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_text(node: ast.AST) -> bool:
    match node:
        case ast.JoinedStr() | ast.Assert() | ast.Import() | ast.ImportFrom():
            return True
        case ast.Constant(value=str() | bytes()):
            return True
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="log"))):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.FunctionDef(name=name):
            return name in _UNSEEN
    return False


def _replaced(node: ast.AST, owner: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The operators that fit this node, and what each makes of it."""
    match node:
        case ast.Compare(ops=ops):
            for index, relation in enumerate(ops):
                for other in _RELATIONS[type(relation)]:
                    new = copy.deepcopy(node)
                    new.ops[index] = other()
                    yield "relation", new
        case ast.BoolOp(op=op):
            other_connective = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield "connective", ast.BoolOp(other_connective, copy.deepcopy(node.values))
        case ast.BinOp(op=op) if type(op) in _ARITHMETIC and not _joins_text(node):
            yield "arithmetic", ast.BinOp(copy.deepcopy(node.left), _ARITHMETIC[type(op)](), copy.deepcopy(node.right))
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield "unary", copy.deepcopy(node.operand)
        case ast.Constant(value=value):
            yield from _constants(value)
        case ast.Name(id=name) if name in _TWINS and isinstance(owner, ast.Call) and owner.func is node:
            yield "twin", ast.Name(_TWINS[name], ast.Load())
        case ast.stmt():
            yield from _statements(node)
    condition = getattr(owner, "test", None)
    if isinstance(owner, _CONDITIONS) and condition is node and not isinstance(node, (ast.Compare, ast.UnaryOp)):
        yield "condition", ast.UnaryOp(ast.Not(), copy.deepcopy(node))
    if isinstance(owner, ast.comprehension) and node in owner.ifs:
        yield "condition", ast.Constant(True)


def _constants(value: Any) -> Iterator[tuple[str, ast.AST]]:
    match value:
        case bool():
            yield "constant", ast.Constant(not value)
        case int():
            yield "constant", ast.Constant(value + 1)
        case float():
            yield "constant", ast.Constant(value * 2 if value else 1.0)


def _statements(node: ast.stmt) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Delete() | ast.Continue() | ast.Break():
            yield "statement", ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_]):
            yield "statement", ast.Pass()
        case ast.AugAssign(op=op):
            yield "statement", ast.Pass()
            if type(op) in _ARITHMETIC:
                yield "arithmetic", ast.AugAssign(node.target, _ARITHMETIC[type(op)](), copy.deepcopy(node.value))
        case ast.Return(value=value) if value is not None and not isinstance(value, ast.Constant):
            yield "result", ast.Return(ast.Constant(None))


def _joins_text(node: ast.BinOp) -> bool:
    sides = [one for one in ast.walk(node) if isinstance(one, (ast.JoinedStr, ast.Constant))]
    return any(isinstance(one, ast.JoinedStr) or isinstance(one.value, (str, bytes)) for one in sides)
