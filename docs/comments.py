"""The comments at the ends of the lines that declare a class's fields, or a file's names: their meaning, for pages that
are made of the sources.

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
    found = {}
    for top in ast.parse(text).body:
        owner, nodes = (top.name, top.body) if isinstance(top, ast.ClassDef) else ("", [top])
        for node in nodes:
            if isinstance(node, ast.AnnAssign | ast.Assign) and node.end_lineno in said:
                target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
                found[owner, ast.unparse(target)] = said[node.end_lineno]
    return found
