"""The name for a model's path: the way back from names.py, for people who typed `ollama:llama3.2:1b` and not a digest.

The kernel knows a model of a store by its path, and a path such as `blobs/sha256-6a0746a1ec1a...` tells a person nothing.
A path in a store is shown by the store's name for it; every other path is its own name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmasos.modelfiles.stores import Found

_BLOB = re.compile(r"sha256-[0-9a-f]{64}")
_IN_TEXT = re.compile(
    r"(?<!from )(?<!in )/\S+?/(?:blobs/sha256-[0-9a-f]{64}|snapshots/[0-9a-f]{40}(?:/[^\s:]+)?)(?=[\s:;,]|$)"
)


def called(path: str) -> str:
    """The name for a path by the store that has it; any other text unchanged."""
    if not os.path.isabs(path):
        return path
    place = Path(path)
    return next((one.name for one in _beside(place) if one.path == place), path)


def called_in(text: str) -> str:
    """A line of the log with its models so named; a path that says where something lies stays."""
    return _IN_TEXT.sub(lambda found: called(found[0]), text)


def _beside(place: Path) -> Iterable[Found]:
    """The models of the store in which a path lies; the others are not read."""
    from llmasos.modelfiles import cache, choice, stores  # here: a list of processes seldom has such a path
    from llmasos.modelfiles.names import LLAMA_CPP, LM_STUDIO

    if _BLOB.fullmatch(place.name) and place.parent.name == "blobs":
        from llmasos.modelfiles import ollama

        return ollama.models()
    if place.is_relative_to(cache.directory()):
        return stores.hugging_face(place.relative_to(cache.directory()).parts[0])
    if place.suffix.lower() != ".gguf":
        return ()
    store_places = [(LM_STUDIO, one) for one in stores.lm_studio_directories()]
    for store, top in (*store_places, (LLAMA_CPP, stores.llama_cpp_directory())):
        if place.is_relative_to(top):
            stem = choice.gguf_stem(place.relative_to(top).as_posix())
            return (stores.Found(f"{store}:{stem}", store, place, stores.GGUF, 0, 0.0),)
    return ()
