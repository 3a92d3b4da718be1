"""This machine: instruction sets, cores, caches, memory and its bandwidth, GPUs, torch.

`python -m llmasos.drivers.hal` prints it for people, `--json` for programs, `--bandwidth` measures memory too (a second
or two). The keys of the JSON are the field names of `Machine` and the records below it, and stay. Linux tells by
/proc/cpuinfo and /sys; elsewhere what cannot be found out is empty or 0, never guessed.
"""

from __future__ import annotations

import argparse
import functools
import glob
import os
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec
import psutil

from llmasos.drivers import places

# /proc/cpuinfo's flags that decide which kernels are used, with what they are good for.
_NOTABLE = {
    "avx2": "8 fp32 at a time", "f16c": "fp16 conversion", "fma": "fused multiply-add",
    "avx512f": "16 fp32 at a time", "avx512_bf16": "bf16 products", "avx512_fp16": "fp16 arithmetic",
    "avx512_vnni": "int8 products", "avx_vnni": "int8 products", "amx_tile": "matrix tiles",
    "amx_bf16": "bf16 matrix products", "amx_int8": "int8 matrix products",
    "asimd": "4 fp32 at a time", "asimddp": "int8 dot products", "asimdhp": "fp16 arithmetic",
    "bf16": "bf16 products", "i8mm": "int8 matrix products", "sve": "scalable vectors", "sve2": "scalable vectors",
    "sme": "matrix tiles",
}  # fmt: skip
CPUINFO = Path("/proc/cpuinfo")
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
BF16 = "LLMASOS_BF16"  # "0" or "1": take this CPU for one that does not, or does, multiply bf16, and so its default dtype
_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}


@dataclass(frozen=True)
class Cpu:
    """`cores` are physical ones this process may use; `caches` bytes by name (L1d, L1i, L2, L3), one instance each."""

    model: str
    architecture: str
    cores: int
    threads: int
    isa: list[str]
    caches: dict[str, int]
    bf16: bool  # multiplies bf16 in hardware
    int8: bool  # multiplies u8 x s8 without saturating (x86 with VNNI)


@dataclass(frozen=True)
class Memory:
    """Bytes; `bandwidth` is bytes/s of reading, 0 if it was not measured."""

    total: int
    available: int
    bandwidth: float = 0.0


@dataclass(frozen=True)
class Gpu:
    index: int
    name: str
    memory: int  # bytes
    capability: str


@dataclass(frozen=True)
class Torch:
    version: str
    cpu_capability: str
    threads: int
    onednn: bool
    cuda: str  # the CUDA version torch is built for, or empty
    error: str = ""  # why torch could not be asked


@dataclass(frozen=True)
class Native:
    """The native decoder of the CPU driver: the instruction set it uses, or why it cannot be used; and the directory of
    installed models (empty: none are kept) with the bytes they take."""

    isa: str
    error: str = ""
    installed: str = ""
    installed_bytes: int = 0


@dataclass(frozen=True)
class Machine:
    system: str
    python: str
    cpu: Cpu
    memory: Memory
    torch: Torch
    native: Native
    gpus: list[Gpu] = field(default_factory=list)


@functools.cache
def cpu() -> Cpu:
    """This machine's processor, without torch."""
    fields = _cpuinfo()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    architecture = platform.machine()
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Cpu(
        model=fields.get("model name") or fields.get("Model") or platform.processor() or architecture,
        architecture=architecture,
        cores=min(psutil.cpu_count(logical=False) or threads, threads),
        threads=threads,
        isa=[flag for flag in _NOTABLE if flag in flags],
        caches=_caches(),
        bf16=bool(flags & _BF16) if BF16 not in os.environ else os.environ[BF16] == "1",
        int8=bool(flags & _VNNI),
    )


def _cpuinfo() -> dict[str, str]:
    """The first processor of CPUINFO; empty where there is none."""
    try:
        text = CPUINFO.read_text(errors="replace")
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def _caches() -> dict[str, int]:
    sizes: dict[str, int] = {}
    for place in sorted(glob.glob("/sys/devices/system/cpu/cpu0/cache/index*")):
        try:
            level, kind, size = (Path(place, name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(size[-1:], 1)
        sizes["L" + level + {"Data": "d", "Instruction": "i"}.get(kind, "")] = int(size.rstrip("KMG")) * unit
    return sizes


def memory(measure: bool = False) -> Memory:
    figures = psutil.virtual_memory()
    return Memory(int(figures.total), int(figures.available), read_bandwidth() if measure else 0.0)


def read_bandwidth(size: int = 256 << 20, seconds: float = 1.0) -> float:
    """Bytes/s that all cores together read from memory: the best of repeated looks at `size` bytes."""
    import numpy as np

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    data = np.ones(min(size, psutil.virtual_memory().available // 4) // 4, dtype=np.float32)
    parts = np.array_split(data, threads)
    best, until = 0.0, time.perf_counter() + seconds
    with ThreadPoolExecutor(threads) as pool:
        while time.perf_counter() < until:
            start = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, data.nbytes / (time.perf_counter() - start))
    return best


def torch_facts() -> tuple[Torch, list[Gpu]]:
    """torch as installed, and the GPUs it can use."""
    try:
        import torch
    except Exception as error:  # a broken installation raises whatever its libraries do
        return Torch("", "", 0, False, "", f"torch cannot be imported: {error}"), []
    gpus = []
    if torch.version.cuda is not None and torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            gpus.append(Gpu(index, found.name, found.total_memory, f"{found.major}.{found.minor}"))
    facts = Torch(
        version=str(torch.__version__),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        onednn=bool(torch.backends.mkldnn.is_available()),  # type: ignore[no-untyped-call]
        cuda=torch.version.cuda or "",
    )
    return facts, gpus


def native() -> Native:
    from llmasos.drivers.cpu.native import library  # here, because the CPU driver imports this file

    found = library.load()
    if isinstance(found, str):
        return Native("", found)
    directory = places.installed_directory()
    if directory is None:
        return Native(found.isa)
    taken = 0
    with suppress(OSError):  # what a driver replaces while it is looked at
        taken = sum(path.stat().st_size for path in directory.glob("*") if path.is_file())
    return Native(found.isa, "", str(directory), taken)


def machine(measure: bool = False) -> Machine:
    facts, gpus = torch_facts()
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        cpu=cpu(),
        memory=memory(measure),
        torch=facts,
        native=native(),
        gpus=gpus,
    )


def report(found: Machine) -> str:
    """The machine for people."""
    gib = 1 << 30
    caches = ", ".join(f"{name} {size >> 10} KiB" for name, size in found.cpu.caches.items()) or "unknown"
    ram = f"{found.memory.total / gib:.1f} GiB, {found.memory.available / gib:.1f} GiB available"
    if found.memory.bandwidth:
        ram += f", reads {found.memory.bandwidth / 1e9:.1f} GB/s"
    lines = [
        f"system    {found.system}, Python {found.python}",
        f"cpu       {found.cpu.model} ({found.cpu.architecture}), {found.cpu.cores} cores, {found.cpu.threads} threads",
        f"caches    {caches}",
        f"memory    {ram}",
        "isa       " + (", ".join(f"{flag} ({_NOTABLE[flag]})" for flag in found.cpu.isa) or "nothing notable found"),
        f"dtypes    fp32, bf16 ({'in hardware' if found.cpu.bf16 else 'emulated, slow'}), " + _whole(found),
        f"native    {found.native.isa or f'no: {found.native.error}'}",
    ]
    if found.torch.error:
        lines.append(f"torch     {found.torch.error}")
    else:
        lines.append(
            f"torch     {found.torch.version}, {found.torch.cpu_capability} kernels, {found.torch.threads} threads, "
            f"oneDNN {'yes' if found.torch.onednn else 'no'}, CUDA {found.torch.cuda or 'not built in'}"
        )
    lines += [f"gpu {gpu.index}     {gpu.name}, {gpu.memory / gib:.0f} GiB, sm {gpu.capability}" for gpu in found.gpus]
    if not found.gpus:
        lines.append("gpu       none that torch can use")
    return "\n".join(lines)


def _whole(found: Machine) -> str:
    """The dtypes of whole numbers."""
    if found.native.isa:
        return "int8, int4"
    return "int8" if found.cpu.int8 else "no int8 (needs VNNI or the native decoder)"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llmasos.drivers.hal", description="What this machine is.")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    parser.add_argument("--bandwidth", action="store_true", help="measure memory bandwidth too (a second or two)")
    chosen = parser.parse_args(arguments)
    found = machine(chosen.bandwidth)
    print(msgspec.json.encode(asdict(found)).decode() if chosen.json else report(found))
    return 1 if found.torch.error and not found.native.isa else 0


if __name__ == "__main__":
    sys.exit(main())
