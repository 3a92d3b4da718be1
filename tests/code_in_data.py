"""Finds in a Python source what makes code of data: pickles and their kin, eval and exec, torch.load, and what else runs
what a file or a message says. By its syntax tree, so that another name for the same thing is found too."""

from __future__ import annotations

import ast
from collections.abc import Iterator

PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle"}
BUILTINS = {"eval", "exec", "compile"}
FUNCTIONS = {
    "torch.load", "torch.jit.load", "torch.hub.load", "torch.serialization.load", "torch.package.PackageImporter",
    "torch.save",  # what it writes, only torch.load reads
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle", "runpy.run_path",
}  # fmt: skip
METHODS = {"recv_pyobj", "send_pyobj"}  # of ZeroMQ's sockets: pickles
SWITCHES = {"trust_remote_code": False, "allow_pickle": False, "weights_only": True}  # keyword: the one value it may have
IMPORTERS = {"__import__", "builtins.__import__", "importlib.import_module", "importlib.__import__"}


def found(source: str) -> list[tuple[int, str]]:
    """The lines and what is there."""
    tree = ast.parse(source)
    names = dict(_names(tree))
    return sorted({(node.lineno, what) for node, what in _found(tree, names)})


def _names(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What names of the file stand for: imports, and names that are given to them."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    given = [node for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr)]
    for _ in range(4):  # `a = torch; b = a.load`
        for node in given:
            said = _dotted(node.value, known) if node.value is not None else ""
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and said and said != target.id:
                    known[target.id] = said
    yield from known.items()


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    """`torch.load` for an expression that stands for it; empty: it is another kind of expression."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value, names)
        return f"{base}.{node.attr}" if base else ""
    if isinstance(node, ast.Subscript) and _is_text(node.slice):  # vars(torch)["load"], __builtins__[...]
        base = _dotted(node.value, names)
        return f"{base.removesuffix('.__dict__')}.{_text(node.slice)}" if base else ""
    if isinstance(node, ast.Call):
        called = _dotted(node.func, names)
        words = node.args
        if called in ("getattr", "builtins.getattr") and len(words) > 1 and _is_text(words[1]):
            base = _dotted(words[0], names)
            return f"{base}.{_text(words[1])}" if base else ""
        if called in ("vars", "builtins.vars") and words:
            return _dotted(words[0], names)
        if called in IMPORTERS and words and isinstance(words[0], ast.Constant):
            return str(words[0].value)
    return ""


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _text(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else ""


def _found(tree: ast.Module, names: dict[str, str]) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names if _is_pickle(alias.name))
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if not node.level and (_is_pickle(node.module or "") or _is_pickle(whole) or _is_code(whole)):
                    yield node, whole
        elif isinstance(node, ast.expr):
            yield from ((node, what) for what in _of_expression(node, names))


def _of_expression(node: ast.expr, names: dict[str, str]) -> Iterator[str]:
    said = _dotted(node, names)
    read = not isinstance(node, ast.Name) or isinstance(node.ctx, ast.Load)
    if said and read and (_is_code(said) or _is_pickle(said)):
        yield said
    if isinstance(node, ast.Attribute) and node.attr in METHODS:
        yield node.attr
    if not isinstance(node, ast.Call):
        return
    for keyword in node.keywords:
        if keyword.arg in SWITCHES:
            value = keyword.value
            if not (isinstance(value, ast.Constant) and value.value is SWITCHES[keyword.arg]):
                yield keyword.arg
    if _dotted(node.func, names) in IMPORTERS and node.args and not _is_ours(node.args[0]):
        yield "an import by a name that is computed"


def _is_ours(name: ast.expr) -> bool:
    """A module of this package, or one that is named in the source."""
    if isinstance(name, ast.JoinedStr) and name.values and isinstance(name.values[0], ast.Constant):
        return str(name.values[0].value).startswith(("llmasos.", "benchmarks."))
    return isinstance(name, ast.Constant)


def _is_pickle(name: str) -> bool:
    return name.partition(".")[0] in PICKLES


def _is_code(name: str) -> bool:
    bare = name.removeprefix("builtins.").removeprefix("__builtins__.")
    return bare in BUILTINS or name in FUNCTIONS
