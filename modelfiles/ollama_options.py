"""Ollama's way to start a model: the `params` and the `system` text of its manifest's layers, in this system's terms.

Each field means what it means there: a temperature of 0 or less is greedy, `top_k` of 0 or less is off, a `seed` of -1 is
any, `num_predict` of 0 or less is as much as there is room for, and if a sampling field but no temperature is named, the
temperature is Ollama's own 0.8. An absent field is off, as in a generation_config.json. Differences: `repeat_penalty`
looks at the whole log (there at the last 64 tokens); fields about the machine (num_ctx, ...) and sampling that this
system does not do (mirostat, typical_p, presence_penalty, ...) are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmasos.modelfiles.files import shown
from llmasos.syscalls.errno import Errno, SyscallError

TEMPERATURE = 0.8  # Ollama's, if a model names none
WINDOW = -1  # of tokens: as many as there is room for
_MOST = (1 << 31) - 1
_MOST_SEED = (1 << 63) - 1
_MOST_STOPS = 64
_LEAST_TOP_P = 1e-9  # even 0 keeps one token


@dataclass(frozen=True, slots=True)
class Started:
    """A store's way to start its model. `sampling` has the named fields of a sampler; `max_tokens` bounds one answer: 0
    if it does not say, WINDOW for no bound of its own."""

    sampling: dict[str, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int = 0
    system: str = ""


def started(name: str, params: Mapping[str, Any], system: str) -> Started:
    """The settings in the layers of the model `name`. Raises EIO naming a field that cannot be."""
    seed = _whole(name, params, "seed", _MOST_SEED)
    tokens = _whole(name, params, "num_predict")
    return Started(
        _sampling(name, params),
        None if seed is None or seed < 0 else seed,
        _stops(name, params),
        0 if tokens is None else tokens if tokens > 0 else WINDOW,
        system,
    )


def _sampling(name: str, params: Mapping[str, Any]) -> dict[str, float]:
    chosen: dict[str, float] = {}
    if (top_k := _whole(name, params, "top_k")) is not None:
        chosen["top_k"] = max(0, top_k)
    if (top_p := _number(name, params, "top_p")) is not None:
        chosen["top_p"] = min(1.0, max(_LEAST_TOP_P, top_p))
    if (min_p := _number(name, params, "min_p")) is not None:
        chosen["min_p"] = min(1.0, max(0.0, min_p))
    temperature = _number(name, params, "temperature")
    if temperature is not None:
        chosen["temperature"] = max(0.0, temperature)
        if temperature > 100.0:
            raise _bad(name, "temperature", temperature, "0 to 100")
    elif chosen:
        chosen["temperature"] = TEMPERATURE
    penalty = _number(name, params, "repeat_penalty")
    if penalty is not None and _whole(name, params, "repeat_last_n") != 0:
        if not 0.0 < penalty <= 100.0:
            raise _bad(name, "repeat_penalty", penalty, "above 0 up to 100")
        chosen["repetition_penalty"] = penalty
    return chosen


def _stops(name: str, params: Mapping[str, Any]) -> tuple[str, ...]:
    found = params.get("stop")
    stops = [found] if isinstance(found, str) else [] if found is None else found
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops) or len(stops) > _MOST_STOPS:
        raise _bad(name, "stop", found, f"a text or a list of at most {_MOST_STOPS} texts")
    return tuple(dict.fromkeys(one for one in stops if one))


def _whole(name: str, params: Mapping[str, Any], key: str, most: int = _MOST) -> int | None:
    value = params.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -most <= value <= most or value != int(value):
        raise _bad(name, key, value, f"a whole number up to {most}")
    return int(value)


def _number(name: str, params: Mapping[str, Any], key: str) -> float | None:
    value = params.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_MOST <= value <= _MOST:
        raise _bad(name, key, value, "a number")
    return float(value)


def _bad(name: str, key: str, value: object, wanted: str) -> SyscallError:
    return SyscallError(
        Errno.EIO,
        f"{shown(name)}: its parameter {key} is {shown(repr(value)[:60])}, and {wanted} was wanted; mend its Modelfile "
        "(`ollama create`), or spawn it with defaults=False",
    )
