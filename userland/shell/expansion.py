"""Words become arguments: variables, `$(...)`, sums, and the patterns of names.

As in the POSIX shell: what is not in quotes is split at blanks, and a value that is empty leaves no word. Patterns are
matched later, because what they stand for depends on the command: names of processes, or of files.
"""

from __future__ import annotations

import ast
import glob
import operator
import os
import re
from collections.abc import Callable
from fnmatch import fnmatchcase

from llmasos.userland.shell.grammar import Argument, UsageError
from llmasos.userland.shell.tree import Literal, Part, Script, Substitution, Sum, Variable, Word
from llmasos.userland.shell.variables import Variables

MAGIC = re.compile(r"[*?\[]")
MAX_DIGITS = 1000  # of a sum

Output = Callable[[Script], str]
"""Runs the script of a `$(...)` and returns what it printed."""


_FOR_UNSET = ("-", "+", "=", "?")  # operators that say what becomes of a variable that is not set


class Unset(UsageError):
    """A variable that has to be set is not. It ends a script."""


class _Field:
    """A word that is being put together."""

    __slots__ = ("begun", "magic", "pattern", "quoted", "text")

    def __init__(self) -> None:
        self.text, self.pattern = "", ""
        self.begun = self.quoted = self.magic = False

    def add(self, text: str, *, quoted: bool) -> None:
        if not self.begun:
            self.quoted = quoted
        self.begun = True
        self.text += text
        self.pattern += glob.escape(text) if quoted else text
        self.magic = self.magic or (not quoted and MAGIC.search(text) is not None)

    def argument(self) -> Argument:
        return Argument(self.text, self.quoted, self.pattern if self.magic else "")


def arguments(variables: Variables, word: Word, output: Output) -> list[Argument]:
    """The arguments that a word comes to: often one, none if it comes to nothing, several if it is split."""
    done: list[Argument] = []
    field = _Field()

    def end() -> None:
        nonlocal field
        if field.begun:
            done.append(field.argument())
            field = _Field()

    for index, part in enumerate(word.parts):
        if isinstance(part, Literal):
            text = part.text
            if index == 0 and not part.quoted and text.startswith("~"):
                text = os.path.expanduser(text)
            field.add(text, quoted=part.quoted)
        elif isinstance(part, Variable) and part.name == "@" and not part.operator:
            for number, one in enumerate(variables.arguments):
                if number:
                    end()
                field.add(one, quoted=part.quoted)
        elif part.quoted:
            field.add(_value(variables, part, output), quoted=True)
        else:
            value = _value(variables, part, output)
            pieces = value.split()
            if value[:1].isspace():
                end()
            if pieces:
                field.add(pieces[0], quoted=False)
            if len(pieces) > 1:
                end()
                done += [Argument(piece, pattern=piece if MAGIC.search(piece) else "") for piece in pieces[1:-1]]
                field.add(pieces[-1], quoted=False)
            if pieces and value[-1].isspace():
                end()
    end()
    return done


def text(variables: Variables, word: Word, output: Output) -> str:
    """What a word comes to as one text, blanks included."""
    said = "".join(part.text if isinstance(part, Literal) else _value(variables, part, output) for part in word.parts)
    first = word.parts[0] if word.parts else None
    if isinstance(first, Literal) and not first.quoted and first.text.startswith("~"):
        return os.path.expanduser(said)
    return said


def pattern(variables: Variables, word: Word, output: Output) -> str:
    """The pattern of a word of `case`: what is in quotes is no pattern."""
    made = ""
    for part in word.parts:
        said = part.text if isinstance(part, Literal) else _value(variables, part, output)
        made += glob.escape(said) if part.quoted else said.replace("[^", "[!")
    return made


def _value(variables: Variables, part: Part, output: Output) -> str:
    if isinstance(part, Substitution):
        return output(part.script).rstrip("\n")
    if isinstance(part, Sum):
        return str(_sum(variables, part, output))
    assert isinstance(part, Variable)
    value = variables.get(part.name)
    if (
        value is None
        and "nounset" in variables.switches
        and part.name not in "@*"
        and part.operator[-1:] not in _FOR_UNSET
    ):
        raise Unset(f"{part.name} is not set, and `set -u` wants it to be")
    if part.operator == "length":
        return str(len(variables.arguments) if part.name in "@*" else len(value or ""))
    if part.word is None:
        return value or ""
    if part.operator[0] in "#%":
        return _cut(value or "", part.operator, pattern(variables, part.word, output))
    there = bool(value) if part.operator.startswith(":") else value is not None
    if part.operator.endswith("+"):
        return text(variables, part.word, output) if there else ""
    if there:
        return value or ""
    otherwise = text(variables, part.word, output)
    if part.operator.endswith("?"):
        raise Unset(f"{part.name}: {otherwise or 'it is not set'}")
    if part.operator.endswith("="):
        if not part.name.isidentifier():
            raise UsageError(f"${{{part.name}{part.operator}...}}: only a variable can be set so")
        variables.values[part.name] = otherwise
    return otherwise


def _cut(value: str, operator: str, pattern: str) -> str:
    """A value without what matches a pattern: at its beginning (`#`) or end (`%`), the shortest or (doubled) the
    longest."""
    lengths = range(len(value) + 1)
    for length in reversed(lengths) if len(operator) > 1 else lengths:
        if operator[0] == "#" and fnmatchcase(value[:length], pattern):
            return value[length:]
        if operator[0] == "%" and fnmatchcase(value[len(value) - length :], pattern):
            return value[: len(value) - length]
    return value


# --- sums -----------------------------------------------------------------------------------------------------------


def _divided(left: int, right: int) -> int:
    if right == 0:
        raise UsageError("a sum divides by zero")
    sign = -1 if (left < 0) != (right < 0) else 1
    return sign * (abs(left) // abs(right))


def _power(base: int, exponent: int) -> int:
    if not 0 <= exponent <= MAX_DIGITS:
        raise UsageError(f"an exponent is from 0 to {MAX_DIGITS}, found {exponent}")
    return int(base**exponent)


_OPERATIONS: dict[type[ast.AST], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divided,
    ast.Pow: _power,
    ast.Mod: lambda left, right: left - _divided(left, right) * right,
    ast.Eq: lambda left, right: int(left == right),
    ast.NotEq: lambda left, right: int(left != right),
    ast.Lt: lambda left, right: int(left < right),
    ast.LtE: lambda left, right: int(left <= right),
    ast.Gt: lambda left, right: int(left > right),
    ast.GtE: lambda left, right: int(left >= right),
}


def _sum(variables: Variables, part: Sum, output: Output) -> int:
    """Python's parser reads the sum, and only whole numbers and these operations are carried out."""
    said = "".join(
        one.text if isinstance(one, Literal) else _value(variables, one, output).strip() or "0"
        for one in part.expression.parts
    ).strip()
    try:
        tree = ast.parse(said or "0", mode="eval")
        if len(said) > MAX_DIGITS:
            raise ValueError("it is too long")
        return _computed(tree.body)
    except (SyntaxError, ValueError, RecursionError):
        known = "numbers, variables, ( ), + - * / % ** and comparisons"
        raise UsageError(f"$((...)) wants a sum of whole numbers: {known}; found {said[:60]!r}") from None


def _computed(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_computed(inner)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _computed(inner)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            return _OPERATIONS[type(op)](_computed(left), _computed(right))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OPERATIONS:
            return _OPERATIONS[type(op)](_computed(left), _computed(right))
    raise ValueError(f"{ast.unparse(node)} is none")
