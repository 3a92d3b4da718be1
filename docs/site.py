"""A hook of mkdocs (mkdocs.yml): what belongs into the site and does not lie in docs/, and what no site may have.

README and the other documents at the top of the repository become pages, and so do the examples and the API reference: a
page for each face, made of the names that it exports and of their docstrings, which are read and not imported. Links and
paths between documents lead to the pages that have been made of them. A page that would fetch a font, a script or a
picture from elsewhere ends the build.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
# Files that lie elsewhere, and the pages that are made of them.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
    "examples/README.md": "examples/index.md",
} | {f"examples/{path.name}": f"examples/{path.stem}.md" for path in sorted((ROOT / "examples").glob("*.py"))}

# The API reference: the faces, what each has of its own, and where that stands which both have.
FACES = {"llmasos": "llmasos/__init__.py", "llmasos.aio": "llmasos/aio.py"}
OWN = ("System", "Process", "LLM", "Client", "Image", "Instance", "Sandboxed")
ERRORS, RECORDS, SDK = "llmasos.syscalls.errno", "llmasos.syscalls.records", "llmasos.userland.sdk"
VALUES = {
    "Errors": [f"{ERRORS}.SyscallError", f"{ERRORS}.Errno"],
    "Types of arguments": [
        f"{SDK}.arguments.Model",
        f"{SDK}.arguments.Dtype",
        f"{SDK}.arguments.Ids",
        f"{SDK}.arguments.Strings",
        f"{SDK}.options.Prompt",
        f"{SDK}.dialogue.Message",
        f"{SDK}.connection.Where",
        f"{SDK}.beams.EarlyStopping",
    ],
    "Tables": [f"{SDK}.notebook.Table"],
    "Answers": [
        f"{SDK}.turns.Answer",
        f"{SDK}.script.Piece",
        f"{SDK}.calls.ToolCall",
        f"{SDK}.tool_calls.BadCall",
        f"{SDK}.actions.Language",
    ],
    "Records of the system calls": [RECORDS],
}
_LINK = re.compile(r"(\]\()(?!https?:|#|mailto:)([^)#\s]+)")
_PICTURE = re.compile(r"(\b(?:src|srcset)=\")(?!https?:|data:)([^\"\s]+)")
_PATH = re.compile(r"(?<![\[`])`([\w./-]+\.(?:md|py))`(?![\]`])")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_FETCHED = re.compile(
    r"<(?:script|img|iframe)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>"
    r"|<link\b[^>]*\brel=[\"']?(?:stylesheet|preconnect|preload)[^>]*\bhref=[\"']?(?:https?:)?//[^>]*>"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    made = {}
    for source, uri in PAGES.items():
        text = (ROOT / source).read_text()
        made[uri] = text if source.endswith(".md") else f"# {source}\n\n```python\n{text}```\n"
    for name, source in FACES.items():
        made[f"reference/{name.rpartition('.')[2]}.md"] = _reference(name, ROOT / source)
    made["reference/values.md"] = _values()
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    return files


def _exported(source: Path) -> list[str]:
    """The value of `__all__`."""
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return [str(name) for name in ast.literal_eval(node.value)]
    raise PluginError(f"{source} has no __all__")


def _shared() -> dict[str, str]:
    """The module of each value that both faces have: what the page of values shows."""
    shown = [one.rpartition(".") for names in VALUES.values() for one in names if one != RECORDS]
    records = ast.parse((ROOT / "syscalls/records.py").read_text()).body
    return {each.name: RECORDS for each in records if isinstance(each, ast.ClassDef)} | {
        name: module for module, _, name in shown
    }


def _reference(name: str, source: Path) -> str:
    """The page of a face: its docstring, the classes that it has of its own, and pointers to what both faces have."""
    about = ast.get_docstring(ast.parse(source.read_text())) or ""
    exported = {*_exported(source)} - {"aio"}
    places = _shared()
    if unknown := exported - {*OWN, *places}:
        raise PluginError(f"docs/site.py does not know where {', '.join(sorted(unknown))} of {name} belongs")
    shared = ", ".join(f"[`{each}`][{places[each]}.{each}]" for each in sorted(exported - {*OWN}))
    return (
        "\n\n".join([f"# {name}", about, *(f"::: {name}.{each}" for each in OWN), f"## In both faces\n\n{shared}"]) + "\n"
    )


def _values() -> str:
    """The page of what the methods of both faces take, give and raise."""
    parts = ["# Records and errors", "What the methods of `llmasos` and `llmasos.aio` take, give and raise."]
    how = "{heading_level: 3, show_labels: false, show_root_full_path: false}"
    for title, names in VALUES.items():
        parts += [f"## {title}", *(f"::: {name}\n    options: {how}" for name in names)]
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links, and paths in code, lead to the pages that have been made of the files that they name."""
    here = page.file.src_uri
    source = next((name for name, uri in PAGES.items() if uri == here), f"docs/{here}")
    if here.startswith("reference/"):
        return markdown

    def target(path: str) -> str | None:
        uri = PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if uri is None or uri not in files.src_uris or uri.endswith(".py"):  # the modules in docs/ are no pages
            return None
        return posixpath.relpath(uri, posixpath.dirname(here) or ".")

    def link(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        return found[1] + (target(path) or found[2])

    def path(found: re.Match[str]) -> str:
        to = target(found[1])
        return found[0] if to is None or PAGES.get(found[1], found[1]) == source else f"[{found[0]}]({to})"

    pieces, at = [], 0
    for fence in (*_FENCE.finditer(markdown), None):
        text = markdown[at : fence.start() if fence else None]
        pieces += [_PATH.sub(path, _PICTURE.sub(link, _LINK.sub(link, text))), fence[0] if fence else ""]
        at = fence.end() if fence else at
    return "".join(pieces)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse what a reader's browser would fetch from elsewhere."""
    if fetched := _FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri} fetches from elsewhere: {fetched[0]}")
    return output
