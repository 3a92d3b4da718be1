"""Bringing a model's weights into memory, with transformers' own loader: names, shards, tied and converted weights.

What is added: the files are checked before anything is allocated, missing weights are an error (transformers would make
them up), and progress is told weight by weight, so that a slow disk does not look like a hang.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from drivers.engine.defaults import guard_transformers
from modelfiles import gguf, source
from modelfiles.files import broken
from modelfiles.tensors import SafetensorsWeights, Weights
from syscalls.errno import Errno, SyscallError


def quiet_transformers() -> None:
    """transformers' advice and progress bars have no reader in a driver. Before its first import."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def load_model(
    place: Path, weights: Weights, config: Any, dtype: torch.dtype, report: Callable[[float], None]
) -> nn.Module:
    """The model in `place` with its weights in `dtype`, on the CPU. `report` is called with fractions 0..1. Safetensors
    are left to transformers; of other forms it gets the values by name, so that its own conversions apply.

    Raises EIO for files that are broken or do not fit the configuration, ENOMEM.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils import logging

    loader: Any = AutoModelForCausalLM
    if isinstance(weights, SafetensorsWeights):
        source.check_weights(place)
        what: dict[str, Any] = {"pretrained_model_name_or_path": place, "use_safetensors": True}
    else:  # by the class itself: the automatic one looks for files
        loader = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        what = {"pretrained_model_name_or_path": None, "state_dict": _values(weights, report)}
    guard_transformers()
    previous = logging.set_tqdm_hook(lambda factory, args, kwargs: _Ticker(args, kwargs, report))
    try:
        model, info = loader.from_pretrained(
            **what,
            config=config,
            dtype=dtype,
            attn_implementation="eager",
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
        )
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise SyscallError(Errno.ENOMEM, f"no memory for the weights of {place}: {error}") from None
    except SyscallError:  # of `report`: nobody wants it any more
        raise
    except Exception as error:  # the loader's errors are of many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SyscallError(Errno.EIO, f"the weights in {place} cannot be loaded: {reason}") from None
    finally:
        logging.set_tqdm_hook(previous)
    for lack in ("missing_keys", "mismatched_keys"):
        if info[lack]:
            names = sorted(_named(key) for key in info[lack])
            raise broken(
                f"the weights in {place} do not fit its config.json: {lack.replace('_', ' ')} "
                f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}; download the model again, whole",
            )
    loaded: nn.Module = model.eval().requires_grad_(False)
    return loaded


def _named(key: object) -> str:
    """A weight that is missing, or has another shape: its name, what the files have, what the configuration wants."""
    if isinstance(key, tuple) and len(key) == 3:
        return f"{key[0]} {tuple(key[1])} for {tuple(key[2])}"
    return str(key)


def own(model: nn.Module, place: Path, dtype: torch.dtype, tick: Callable[[], None]) -> None:
    """Copy the weights that may lie where the files in `place` are mapped, as those do that needed no conversion: they
    stay what they are when somebody writes into a file, and end no driver (SIGBUS) when it is cut short."""
    if place.is_file():
        kinds = {entry.kind for entry in gguf.read_header(place).tensors.values()}
    else:
        kinds = {entry.kind for _, entries in source.read_headers(place) for entry in entries.values()}
    if ("F32" if dtype == torch.float32 else "BF16") not in kinds:
        return
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.dtype == dtype:
            tensor.data = tensor.data.clone()
            tick()


def _values(weights: Weights, report: Callable[[float], None]) -> dict[str, torch.Tensor]:
    """All weights as tensors, which look at the arrays' own memory."""
    values: dict[str, torch.Tensor] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*not writable", category=UserWarning
        )  # nothing writes to them
        for name in weights.names():
            tensor = weights.get(name)
            values[name] = torch.from_numpy(
                tensor.data.view(np.int16) if tensor.kind == "BF16" else tensor.data
            )
            if tensor.kind == "BF16":
                values[name] = values[name].view(torch.bfloat16)
            report(0.0)
    return values


class _Ticker:
    """Stands where transformers wants a tqdm bar: iterates, and reports how far it is."""

    def __init__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], report: Callable[[float], None]
    ) -> None:
        self._items: Iterable[Any] = args[0] if args else kwargs.get("iterable", ())
        self._report = report

    def __iter__(self) -> Iterator[Any]:
        items = list(self._items)
        for done, item in enumerate(items):
            yield item
            self._report((done + 1) / len(items))

    def __enter__(self) -> _Ticker:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None
