"""Each call of kernel and driver fails in turn: `python -m tests.faults.campaign --resume FILE`.

Each place from which they call the operating system (found by a run without faults), with each fault that its call may
have, and with the first, second, third ... call there; see table.py for what must hold. FILE keeps what has been done, a
line of JSON for each case: a campaign goes on where it was ended. `--device cpu:threads=1` puts the embedded model's
driver under it, with its swap file and the native decoder; what it must say another kernel says, in which nothing fails.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from llmasos.syscalls.records import Signal
from llmasos.syscalls.table import Decode, Kill, Spawn
from tests.faults.shim import FAULTS, Shim, Site, build, fault_name, unavailable
from tests.faults.table import MOMENTS, Case, Moment, explore, possible, run
from tests.faults.target import SAMPLER, SIM, Agent, Broken, Say, Target


@contextmanager
def under_test(base: Path, library: Path | None = None, device: str = SIM) -> Iterator[tuple[Agent, Shim]]:
    """A kernel under the shim, and its agent."""
    shim = Shim(library or build(base), base)
    with ExitStack() as stack:
        say = stack.enter_context(_sound(base / "sound", device)) if device.startswith("cpu") else None
        target = stack.enter_context(Target(base, shim, (device,)).running())
        agent = Agent.born(target, say)
        stack.callback(lambda: agent.client.close())  # the one that it has then
        yield agent, shim


@contextmanager
def _sound(base: Path, device: str) -> Iterator[Say]:
    """What the embedded model says in a kernel in which nothing fails."""
    base.mkdir()
    with Target(base, None, (device,)).running() as target, target.connect(name="sound") as kernel:

        def say(log: list[int], count: int) -> list[int]:
            pid = kernel(Spawn("tiny", log, SAMPLER))
            said: list[int] = kernel(Decode(pid, count)).tokens
            kernel(Kill(pid, Signal.KILL))
            return said

        yield say


def cases(found: list[tuple[Moment, Site]], skips: int) -> list[Case]:
    """All rows of the table, the quick ones first."""
    rows = [
        Case(moment, site, fault, skip)
        for moment, site in found
        for fault in FAULTS[site.call]
        for skip in range(skips)
        if possible(site, fault)
    ]
    return sorted(rows, key=lambda case: (case.skip, case.moment.seconds))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__)
    parser.add_argument("--resume", type=Path, metavar="FILE", help="what has been done; it goes on from there")
    parser.add_argument("--skips", type=int, default=3, help="how many calls at each place fail in turn")
    parser.add_argument("--moment", action="append", choices=[moment.name for moment in MOMENTS], help="only these")
    parser.add_argument("--device", default=SIM, help="cpu:threads=1: the embedded model's")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases with this text in their names")
    parser.add_argument("--part", default="1/1", metavar="N/OF", help="one of so many parts, to run side by side")
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="in a drawn order")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so long")
    chosen = parser.parse_args(arguments)
    if why := unavailable():
        print(why, file=sys.stderr)
        return 1
    done = _done(chosen.resume)
    moments = tuple(moment for moment in MOMENTS if not chosen.moment or moment.name in chosen.moment)
    broken, began = 0, time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the kernel under test ends with it
    with (
        tempfile.TemporaryDirectory(prefix="llmasos-faults-") as place,
        under_test(Path(place), device=chosen.device) as (agent, shim),
    ):
        rows = [case for case in cases(explore(agent, shim, moments), chosen.skips) if chosen.only in case.key]
        part, parts = map(int, chosen.part.split("/"))
        mine = [case for case in rows if zlib.crc32(case.key.encode()) % parts == part - 1]
        left = [case for case in mine if case.key not in done]
        if chosen.shuffle is not None:
            random.Random(chosen.shuffle).shuffle(left)
        print(f"{len(rows)} cases at {len({case.site for case in rows})} places, {len(left)} are to be tried")
        for number, case in enumerate(left, 1):
            if time.monotonic() - began > chosen.seconds:
                print(f"{len(left) - number + 1} are left")
                break
            try:
                outcome = run(case, agent, shim)
                told = f"{'ended: ' if outcome.ended else ''}{outcome.line}" if outcome.fired else "not reached"
            except Broken as error:
                broken += 1
                told = f"BROKEN: {error}"
            if chosen.resume is not None:
                with chosen.resume.open("a") as file:
                    file.write(json.dumps({"case": case.key, "outcome": told}) + "\n")
            print(f"{number}/{len(left)} {case.moment.name}: {case.site} {fault_name(case.fault)}: {told}", flush=True)
    print(f"{broken} broken, {time.monotonic() - began:.0f} s")
    return 1 if broken else 0


def _done(path: Path | None) -> set[str]:
    if path is None or not path.exists():
        return set()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["case"] for line in lines if not line["outcome"].startswith("BROKEN")}


if __name__ == "__main__":
    sys.exit(main())
