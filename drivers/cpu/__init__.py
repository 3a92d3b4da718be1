"""The CPU driver: this machine's cores. The native decoder (native/) runs what it knows, the torch engine all else;
torch is imported when the first such model comes. options.py says what can be chosen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import psutil

from llmasos.drivers import hal, places
from llmasos.drivers.cpu.native import library
from llmasos.drivers.cpu.options import Options
from llmasos.drivers.device import Device
from llmasos.drivers.engine import dtypes
from llmasos.drivers.engine.dtypes import Dtypes
from llmasos.drivers.options import parse
from llmasos.drivers.protocol import IMAGES, LOGPROBS, SIZES, VERSION, Hello
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Tier

NO_KV = "kv=int8 is for models that the native decoder runs; keys and values have the dtype of the activations"
STREAM_TOKENS = 64  # rows from which the decoder in C is nearly as fast a row as with many more
SPINS = "20000"  # some 0.4 ms


def share_cores() -> None:
    """Have OpenMP's threads spin only shortly for each other, then sleep. To be called before torch is imported.

    By default they spin for milliseconds, which is best while nobody else wants the cores. But at every barrier of a
    step, some hundred times, a thread that has lost its core to another program is waited for by one that burns the
    other: with two threads on two busy cores a step took ten times as long, and longer than with one thread. On idle
    cores 20,000 spins decode as fast as any number that was tried, 1,000 a tenth slower.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    os.environ.setdefault("KMP_BLOCKTIME", "0")


def _offer(cpu: hal.Cpu, native: library.Library | str, wanted: str) -> Dtypes:
    """The dtypes of this CPU, with or without the native decoder (then `native` says why). Raises EINVAL for a `wanted`
    one that is not among them."""
    offered = ["fp32", "bf16"]
    refused: dict[str, str] = {}
    if isinstance(native, library.Library):
        offered += ["int8", "int4"]
    else:
        refused["int4"] = f"it needs the native decoder, but {native}"
        if cpu.int8:
            offered.append("int8")
        else:
            refused["int8"] = f"{_no_int8(cpu)}, or the native decoder, but {native}"
    return dtypes.choose(offered, refused, wanted, "bf16" if cpu.bf16 else "fp32")


def _no_int8(cpu: hal.Cpu) -> str:
    """Why torch does not run int8 here, or ""."""
    if cpu.int8:
        return ""
    return f"torch's int8 products saturate on a CPU without VNNI instructions ({cpu.model}); use bf16 or fp32"


def _heed_switches(native: library.Library | str) -> None:
    """Raises EINVAL where the environment asks for what is not there: something else instead would look as if it had been
    heard."""
    if isinstance(native, str) and library.named():
        raise SyscallError(
            Errno.EINVAL,
            native if library.SWITCH in native else f"{library.SWITCH} names an instruction set, but {native}",
        )
    bf16 = os.environ.get(hal.BF16, "0")
    if bf16 not in ("0", "1"):
        raise SyscallError(Errno.EINVAL, f"{hal.BF16} is 0 or 1, found {bf16!r}")


def open_device(texts: Mapping[str, str]) -> Device:
    """The device with these options. Raises EINVAL for one that is off, by name; EIO."""
    chosen = parse(Options, texts, "the cpu driver")
    cpu, native = hal.cpu(), library.load()
    _heed_switches(native)
    if chosen.kv == "int8" and isinstance(native, str):
        raise SyscallError(Errno.EINVAL, f"kv=int8 needs the native decoder, but {native}")
    offer = _offer(cpu, native, chosen.dtype)
    threads = chosen.threads or cpu.cores

    share_cores()
    from llmasos.drivers.cpu.native.image import NativeKind
    from llmasos.drivers.cpu.native.installed import Store
    from llmasos.drivers.engine import torch_kind
    from llmasos.drivers.engine.disk_places import on_disk
    from llmasos.drivers.engine.engine import Engine
    from llmasos.drivers.engine.image import ImageKind
    from llmasos.drivers.engine.layout import TESTED
    from llmasos.drivers.engine.swap_file import open_swap

    swap = open_swap(chosen.swap, chosen.swapdir)
    kinds: list[ImageKind] = []
    if isinstance(native, library.Library):
        store = Store(chosen.installed, threads) if chosen.installed else None
        kinds.append(NativeKind(native, threads, store, chosen.kv))
    kinds.append(torch_kind.TorchKind("cpu", _no_int8(cpu), NO_KV if chosen.kv == "int8" else "", threads))
    hello = Hello(
        version=VERSION,
        kind="cpu",
        os_pid=os.getpid(),
        description=f"{cpu.model}, {threads} of {cpu.cores} cores, default {offer.default}, "
        + (f"torch {torch}, " if (torch := torch_kind.version()) else "no torch, ")
        + (f"native {native.isa}" if isinstance(native, library.Library) else "no native decoder"),
        tiers=[
            Tier("ram", psutil.virtual_memory().total, 0.0),
            *([Tier("disk", swap.size, 0.0)] if swap else []),
        ],
        architectures=list(TESTED),
        dtypes=list(offer.offered),
        features=[LOGPROBS, IMAGES],
        sizes=SIZES,
        stream_tokens=STREAM_TOKENS,
        guess_rows=chosen.guess,
        libraries={os.fspath(native.path): native.digest} if isinstance(native, library.Library) else {},
    )
    return Engine(
        hello,
        offer,
        kinds,
        lambda: int(psutil.virtual_memory().available),
        early=threads < cpu.cores if chosen.early is None else chosen.early,
        below=[on_disk(swap)] if swap else [],
        digests=places.digests_directory(),
    )
