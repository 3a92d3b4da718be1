"""The CUDA driver: the torch engine on one GPU. `Options` says what can be chosen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from llmasos.drivers import places
from llmasos.drivers.device import Device
from llmasos.drivers.engine import dtypes
from llmasos.drivers.options import DIRECTORY, SIZE, WORD, number, option, parse
from llmasos.drivers.protocol import IMAGES, LOGPROBS, SIZES, VERSION, Hello
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Tier

if TYPE_CHECKING:
    import torch

MOST_GPUS = 1024
SHARE_OF_HOST = 4  # of its memory one part may become a tier


@dataclass(frozen=True, slots=True)
class Options:
    """What a person may choose; None, and an empty `dtype`: the driver chooses."""

    # The number of the GPU, as torch counts them.
    index: int = option(number(0, MOST_GPUS - 1), 0)
    # Of models for which no dtype is asked: fp32 or bf16. Default: bf16 where the GPU has it, else fp32.
    dtype: str = option(WORD, "")
    # Bytes of the host's memory for KV frames that are moved out; default: a quarter of it.
    host: int | None = option(SIZE, None)
    # Bytes of the swap file at most, for what the host's memory does not hold: as the CPU driver's.
    swap: int | None = option(SIZE, None)
    # The directory of the swap file.
    swapdir: Path | None = option(DIRECTORY, None)


def _gpu(index: int) -> torch.device:
    """The GPU, made the current one. Raises ENODEV where there is no such GPU, or torch cannot use it."""
    import torch

    if torch.version.cuda is None:
        raise SyscallError(
            Errno.ENODEV, f"torch {torch.__version__} is built without CUDA; install a CUDA build of torch"
        )
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise SyscallError(
            Errno.ENODEV,
            f"no GPU {index}: torch sees {torch.cuda.device_count()}; see nvidia-smi and CUDA_VISIBLE_DEVICES",
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = False  # fp32 means fp32
    return device


def open_device(texts: Mapping[str, str]) -> Device:
    """The device with these options. Raises EINVAL for one that is off, by name; ENODEV, EIO."""
    chosen = parse(Options, texts, "the cuda driver")
    host = psutil.virtual_memory().total // SHARE_OF_HOST if chosen.host is None else chosen.host
    device = _gpu(chosen.index)

    import torch

    from llmasos.drivers.engine.disk_places import on_disk
    from llmasos.drivers.engine.engine import Engine
    from llmasos.drivers.engine.host_places import HostPlaces
    from llmasos.drivers.engine.layout import TESTED
    from llmasos.drivers.engine.swap_file import open_swap
    from llmasos.drivers.engine.torch_kind import TorchKind

    properties = torch.cuda.get_device_properties(device)
    offered = ["fp32", "bf16"] if torch.cuda.is_bf16_supported(including_emulation=False) else ["fp32"]
    refused = {"int8": "int8 products are for CPUs with VNNI; on a GPU use bf16"}
    offer = dtypes.choose(offered, refused, chosen.dtype, offered[-1])
    swap = open_swap(chosen.swap, chosen.swapdir)
    hello = Hello(
        version=VERSION,
        kind="cuda",
        os_pid=os.getpid(),
        description=f"{properties.name}, {properties.total_memory >> 30} GiB, torch {torch.__version__}",
        tiers=[
            Tier("hbm", properties.total_memory, 0.0),
            *([Tier("host", host, 0.0)] if host else []),
            *([Tier("disk", swap.size, 0.0)] if swap else []),
        ],
        architectures=list(TESTED),
        dtypes=offered,
        features=[LOGPROBS, IMAGES],
        sizes=SIZES,
        max_runs=64,
        step_tokens=2048,
    )
    return Engine(
        hello,
        offer,
        [TorchKind(str(device))],
        lambda: torch.cuda.mem_get_info(device)[0],
        below=[*([HostPlaces] if host else []), *([on_disk(swap)] if swap else [])],
        digests=places.digests_directory(),
    )
