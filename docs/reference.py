"""A griffe extension (mkdocs.yml): in the API reference, a name or field without a docstring has its comment for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import griffe

from docs import comments


class FieldComments(griffe.Extension):
    """Of a file's own names and of its classes' fields; see comments.py."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        if attr.docstring is not None or attr.parent is None or not isinstance(attr.filepath, Path):
            return
        owner = attr.parent.name if isinstance(attr.parent, griffe.Class) else ""
        said = comments.of(attr.filepath).get((owner, attr.name))
        if said is not None:
            attr.docstring = griffe.Docstring(said, parent=attr)
