"""generation_config.json: the ends of a model's text, and the sampling that its makers advise.

transformers' GenerationConfig is the model. Differences: an absent field is off (there `top_k` is 50 then); a temperature
or `top_p` without `do_sample` samples (there it is greedy and warns); ends that the file does not name are those of
config.json; and a value that cannot be is refused by name when the model is examined, not when it is sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmasos.modelfiles import bounds, files, gguf, gguf_config
from llmasos.modelfiles.files import broken, shown
from llmasos.syscalls.errno import SyscallError

FILE = "generation_config.json"
MOST_ENDS = 64  # ids that can end one decode
_MOST_ID = (1 << 31) - 1
_LEAST_TOP_P = 1e-9  # even 0 keeps one token


@dataclass(frozen=True, slots=True)
class Generation:
    """A model's generation settings by its files. None: the files say nothing, and it is off."""

    eos_ids: list[int] = field(default_factory=list)
    temperature: float | None = None  # 0: greedy
    top_k: int | None = None  # 0: off
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def read(directory: Path, config: Mapping[str, Any], default: object = None) -> Generation:
    """The settings in a model's directory or GGUF file, whose config.json holds `config`. `default` is the `eos_token_id`
    that the model's class uses if no file has the field. Raises EIO naming the file and the field."""
    file = directory / FILE
    if directory.is_file():
        file, found = directory, gguf_config.sampling_of(gguf.read_header(directory))
    else:
        found = _load(file)
    return Generation(
        eos_ids=_ends(found.get("eos_token_id"), file) or _ends_of_config(config, directory, default),
        temperature=_temperature(found, file),
        top_k=_top_k(found, file),
        top_p=_top_p(found, file),
        min_p=_number(found, "min_p", file, lambda x: 0.0 <= x <= 1.0, "0 to 1"),
        repetition_penalty=_number(found, "repetition_penalty", file, lambda x: 0.0 < x <= 100.0, "above 0 up to 100"),
    )


def _load(file: Path) -> dict[str, Any]:
    """The file's fields; none if there is no such file."""
    try:
        found = files.read_object(file)
    except FileNotFoundError:
        return {}
    bounds.check(found, file)
    return found


def _ends_of_config(config: Mapping[str, Any], directory: Path, default: object) -> list[int]:
    """The ends by config.json, of the whole model or (if that names none) of its text part."""
    file = directory / "config.json"
    text = config.get("text_config")
    parts = [config, text if isinstance(text, Mapping) else {}]
    for part in parts:
        if ends := _ends(part.get("eos_token_id"), file):
            return ends
    return [] if any("eos_token_id" in part for part in parts) else _ends(default, file)


def _ends(value: object, file: Path) -> list[int]:
    """A number, a list of numbers or null as ids, each once. An id that no token can have ends nothing, and is
    dropped."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for one in ids:
        if isinstance(one, bool) or not isinstance(one, int):
            raise _bad(file, "eos_token_id", one, "a token id, a list of them or null")
    if len(ids) > MOST_ENDS:
        raise broken(f"{shown(file)}: eos_token_id lists {len(ids)} ids, at most {MOST_ENDS} are taken")
    return [one for one in dict.fromkeys(ids) if 0 <= one <= _MOST_ID]


def _temperature(found: Mapping[str, Any], file: Path) -> float | None:
    """0 if the file turns sampling off, 1 if it turns it on and names no temperature."""
    samples = found.get("do_sample")
    if samples is not None and not isinstance(samples, bool):
        raise _bad(file, "do_sample", samples, "true, false or null")
    temperature = _number(found, "temperature", file, lambda x: 0.0 <= x <= 100.0, "0 to 100")
    if samples is False:
        return 0.0
    if temperature is not None:
        return temperature
    return 1.0 if samples or found.get("top_p") is not None else None


def _top_k(found: Mapping[str, Any], file: Path) -> int | None:
    value = found.get("top_k")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _bad(file, "top_k", value, "a number of tokens or null")
    return min(max(0, value), _MOST_ID)  # -1 is a common way to write off


def _top_p(found: Mapping[str, Any], file: Path) -> float | None:
    value = _number(found, "top_p", file, lambda x: 0.0 <= x <= 1.0, "0 to 1")
    return None if value is None else max(value, _LEAST_TOP_P)


def _number(found: Mapping[str, Any], name: str, file: Path, fits: Callable[[float], bool], wanted: str) -> float | None:
    value = found.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad(file, name, value, f"a number ({wanted}) or null")
    if not math.isfinite(value) or not fits(value):
        raise _bad(file, name, value, wanted)
    return float(value)


def _bad(file: Path, name: str, value: object, wanted: str) -> SyscallError:
    return broken(
        f"{shown(file)}: {name} is {shown(repr(value)[:60])}, and {wanted} was wanted; mend it, or remove the field",
    )
