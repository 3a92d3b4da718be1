"""The comments at the ends of the lines that declare a class's fields, or a file's names, or on lines of their own before
those: their meaning, for pages that are made of the sources.

A docstring says what a class is; its fields are said in a comment each, where a reader of the code sees them beside the
type. The manual of the system calls (generate.py) and the API reference (a griffe extension, in mkdocs.yml) print them
too.
"""

from __future__ import annotations

import ast
import io
import tokenize
from functools import lru_cache
from pathlib import Path


@lru_cache
def of(path: Path) -> dict[tuple[str, str], str]:
    """Comments by class and field, of all classes at the top of a source file; of its own names, by "" and name."""
    text = path.read_text()
    said = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }
    alone = {line for line in said if text.splitlines()[line - 1].lstrip().startswith("#")}
    found = {}
    for top in ast.parse(text).body:
        owner, nodes = (top.name, top.body) if isinstance(top, ast.ClassDef) else ("", [top])
        for node in nodes:
            if isinstance(node, ast.AnnAssign | ast.Assign):
                target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
                if comment := said.get(node.end_lineno or 0) or (_before(node.lineno, said, alone) if owner else ""):
                    found[owner, ast.unparse(target)] = comment
    return found


def _before(line: int, said: dict[int, str], alone: set[int]) -> str:
    """The comment on the lines before this one."""
    first = line
    while first - 1 in alone:
        first -= 1
    return " ".join(said[number] for number in range(first, line))
