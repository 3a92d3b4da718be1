"""The kernel's files stand in floors. import-linter checks the arrows (pyproject.toml); these tests check that every file
has its floor, and that no circle of imports is larger than the files of types."""

from __future__ import annotations

import ast
import graphlib
import tomllib
from pathlib import Path

import llmasos.kernel
from llmasos.kernel.calls.table import HANDLERS
from llmasos.syscalls.table import BY_RECORD
from tests.kernel import floors

ROOT = Path(llmasos.kernel.__file__).parent
TYPES = {
    f"llmasos.kernel.{name}"
    for name in (
        "memory.evictions", "memory.victims", "objects.device", "objects.image", "objects.process", "objects.request",
        "sched.policy", "sched.run_queue",
    )
}  # fmt: skip


def modules() -> dict[str, Path]:
    paths = {path: path.relative_to(ROOT.parents[1]).with_suffix("") for path in ROOT.rglob("*.py")}
    return {".".join(name.parts).removesuffix(".__init__"): path for path, name in paths.items()}


def imports() -> dict[str, set[str]]:
    """Of each module, what it imports of the kernel: at its top, within functions, and for types only."""
    known = modules()
    found: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found[name] |= {whole if whole in known else node.module} & known.keys()
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names} & known.keys()
    return found


def test_no_circle_of_imports_is_larger_than_the_files_of_types() -> None:
    graph = {name: others - {name} for name, others in imports().items()}
    graph["types"] = {other for name in TYPES for other in graph.pop(name)} - TYPES
    whole = {name: {"types" if other in TYPES else other for other in others} for name, others in graph.items()}
    order = list(graphlib.TopologicalSorter(whole).static_order())  # raises CycleError, which names the circle
    assert order[-1].startswith("llmasos.kernel.edge")


def test_every_file_has_its_floor() -> None:
    settings = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text())
    floors = next(c for c in settings["tool"]["importlinter"]["contracts"] if c["type"] == "layers")["layers"]
    named = {name.strip() for floor in floors for name in floor.replace(":", "|").split("|")}
    for name in modules():
        prefixes = {".".join(name.split(".")[:length]) for length in range(3, name.count(".") + 2)}
        package = (ROOT.parents[1] / name.replace(".", "/")).is_dir()
        assert package or prefixes & named, f"{name} stands on no floor; name it in pyproject.toml"


def test_every_call_of_the_table_has_a_handler() -> None:
    assert HANDLERS.keys() == BY_RECORD.keys()


def test_lines_of_code_are_those_that_do_something(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "edge").mkdir()
    (tmp_path / "memory" / "frames.py").write_text(
        '"""A docstring\nof two lines."""\n\n# a comment\nSIZES = (\n    1,\n    2,  # two\n)\n\n\n'
        'class Pool:\n    """Frames."""\n\n    size: int = 0\n\n'
        "    def check(self) -> None:\n        assert self.size\n\n"
        '    def take(self) -> int:\n        """One."""\n'
        '        text = """not\n        a docstring"""\n        return len(text)\n'
    )
    (tmp_path / "edge" / "server.py").write_text("import trio\n")
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "state.py").write_text("A = 1\nB = 2\n")
    (tmp_path / "recorder.py").write_text("A = 1\n")
    found = floors.sizes(tmp_path)
    assert floors.sums(found) == {"core": 10, "journal": 3, "edge": 1}
    assert found[Path("memory/frames.py")].longest == 5
    assert floors.complaints(found, layers=True) == []
    assert len(floors.complaints(found, layers=False)) == 1


def test_what_is_too_large_is_named(tmp_path: Path) -> None:
    lines = "".join(f"    a{number} = {number}\n" for number in range(floors.LONGEST))
    (tmp_path / "big.py").write_text(f"def long():\n{lines}" + "A = 1\n" * floors.MOST["core"])
    (wrong, longest) = floors.complaints(floors.sizes(tmp_path), layers=True)
    assert "core" in wrong
    assert "big.py: long has 61 lines" in longest


def test_every_handler_names_its_row() -> None:
    for record, handler in HANDLERS.items():
        entry = BY_RECORD[record]
        assert (handler.__doc__ or "").startswith(f"Row {entry.number} of the table, `{record.__name__}`."), entry.name
