"""Bringing a model's weights into memory, with transformers' own loader: names, shards, tied and converted weights.

What is added: the files are checked before anything is allocated, missing weights are an error (transformers would make
them up), and progress is told weight by weight, so that a slow disk does not look like a hang.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from drivers.engine.defaults import guard_transformers
from modelfiles import source
from syscalls.errno import Errno, SyscallError


def quiet_transformers() -> None:
    """transformers' advice and progress bars have no reader in a driver. Before its first import."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def load_model(
    directory: Path, config: Any, dtype: torch.dtype, report: Callable[[float], None]
) -> nn.Module:
    """The model with its weights in `dtype`, on the CPU. `report` is called with fractions 0..1.

    Raises EIO for files that are broken or do not fit the configuration, ENOMEM.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    source.check_weights(directory)
    guard_transformers()
    previous = logging.set_tqdm_hook(lambda factory, args, kwargs: _Ticker(args, kwargs, report))
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            attn_implementation="eager",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise SyscallError(Errno.ENOMEM, f"no memory for the weights of {directory}: {error}") from None
    except SyscallError:  # of `report`: nobody wants it any more
        raise
    except Exception as error:  # the loader's errors are of many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SyscallError(Errno.EIO, f"the weights in {directory} cannot be loaded: {reason}") from None
    finally:
        logging.set_tqdm_hook(previous)
    for what in ("missing_keys", "mismatched_keys"):
        if info[what]:
            names = sorted(str(key) for key in info[what])
            raise SyscallError(
                Errno.EIO,
                f"the weights in {directory} do not fit its config.json: {what.replace('_', ' ')} "
                f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}; download the model again, whole",
            )
    loaded: nn.Module = model.eval().requires_grad_(False)
    return loaded


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
