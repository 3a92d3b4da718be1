"""`python -m tests.kernel.floors`: how large the kernel is, and whether that is within its bounds.

Lines of code count: no comments, docstrings or blank lines, so that nobody pays for explaining; and not the `check` of
a struct, which the running kernel never calls. Three sums (the core, the journal with what is made of it, the edge),
the longest function, and whether import-linter holds the floors apart (pyproject.toml). Exits 1 where
a bound is passed.
"""

from __future__ import annotations

import ast
import sys
import tokenize
import tomllib
from dataclasses import dataclass
from pathlib import Path

AIM = {"core": 4600, "journal": 950, "edge": 1500}  # lines of code
MOST = AIM | {"core": 8195, "journal": 1356, "edge": 8177}  # a ratchet: it may lose what it is above its aim, not gain
LONGEST = 60  # lines from a function's `def` to its end, all of them

ROOT = Path(__file__).resolve().parents[2]
KERNEL = ROOT / "kernel"
JOURNAL = {"recorder.py", "recovery.py"}  # of the journal, wherever they stand
_NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
    tokenize.ENCODING,
}  # fmt: skip
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Size:
    """Of one file: lines of code, and its longest function's lines and name."""

    code: int
    longest: int
    function: str


def part_of(file: Path) -> str:
    """Which sum a file of the kernel (a path within it) counts for."""
    if file.parts[0] in ("journal", "recovery") or file.name in JOURNAL:
        return "journal"
    return "edge" if file.parts[0] == "edge" else "core"


def size_of(file: Path) -> Size:
    tree = ast.parse(file.read_text())
    told: set[int] = set()  # lines of docstrings and of structs' own checks
    longest, function = 0, ""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *_FUNCTIONS)) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                told.update(_lines(first))
        if isinstance(node, _FUNCTIONS):
            if node.name == "check":
                told.update(_lines(node))
            if len(_lines(node)) > longest:
                longest, function = len(_lines(node)), node.name
    code: set[int] = set()
    with file.open("rb") as opened:
        for token in tokenize.tokenize(opened.readline):
            if token.type not in _NO_CODE:
                code.update(range(token.start[0], token.end[0] + 1))
    return Size(len(code - told), longest, function)


def _lines(node: ast.stmt) -> range:
    assert node.end_lineno is not None
    return range(node.lineno, node.end_lineno + 1)


def sizes(kernel: Path = KERNEL) -> dict[Path, Size]:
    """Of every file that counts, by its path within the kernel."""
    files = sorted(kernel.rglob("*.py"))
    return {one.relative_to(kernel): size_of(one) for one in files if part_of(one.relative_to(kernel))}


def sums(found: dict[Path, Size]) -> dict[str, int]:
    return {part: sum(size.code for file, size in found.items() if part_of(file) == part) for part in MOST}


def has_layers(project: Path = ROOT / "pyproject.toml") -> bool:
    contracts = tomllib.loads(project.read_text())["tool"]["importlinter"]["contracts"]
    return any(contract["type"] == "layers" for contract in contracts)


def complaints(found: dict[Path, Size], layers: bool) -> list[str]:
    """What is not as it should be, with what was found and what is the most."""
    wrong = [
        f"{part}: {lines} lines of code, at most {MOST[part]}"
        for part, lines in sums(found).items()
        if lines > MOST[part]
    ]
    wrong += [
        f"kernel/{file}: {size.function} has {size.longest} lines, at most {LONGEST}"
        for file, size in found.items()
        if size.longest > LONGEST
    ]
    return wrong if layers else [*wrong, "pyproject.toml: import-linter has no contract of type layers"]


def main() -> int:
    found = sizes()
    for part, lines in sums(found).items():
        print(f"{part:8} {lines:>6,} of {MOST[part]:,} lines of code; the aim is {AIM[part]:,}")
    file, size = max(found.items(), key=lambda item: item[1].longest)
    print(f"longest  {size.longest:>6} of {LONGEST} lines: {size.function} (kernel/{file})")
    wrong = complaints(found, has_layers())
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
