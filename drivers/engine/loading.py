"""Bringing a model's weights into memory, with transformers' own loader: names, shards, tied and converted weights.

Beyond that loader, this checks the files before it allocates anything, refuses missing weights (transformers would make
them up), and reports progress weight by weight, so that a slow disk does not look like a hang.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from llmasos.drivers.engine.defaults import guard_transformers
from llmasos.modelfiles.files import broken
from llmasos.modelfiles.tensors import Weights
from llmasos.syscalls.errno import Errno, SyscallError


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
    """The model in `place` with its weights in `dtype`, on the CPU. `report` is called with fractions 0..1. transformers
    gets the weights by name, so that its own conversions apply, and each is read when it is needed. (Left to itself
    transformers maps the files, and a map kills the driver by SIGBUS when a file is cut short.)

    Raises EIO for files that are broken or do not fit the configuration, ENOMEM.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils import logging

    loader: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]  # by the class itself: the automatic one looks for files
    failures: list[Exception] = []
    values = {name: _Lazy(weights, name, failures) for name in weights.names()}
    guard_transformers()
    previous = logging.set_tqdm_hook(lambda factory, args, kwargs: _Ticker(args, kwargs, report))
    try:
        model, info = loader.from_pretrained(
            pretrained_model_name_or_path=None,
            state_dict=values,
            config=config,
            dtype=dtype,
            attn_implementation="eager",
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
        )
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise SyscallError(Errno.ENOMEM, f"no memory for the weights of {place}: {error}") from None
    except SyscallError:  # of `report`: nobody waits for the model any more
        raise
    except Exception as error:  # the loader's errors are of many kinds
        if failures:
            raise failures[0] from None
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


class _Lazy:
    """A weight that is read when the loader takes its values, in a thread of its own: as safetensors' slices are."""

    def __init__(self, weights: Weights, name: str, failures: list[Exception]) -> None:
        self._weights, self._name, self._failures = weights, name, failures

    def __getitem__(self, _: object) -> torch.Tensor:
        try:
            tensor = self._weights.get(self._name)
        except Exception as error:  # the loader would make another one of it
            self._failures.append(error)
            raise
        values = np.ascontiguousarray(tensor.data).reshape(tensor.shape)  # of one item too, without a dimension
        if tensor.kind == "BF16":
            return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(values)


class _Ticker:
    """Stands where transformers wants a tqdm bar: iterates, and reports how far it is."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], report: Callable[[float], None]) -> None:
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
