"""The engines that are compared: how each is run, and what there must be for that."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from benchmarks.peers.peer import ROOT, Peer, PeerError

ENVIRONMENTS = ROOT / ".peers"
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Engine:
    """An engine with weights of one form. `environment`: the one of .peers it lives in; empty: this program's own.
    `converted`: the suffix of the model in its own format; empty: it reads checkpoints. `variables`: of its processes'
    environment. `command`: of its worker, if it is none of ours."""

    name: str
    key: str
    worker: str = ""
    form: str = ""
    environment: str = ""
    converted: str = ""
    variables: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    command: tuple[str, ...] = ()

    @property
    def home(self) -> Path:
        return ENVIRONMENTS / self.environment

    def missing(self) -> str:
        """Why it cannot be run; empty if it can."""
        if self.environment and not (self.home / ".installed").exists():
            return "not installed: run `make peers`"
        return ""

    def start(self, cpus: list[int], logs: Path, scratch: Path | None = None) -> Peer:
        """Start its worker on these CPUs; its temporary files are in a directory in `scratch`. Raises PeerError."""
        python = str(self.home / "bin" / "python") if self.environment else sys.executable
        command = self.command or (
            python,
            "-m",
            f"benchmarks.peers.workers.{self.worker}",
            *filter(None, [self.form]),
        )
        theirs = {**_quiet(self.home), **_threads(len(cpus))} if self.environment else {}
        place = {"TMPDIR": str(scratch)} if scratch else {}
        return Peer(self.name, command, cpus, logs / f"{self.key}.log", {**theirs, **self.variables, **place})

    def model(self, checkpoint: Path, cpus: list[int], logs: Path, seconds: float) -> Path:
        """The model in the engine's format, beside the checkpoint; converted if it is not there yet. Raises PeerError."""
        if not self.converted:
            return checkpoint
        place = checkpoint.with_name(f"{checkpoint.name}.{self.converted}")
        if place.exists():
            return place
        try:
            with self.start(cpus, logs, scratch=checkpoint.parent) as worker:
                worker.ask(seconds, do="convert", source=str(checkpoint), place=str(place))
        except PeerError:
            if not place.exists():  # else somebody else was first
                raise
        return place


def _quiet(home: Path) -> dict[str, str]:
    """An engine's environment tells nobody of its use, asks no hub, and finds its own programs first."""
    return {
        "PATH": f"{home / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }


def _threads(count: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count), "OPENBLAS_NUM_THREADS": str(count)}


def _vllm() -> dict[str, str]:
    """What vLLM's manual asks for on CPUs, its compilations kept with the benchmark's models, and no second process."""
    from benchmarks.yardstick import cache

    openmp = ENVIRONMENTS / "vllm" / "lib" / "libiomp5.so"
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CACHE_ROOT": str(cache() / "vllm"),
        "VLLM_LOGGING_LEVEL": "WARNING",
        **({"LD_PRELOAD": str(openmp)} if openmp.exists() else {}),
    }


def engines() -> list[Engine]:
    """All, in the order of the table."""
    vllm = _vllm()
    return [
        Engine("LLMasOS int8", "llmasos-int8", "llmasos", "int8"),
        Engine("LLMasOS int4", "llmasos-int4", "llmasos", "int4"),
        Engine("transformers bf16", "transformers", "transformers"),
        Engine("llama.cpp Q8_0", "llama.cpp-q8_0", "llama_cpp", "q8_0", "llama_cpp", "q8_0.gguf"),
        Engine("llama.cpp Q4_0", "llama.cpp-q4_0", "llama_cpp", "q4_0", "llama_cpp", "q4_0.gguf"),
        Engine("vLLM bf16", "vllm-bf16", "vllm", "bf16", "vllm", variables=vllm),
        Engine("vLLM int8", "vllm-int8", "vllm", "int8", "vllm", "w8a8", variables=vllm),
        Engine("OpenVINO int8", "openvino-int8", "openvino", "", "openvino", "openvino-int8"),
    ]


def cpus() -> list[int]:
    """One CPU of each physical core that this process may use: what all engines are bound to."""
    chosen: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core = siblings.read_text().strip() if siblings.exists() else str(cpu)
        chosen.setdefault(core, cpu)
    return list(chosen.values())
