"""This system as a user gets it: a booted kernel with a CPU driver, asked by system calls through its sockets."""

from __future__ import annotations

import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from benchmarks.peers.protocol import Engine, Timing, serve
from llmasos.syscalls.table import Decode
from llmasos.userland.sdk.script import together
from llmasos.userland.sdk.system import System

# While all is stopped for the others' turns no heartbeat of the driver is heard: the kernel must not take it for a hang.
CONFIGURATION = "[kernel]\nhang_seconds = 86400\n"


class Llmasos(Engine):
    def __init__(self, dtype: str) -> None:
        self._dtype = dtype

    def load(self, model: str, threads: int, batch: int, context: int) -> str:
        configuration = Path(tempfile.mkdtemp(), "benchmark.toml")
        configuration.write_text(CONFIGURATION)
        place = tempfile.mkdtemp()  # not the usual one: a kernel of the user's may be there
        self._model = model
        # Without guessing: random weights soon repeat themselves, and no other engine here guesses.
        flags = ["--device", "cpu:guess=0", "--config", str(configuration)]
        self._system = System.connect(place, boot=True, flags=flags, name="benchmark")
        self._system.load(model, self._dtype)
        return f"LLMasOS {metadata.version('llmasos')}, {self._dtype}"

    def measure(self, prompts: list[list[int]], decode: int) -> Timing:
        system = self._system
        start = time.perf_counter()
        processes = [system.spawn(self._model, prompt, dtype=self._dtype) for prompt in prompts]
        pids = [process.pid for process in processes]
        first = system.run(together([Decode(pid, 1) for pid in pids]))
        prompted = time.perf_counter()
        others = system.run(together([Decode(pid, decode - 1) for pid in pids]))
        ended = time.perf_counter()
        for process in processes:
            process.end()
        tokens = [[*one.tokens, *rest.tokens] for one, rest in zip(first, others, strict=True)]
        return Timing(prompted - start, (ended - prompted) / (decode - 1), tokens)

    def close(self) -> None:
        if hasattr(self, "_system"):
            self._system.close()


if __name__ == "__main__":
    serve(Llmasos(sys.argv[1]))
