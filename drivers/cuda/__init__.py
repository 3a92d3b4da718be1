"""The CUDA driver: the torch engine on one GPU. Options: index (which GPU; 0), dtype (fp32, bf16; default bf16 where
the GPU has it, else fp32), host (bytes of the host's memory for KV frames that are moved out; a quarter of it), swap and
swapdir (as the CPU driver's: where they go when that is full).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import psutil

from llmasos.drivers import places
from llmasos.drivers.device import Device
from llmasos.drivers.protocol import IMAGES, LOGPROBS, SIZES, VERSION, Hello
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Tier
from llmasos.syscalls.size import size

OPTIONS = ("index", "dtype", "host", "swap", "swapdir")
SHARE_OF_HOST = 4  # of its memory one part may become a tier


def open_device(options: Mapping[str, str]) -> Device:
    """Raises ENODEV where there is no such GPU (or torch cannot use it), EINVAL for an option that is off."""
    for name in options:
        if name not in OPTIONS:
            raise SyscallError(Errno.EINVAL, f"the cuda driver has no option {name!r}; it has {', '.join(OPTIONS)}")
    index = options.get("index", "0")
    if not index.isdigit():
        raise SyscallError(Errno.EINVAL, f"index={index!r}: the number of a GPU was wanted")

    host = size(options["host"], "host") if options.get("host") else psutil.virtual_memory().total // SHARE_OF_HOST

    import torch

    from llmasos.drivers.engine.disk_places import on_disk
    from llmasos.drivers.engine.engine import Engine
    from llmasos.drivers.engine.host_places import HostPlaces
    from llmasos.drivers.engine.layout import TESTED
    from llmasos.drivers.engine.swap_file import open_swap
    from llmasos.drivers.engine.torch_kind import TorchKind

    if torch.version.cuda is None:
        raise SyscallError(
            Errno.ENODEV, f"torch {torch.__version__} is built without CUDA; install a CUDA build of torch"
        )
    if not torch.cuda.is_available() or int(index) >= torch.cuda.device_count():
        raise SyscallError(
            Errno.ENODEV,
            f"no GPU {index}: torch sees {torch.cuda.device_count()}; see nvidia-smi and CUDA_VISIBLE_DEVICES",
        )
    device = torch.device("cuda", int(index))
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = False  # fp32 means fp32
    properties = torch.cuda.get_device_properties(device)
    dtypes = ["fp32", "bf16"] if torch.cuda.is_bf16_supported(including_emulation=False) else ["fp32"]
    default = options.get("dtype", dtypes[-1])
    refusals = {"int8": "int8 products are for CPUs with VNNI; on a GPU use bf16"}
    if default not in dtypes:
        why = refusals.get(default, f"this GPU has {', '.join(dtypes)}")
        raise SyscallError(Errno.EINVAL, f"dtype={default!r}: {why}")
    swapdir = options.get("swapdir")
    swap = open_swap(size(options["swap"], "swap") if options.get("swap") else None, Path(swapdir) if swapdir else None)
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
        dtypes=dtypes,
        features=[LOGPROBS, IMAGES],
        sizes=SIZES,
        max_runs=64,
        step_tokens=2048,
    )
    kinds = [TorchKind(str(device))]
    return Engine(
        hello,
        default,
        refusals,
        lambda: torch.cuda.mem_get_info(device)[0],
        kinds,
        below=[*([HostPlaces] if host else []), *([on_disk(swap)] if swap else [])],
        digests=places.digests_directory(),
    )
