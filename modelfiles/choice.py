"""The files of a repository or directory that make the model: those that transformers would read, and no others.

config.json, and the files of tokenizer, templates and generation beside it; of the weights `model.safetensors`, else the
shards that `model.safetensors.index.json` names. Variants (`model.fp16.safetensors`), other layouts
(`consolidated*.safetensors`) and other engines' files (onnx/, *.bin) stay where they are; a pickle is never read. If
there are only GGUF files, one of them is the model (chosen as the hub and Ollama do: Q4_K_M, then Q8_0, unless named).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection

from llmasos.modelfiles import names
from llmasos.modelfiles.files import shown
from llmasos.syscalls.errno import Errno, SyscallError

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DEFAULT_QUANTS = ("Q4_K_M", "Q8_0")
_SIDE = (".json", ".jinja", ".model", ".txt")
_TEMPLATES = "additional_chat_templates/"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf", re.IGNORECASE)
_QUANT = re.compile(
    r"(?:^|[-._])(?P<quant>(?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|NVFP4|BF16|F16|F32|FP16|FP32))(?=$|[-._])",
    re.IGNORECASE,
)
_MOST_SHARDS = 10_000
MOST_INDEX = 32 << 20  # bytes


def checked(path: str) -> str:
    """A file's path in a repository, as given. Raises EIO for one that would lie elsewhere."""
    parts = path.split("/")
    if (
        not path.isprintable()
        or any(part in ("", ".", "..") for part in parts)
        or any(c in path for c in '\\:*?"<>|')
        or len(path) > 1024
    ):
        raise SyscallError(
            Errno.EIO, f"the repository lists a file {shown(path)!r}, whose name could lie outside; refused"
        )
    return path


def inside(listed: Collection[str], folder: str) -> set[str]:
    """The names below `folder` (empty: all), relative to it."""
    prefix = f"{folder}/" if folder else ""
    return {name[len(prefix) :] for name in listed if name.startswith(prefix)}


def is_gguf(listed: Collection[str]) -> bool:
    """Whether its weights are GGUF files only."""
    here = {name for name in listed if "/" not in name}
    return not here & {SINGLE, INDEX} and any(name.lower().endswith(".gguf") for name in listed)


def side_files(listed: Collection[str]) -> list[str]:
    """All files to read but the weights: configuration, tokenizer, templates, the index of the shards."""
    return sorted(name for name in listed if _is_side(name, SINGLE in listed))


def _is_side(name: str, single: bool) -> bool:
    if name.startswith(_TEMPLATES):
        return name.endswith(".jinja") and "/" not in name[len(_TEMPLATES) :]
    if "/" in name or not name.endswith(_SIDE):
        return False
    return not name.endswith(".index.json") or (name == INDEX and not single)


def shards(what: str, listed: Collection[str], index: bytes) -> list[str]:
    """The weight files that an index names. Raises EIO for one that is not listed."""
    found = named_by(index, what)
    missing = sorted(found - set(listed))
    if missing:
        raise SyscallError(
            Errno.EIO,
            f"{what}: {INDEX} names {shown(missing[0])!r}, which is not there ({len(missing)} missing)",
        )
    return sorted(found)


def named_by(index: bytes, what: str) -> set[str]:
    """The files that an index names. Raises EIO."""
    try:
        found = json.loads(index)["weight_map"].values()
        shards = {checked(name) for name in found}
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise SyscallError(Errno.EIO, f"{what}: the weight_map of {INDEX} cannot be read ({error!r})") from None
    if not shards or len(shards) > _MOST_SHARDS or not all(name.endswith(".safetensors") for name in shards):
        raise SyscallError(Errno.EIO, f"{what}: the weight_map of {INDEX} names 1 to {_MOST_SHARDS} safetensors files")
    return shards


def no_weights(what: str, listed: Collection[str]) -> SyscallError:
    """Why there is nothing to read, and what is there instead."""
    here = [name for name in listed if "/" not in name]
    if "adapter_config.json" in here:
        return SyscallError(
            Errno.ENOEXEC,
            f"{what} is an adapter (LoRA), a change to a model and none by itself; merge it into its base with peft",
        )
    variants = sorted(name for name in here if name.endswith(".safetensors"))
    if variants:
        return SyscallError(
            Errno.ENOENT,
            f"{what} has {', '.join(map(shown, variants[:3]))}, but neither {SINGLE} nor {INDEX}, which are what is read",
        )
    pickles = sorted(name for name in here if name.endswith(_PICKLES) and not name.startswith("training_"))
    if pickles:
        return SyscallError(
            Errno.ENOEXEC,
            f"{what} has its weights as pickles only ({shown(pickles[0])}), which can run any program and are never "
            "read; take a repository with safetensors, or convert it with transformers' save_pretrained",
        )
    folders = sorted({name.rpartition("/")[0] for name in listed if name.endswith((f"/{SINGLE}", f"/{INDEX}"))})
    there = f"; there is one in {', '.join(map(shown, folders[:3]))}: name that" if folders else ""
    return SyscallError(Errno.ENOENT, f"{what} has no weights: no {SINGLE}, no {INDEX}{there}")


def quant_of(file: str) -> str:
    """The quantisation in a GGUF file's name, in capitals; empty if there is none."""
    stem = gguf_stem(file.rpartition("/")[2])
    found = list(_QUANT.finditer(stem))
    return found[-1]["quant"].upper() if found else ""


def gguf_stem(file: str) -> str:
    """A GGUF file's name without its ending and its part number."""
    split = _SPLIT.fullmatch(file)
    return split["stem"] if split else file[: -len(".gguf")] if file.lower().endswith(".gguf") else file


def gguf_models(listed: Collection[str]) -> dict[str, list[str]]:
    """The GGUF models among the files: for each its file, or its parts in order. Projectors of pictures (mmproj),
    importance matrices and models with missing parts are left out."""
    models: dict[str, list[str]] = {}
    for name in sorted(listed):
        base = name.rpartition("/")[2].lower()
        if base.endswith(".gguf") and not base.startswith("mmproj") and "imatrix" not in base:
            models.setdefault(gguf_stem(name), []).append(name)
    for stem, files in list(models.items()):
        split = _SPLIT.fullmatch(files[0])
        if split and [int(found["part"]) for file in files if (found := _SPLIT.fullmatch(file))] != list(
            range(1, int(split["parts"]) + 1)
        ):
            del models[stem]
    return models


def _what_there_is(listed: Collection[str]) -> str:
    """What there is among files without a whole GGUF model."""
    files = sorted(name for name in listed if name.lower().endswith(".gguf"))
    for name in files:
        if split := _SPLIT.fullmatch(name):
            parts = int(split["parts"])
            return f"{shown(name)} is one of {parts} parts, and they are not all there; download all of them"
    if not files:
        return "there is no GGUF file"
    return f"there is only {', '.join(map(shown, files[:3]))}, which goes with a model and is none (mmproj, imatrix)"


def gguf_files(what: str, listed: Collection[str], quant: str) -> list[str]:
    """The file, or the parts in order, of one quantisation. Raises ENOENT with those that are there."""
    models = gguf_models(listed)
    by_quant: dict[str, list[str]] = {}
    for stem, files in models.items():
        by_quant.setdefault(quant_of(files[0]) or stem.rpartition("/")[2].upper(), files)
    wanted = [quant.upper()] if quant else list(DEFAULT_QUANTS)
    for one in wanted:
        if one in by_quant:
            return by_quant[one]
    if not quant and len(by_quant) == 1:
        return next(iter(by_quant.values()))
    if not by_quant:
        raise SyscallError(Errno.ENOENT, f"{what} has no whole GGUF model: {_what_there_is(listed)}")
    there = ", ".join(shown(name) for name in sorted(by_quant))
    said = f"{what} has no {quant}" if quant else f"{what} has neither {' nor '.join(DEFAULT_QUANTS)}; name one"
    raise SyscallError(Errno.ENOENT, f"{said}; it has {there}{names.near(quant.upper(), by_quant)}")
