"""The CPU driver: this machine's cores. The native decoder (native/) runs what it knows, the torch engine all else;
torch is imported when the first such model comes.

Options: threads (default: one per core); dtype (fp32, bf16, int8, int4; default bf16 where the CPU multiplies it, else
fp32); installed (the directory of installed models, or no; default as drivers/places.py says); guess (rows of a small
step that may be guesses, engine/guess.py; 0: none); kv (what the native decoder keeps keys and values in, but for
models in fp32: bf16, or int8, which takes little more than half the memory; torch keeps them in the dtype of the
activations); early (yes or no: the native decoder begins the next step before it is asked for, engine/early.py;
default yes where `threads` leave a core to the kernel and the programs: with one to spare decoding gets a tenth
faster, with none no faster); swap (the most that the swap file may take, engine/swap_file.py; default 4 GiB, or a quarter
of the free disk if that is less; 0: none) and swapdir (where it lies, without a name).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import psutil

from llmasos.drivers import hal, places
from llmasos.drivers.cpu.native import library
from llmasos.drivers.device import Device
from llmasos.drivers.protocol import IMAGES, LOGPROBS, SIZES, VERSION, Hello
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Tier
from llmasos.syscalls.size import size

OPTIONS = ("threads", "dtype", "installed", "guess", "kv", "early", "swap", "swapdir")
NO_KV = "kv=int8 is for models that the native decoder runs; keys and values have the dtype of the activations"
GUESS_ROWS = 8  # one tile of rows: as many as are computed while the weights are read once
STREAM_TOKENS = 64  # rows from which the decoder in C is nearly as fast a row as with many more
MOST_GUESS_ROWS = 256
MOST_THREADS = 4096
_log = logging.getLogger(__name__)
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


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def open_device(options: Mapping[str, str]) -> Device:
    """Raises SyscallError(EINVAL) naming the option that is off."""
    for name in options:
        if name not in OPTIONS:
            raise SyscallError(Errno.EINVAL, f"the cpu driver has no option {name!r}; it has {', '.join(OPTIONS)}")
    cpu = hal.cpu()
    native = library.load()
    threads = options.get("threads") or str(cpu.cores)
    if not _is_number(threads) or not 1 <= int(threads) <= MOST_THREADS:
        raise SyscallError(Errno.EINVAL, f"threads={threads!r}: a number from 1 to {MOST_THREADS} was wanted")
    guess = options.get("guess") or str(GUESS_ROWS)
    if not _is_number(guess) or int(guess) > MOST_GUESS_ROWS:
        raise SyscallError(
            Errno.EINVAL, f"guess={guess!r}: a number of rows up to {MOST_GUESS_ROWS} was wanted, 0 for none"
        )
    early = options.get("early") or ("yes" if int(threads) < cpu.cores else "no")
    if early not in ("yes", "no"):
        raise SyscallError(Errno.EINVAL, f"early={early!r}: yes or no was wanted")
    kv = options.get("kv") or "bf16"
    if kv not in ("bf16", "int8"):
        raise SyscallError(Errno.EINVAL, f"kv={kv!r}: bf16 or int8 was wanted")
    if kv == "int8" and not isinstance(native, library.Library):
        raise SyscallError(Errno.EINVAL, f"kv=int8 needs the native decoder, but {native}")
    dtypes = ["fp32", "bf16"]
    refusals: dict[str, str] = {}
    no_int8 = ""
    if not cpu.int8:
        no_int8 = f"torch's int8 products saturate on a CPU without VNNI instructions ({cpu.model}); use bf16 or fp32"
    if isinstance(native, library.Library):
        dtypes += ["int8", "int4"]
    else:
        refusals["int4"] = f"it needs the native decoder, but {native}"
        if no_int8:
            refusals["int8"] = f"{no_int8}, or the native decoder, but {native}"
        else:
            dtypes.append("int8")
    default = options.get("dtype") or ("bf16" if cpu.bf16 else "fp32")
    if default not in dtypes:
        raise SyscallError(
            Errno.EINVAL,
            f"dtype={default!r}: {refusals.get(default, 'one of ' + ', '.join(dtypes) + ' was wanted')}",
        )

    share_cores()
    from llmasos.drivers.cpu.native.image import NativeKind
    from llmasos.drivers.cpu.native.installed import Store
    from llmasos.drivers.engine import torch_kind
    from llmasos.drivers.engine.disk_places import on_disk
    from llmasos.drivers.engine.engine import Engine
    from llmasos.drivers.engine.image import ImageKind
    from llmasos.drivers.engine.layout import TESTED
    from llmasos.drivers.engine.swap_file import open_swap

    swapdir = options.get("swapdir")
    swap = open_swap(size(options["swap"], "swap") if options.get("swap") else None, Path(swapdir) if swapdir else None)
    kinds: list[ImageKind] = [torch_kind.TorchKind("cpu", no_int8, NO_KV if kv == "int8" else "", int(threads))]
    if isinstance(native, library.Library):
        chosen = options.get("installed")
        directory = places.installed_directory() if chosen is None else None if chosen in ("", "no") else Path(chosen)
        store = Store(directory, int(threads)) if directory else None
        kinds.insert(0, NativeKind(native, int(threads), store, kv))
    hello = Hello(
        version=VERSION,
        kind="cpu",
        os_pid=os.getpid(),
        description=f"{cpu.model}, {threads} of {cpu.cores} cores, default {default}, "
        + (f"torch {torch}, " if (torch := torch_kind.version()) else "no torch, ")
        + (f"native {native.isa}" if isinstance(native, library.Library) else "no native decoder"),
        tiers=[
            Tier("ram", psutil.virtual_memory().total, 0.0),
            *([Tier("disk", swap.size, 0.0)] if swap else []),
        ],
        architectures=list(TESTED),
        dtypes=dtypes,
        features=[LOGPROBS, IMAGES],
        sizes=SIZES,
        stream_tokens=STREAM_TOKENS,
        guess_rows=int(guess),
    )
    return Engine(
        hello,
        default,
        refusals,
        lambda: int(psutil.virtual_memory().available),
        kinds,
        early=early == "yes",
        below=[on_disk(swap)] if swap else [],
        keep=not options.get("dtype"),
        digests=places.digests_directory(),
    )
