"""Page-in of an installed model (native/installed.py) on the CPU: the yardstick model in int8 and int4, frames for 16
processes, weights checked by checksum.

The reference is reading the installed file's bytes from the page cache into fresh memory, in the same run, in turns.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.report import Figure
from benchmarks.yardstick import ensure_yardstick

ROUNDS = 7
FRAMES = 16 * 96 // 16
TARGET = 1.5


def run(rounds: int = ROUNDS) -> list[Figure]:
    """Seconds of a page-in beside those of the plain read, for int8 and int4."""
    from llmasos.drivers.cpu import open_device, share_cores
    from llmasos.drivers.protocol import Load, Probe

    share_cores()
    model = str(ensure_yardstick())
    figures = []
    for dtype in ("int8", "int4"):
        with tempfile.TemporaryDirectory() as directory:
            device = open_device({"dtype": dtype, "installed": directory})
            device.probe(Probe(1, model, dtype))
            load = Load(1, 1, model, dtype, FRAMES)
            device.fetch(load, lambda fraction: None)()  # installs it
            device.unload(1)
            (installed,) = (path for path in Path(directory).glob(f"[!.]*-{dtype}-*"))
            times: dict[str, list[float]] = {"page in": [], "read": []}
            for _ in range(rounds + 1):
                start = time.perf_counter()
                device.fetch(load, lambda fraction: None)()
                times["page in"].append(time.perf_counter() - start)
                device.unload(1)
                start = time.perf_counter()
                with installed.open("rb", buffering=0) as file:
                    size = len(file.readall())
                times["read"].append(time.perf_counter() - start)
        page_in, read = (statistics.median(times[name][1:]) for name in ("page in", "read"))  # the first warms
        figures.append(
            Figure(
                f"page-in of the installed yardstick model, {dtype}, {size / 1e6:.0f} MB",
                page_in * 1000,
                "ms",
                read * 1000,
                "reading its bytes from the page cache",
                TARGET,
                "lower",
            )
        )
    return figures


if __name__ == "__main__":
    from benchmarks.report import table

    print(table(run()))
