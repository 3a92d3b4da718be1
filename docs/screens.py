"""`python -m docs.screens`: the pictures of screens in the documents, dark and light, each of a real session.

A kernel with a simulated device is booted, agents are started on it, and the program looks at them; what its screen shows
goes into docs/screens as SVG. Nothing in it is drawn by hand.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmasos.syscalls import blocking
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.records import Signal
from llmasos.syscalls.table import Decode, GroupCreate, GroupMove, Kill, Setsched, Spawn
from llmasos.userland.programs.boot import private_kernel
from llmasos.userland.top.app import TopApp
from llmasos.userland.top.live import Live

PLACE = Path(__file__).with_name("screens")
SIZE = (108, 26)
SECONDS = 12.0  # of a session, so that sparklines have a past
_DEVICE = "sim:memory=15.2g,swap=2g,overhead=0.02,max_runs=3"
_MODEL = "sim:7b,context=16000"
_TEAM = {"planner": 300, "coder": 900, "critic": 200, "reviewer": 120}  # names, and tokens of their prompts
_FETCHED = re.compile(r"@font-face \{.*?\}", re.DOTALL)  # a picture fetches nothing: the reader's own font does


@contextmanager
def session(place: Path) -> Iterator[blocking.Client]:
    """Two programs with agents that decode, wait, and are stopped; gives the connection of a third."""
    with (
        private_kernel(place, ["--device", _DEVICE]),
        blocking.connect(place, name="shell") as shell,
        blocking.connect(place, name="team.py") as team,
        blocking.connect(place, name="top") as top,
    ):
        shell(GroupCreate("/users/research"))
        shell(GroupMove(team.pid, "/users/research"))
        pids = {name: team(Spawn(_MODEL, [7] * size, name=name)) for name, size in _TEAM.items()}
        pids |= {name: shell(Spawn(_MODEL, [9] * 60, name=name)) for name in ("alice", "bob")}
        team(Setsched(pids["coder"], nice=-5))
        team(Setsched(pids["reviewer"], nice=10))
        threads = []
        for name in ("planner", "coder", "critic", "reviewer", "alice"):
            threads.append(threading.Thread(target=_decode, args=(shell if name == "alice" else team, pids[name])))
            threads[-1].start()
        time.sleep(SECONDS / 4)
        team(Kill(pids["critic"], Signal.STOP))
        try:
            yield top
        finally:
            for pid in pids.values():
                shell(Kill(pid, Signal.KILL))
            for thread in threads:
                thread.join()


def _decode(kernel: blocking.Client, pid: int) -> None:
    with suppress(SyscallError):  # it is ended when the picture is taken
        kernel(Decode(pid=pid, max_tokens=15_000))


async def _pictures(kernel: blocking.Client) -> dict[str, str]:
    live = Live(kernel, 0.5)
    app = TopApp(live, light=False)
    made = {}
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause(SECONDS)
        for _ in range(3):
            await pilot.press("down")
        for name in ("dark", "light"):
            made[name] = app.export_screenshot(title="llmasos top")
            await pilot.press("T")
            await pilot.pause(0.5)
    live.stop()
    return made


def main() -> None:
    with tempfile.TemporaryDirectory() as base, session(Path(base) / "run") as kernel:
        pictures = asyncio.run(_pictures(kernel))
    PLACE.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        path = PLACE / f"top-{name}.svg"
        lines = (
            line.rstrip() for line in _FETCHED.sub("", picture).replace("Fira Code, monospace", "monospace").splitlines()
        )
        path.write_text("\n".join(line for line in lines if line) + "\n")
        print(path)


if __name__ == "__main__":
    main()
