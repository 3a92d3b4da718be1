"""A griffe extension (mkdocs.yml): in the API reference a field without a docstring has its comment for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import griffe

from docs import comments


class FieldComments(griffe.Extension):
    """Of classes at the top of a file; see comments.py."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        if attr.docstring is not None or not isinstance(attr.parent, griffe.Class) or not isinstance(attr.filepath, Path):
            return
        said = comments.of(attr.filepath).get((attr.parent.name, attr.name))
        if said is not None:
            attr.docstring = griffe.Docstring(f"{said[:1].upper()}{said[1:]}.", parent=attr)
