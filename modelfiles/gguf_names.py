"""Which files of a GGUF repository are meant: `org/name:Q4_K_M` picks one, as with llama.cpp and Ollama.

A repository holds the same model many times over, in files named after their quantisation; large ones are split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from syscalls.errno import Errno, SyscallError

PREFERRED = ("Q4_K_M", "Q8_0")  # where none is named
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE | re.DOTALL)
_KIND = re.compile(
    r"(?:^|[-._/ ])((?:UD-)?(?:I?Q\d\w*|TQ\d_0|MXFP4\w*|NVFP4\w*|BF16|F16|FP16|F32|FP32))(?=[-./]|$)",
    re.IGNORECASE,
)
_SAME = {"FP16": "F16", "FP32": "F32"}


def quantisation(file: str) -> str:
    """What a file's name says of its quantisation (`Q4_K_M`), in capitals; "" if it says nothing."""
    named = _PART.fullmatch(file)
    found = _KIND.findall((named[1] if named else file.removesuffix(".gguf")).upper())
    return _SAME.get(found[-1], found[-1]) if found else ""


def choose(files: Iterable[str], wanted: str | None = None) -> list[str]:
    """The files to take of those in a repository: all parts of one model, in order. `wanted` is a quantisation or a
    file's name; without it PREFERRED, in this order, or the only one there is.

    Raises ENOENT: there is none such (the reason lists what there is), or parts are missing.
    """
    models: dict[str, list[str]] = {}
    for file in sorted(files):
        name = file.rsplit("/", 1)[-1].lower()
        if not name.endswith(".gguf") or "mmproj" in name or "imatrix" in name:
            continue  # a vision tower, what was measured to quantise: no language models
        named = _PART.fullmatch(file)
        models.setdefault(f"{named[1]}-of-{named[3]}" if named else file, []).append(file)
    if not models:
        raise SyscallError(Errno.ENOENT, "there is no GGUF file of a language model")
    chosen = _named(models, wanted) if wanted else _preferred(models)
    if not chosen:
        there = ", ".join(sorted({quantisation(parts[0]) or parts[0] for parts in models.values()}))
        what = (
            f"no GGUF file is a {wanted!r}" if wanted else "several GGUF files are there, and none was named"
        )
        raise SyscallError(
            Errno.ENOENT, f"{what}; there are: {there}; choose one as NAME:{there.split(',')[0]}"
        )
    parts = models[min(chosen, key=lambda name: (name.count("/"), len(name), name))]
    named = _PART.fullmatch(parts[0])
    if named and len(parts) != int(named[3]):
        raise SyscallError(
            Errno.ENOENT, f"of the {int(named[3])} parts of {parts[0]} only {len(parts)} are there"
        )
    return parts


def _named(models: dict[str, list[str]], wanted: str) -> list[str]:
    exact = [name for name, parts in models.items() if wanted in (*parts, parts[0].rsplit("/", 1)[-1])]
    kind = _SAME.get(wanted.upper(), wanted.upper())
    return exact or [name for name, parts in models.items() if quantisation(parts[0]) == kind]


def _preferred(models: dict[str, list[str]]) -> list[str]:
    for kind in PREFERRED:
        if found := [name for name, parts in models.items() if quantisation(parts[0]) == kind]:
            return found
    return list(models) if len(models) == 1 else []
