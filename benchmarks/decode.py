"""Sixteen processes decoding on the yardstick model in int8, as a user gets them: through kernel and sockets.

Beside it, in the same run and taking turns: the driver's engine called directly, and transformers' batch-16 `generate` in
bf16. The speed through the kernel is that of whole decodes, from the first call sent to the last answer received.
"""

from __future__ import annotations

import statistics
import time

from benchmarks.engine_decode import EngineBench, TransformersBench
from benchmarks.report import Figure
from benchmarks.yardstick import DECODED_TOKENS, ensure_yardstick, prompts
from llmasos.syscalls.table import Decode
from llmasos.userland.sdk.script import together
from llmasos.userland.sdk.system import System

ROUNDS = 5
PROCESSES = 16
DTYPE = "int8"
OF_TRANSFORMERS, OF_THE_DRIVER = 1.5, 0.9


class SystemBench:
    """A booted system with one CPU driver and the yardstick model."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._model = str(ensure_yardstick())
        system.load(self._model, DTYPE)

    def measure(self) -> float:
        """Decoded tokens/s of all processes together."""
        system = self._system
        processes = [system.spawn(self._model, prompt, dtype=DTYPE) for prompt in prompts(PROCESSES)]
        pids = [process.pid for process in processes]
        system.run(together([Decode(pid, 1) for pid in pids]))  # the prompts are computed
        start = time.perf_counter()
        results = system.run(together([Decode(pid, DECODED_TOKENS - 1) for pid in pids]))
        elapsed = time.perf_counter() - start
        for process in processes:
            process.end()
        return sum(len(result.tokens) for result in results) / elapsed


def run(rounds: int = ROUNDS) -> list[Figure]:
    """The speed through the kernel, beside transformers' and the driver's own."""
    from llmasos.drivers.cpu import share_cores

    share_cores()  # before torch is there: the engine called directly spins as the driver does; transformers is as fast
    transformers, driver = TransformersBench(), EngineBench(DTYPE)
    speeds: dict[str, list[float]] = {"transformers": [], "driver": [], "system": []}
    with System.connect(boot=True, flags=["--device", "cpu"], name="benchmark") as system:
        whole = SystemBench(system)
        whole.measure()  # warm
        driver.measure(PROCESSES)
        for _ in range(rounds):
            speeds["system"].append(whole.measure())
            driver.measure(PROCESSES)
            speeds["driver"].append(driver.whole)
            speeds["transformers"].append(transformers.measure(PROCESSES)[1])
    median = {name: statistics.median(values) for name, values in speeds.items()}
    what = f"{PROCESSES} processes decode, {DTYPE}, through the kernel"
    return [
        Figure(
            what,
            median["system"],
            "tok/s",
            median["transformers"],
            "transformers bf16",
            OF_TRANSFORMERS,
            "higher",
        ),
        Figure(what, median["system"], "tok/s", median["driver"], "the driver directly", OF_THE_DRIVER, "higher"),
    ]


if __name__ == "__main__":
    from benchmarks.report import table

    print(table(run()))
