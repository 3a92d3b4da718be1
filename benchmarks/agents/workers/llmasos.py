"""This system as a user gets it: a program with a process for each agent, asking by system calls through the sockets.

KV that does not fit goes to the CPU driver's disk tier. An urgent agent's process has class REALTIME, the others FAIR.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import trio
from msgspec.structs import replace

from benchmarks.agents.protocol import AgentsEngine, Room
from benchmarks.agents.workload import Book, Outcome, Work
from benchmarks.peers.protocol import serve
from benchmarks.peers.workers.llmasos import CONFIGURATION, Llmasos
from llmasos.syscalls import client
from llmasos.syscalls.records import SchedClass, Stats
from llmasos.syscalls.table import Decode, Feed, Read, Spawn, StatsCall
from llmasos.userland.sdk.system import System

BLOCK_TOKENS = 16
BF16_BYTES = 2


class LlmasosAgents(AgentsEngine, Llmasos):
    def make_room(self, model: str, threads: int, room: Room) -> str:
        frames = room.places * -(-room.context // BLOCK_TOKENS)
        configuration = Path(tempfile.mkdtemp(), "benchmark.toml")
        configuration.write_text(CONFIGURATION)
        self._place = tempfile.mkdtemp()
        self._model = model
        # Without guessing, as in the comparison of speeds.
        memory = frames * _frame_bytes(Path(model))
        options = ["guess=0", f"threads={threads}", f"kv_bytes={memory}", f"image_kv_bytes={memory}"]
        if not room.swap:
            options.append("swap=0")
        flags = ["--device", f"cpu:{','.join(options)}", "--config", str(configuration)]
        self._system = System.connect(self._place, boot=True, flags=flags, name="benchmark")
        info = self._system.load(model, self._dtype)
        if info.frames != frames:
            raise RuntimeError(f"the model got {info.frames} frames of KV, {frames} were meant")
        return f"{self._dtype}, {frames} frames, swap {'on' if info.slots else 'off'}"

    def work(self, work: Work) -> Outcome:
        return trio.run(self._work, work)

    async def _work(self, work: Work) -> Outcome:
        async with client.connect(self._place, name="agents") as kernel:
            pids: list[int] = []
            for agent, context in enumerate(work.contexts):
                spawn = Spawn(self._model, context, dtype=self._dtype)
                if agent == work.urgent:  # before all others, however much it takes
                    spawn = replace(spawn, sched_class=SchedClass.REALTIME, budget=0.8, period=1.0)
                pids.append(await kernel(spawn))
                await kernel(Decode(pids[agent], 0))  # answered when the context is computed
            before = await kernel(StatsCall())
            book = Book(work)
            async with trio.open_nursery() as agents:

                def ask() -> None:
                    for agent in book.ask():
                        agents.start_soon(turn, agent)

                async def turn(agent: int) -> None:
                    await _turn(kernel, pids[agent], agent, book)
                    ask()

                ask()
            return book.outcome(_counts(before, await kernel(StatsCall())))


async def _turn(kernel: client.Client, pid: int, agent: int, book: Book) -> None:
    """Feed and decode; another call waits for the first token meanwhile, an urgent agent's for each."""
    decode, seen = book.work.decode, 0
    start = await kernel(Feed(pid, book.fed(agent)))

    async def read() -> None:
        nonlocal seen
        while seen < (decode if agent == book.work.urgent else 1):
            result = await kernel(Read(pid, start + seen, follow=True))
            if not result.tokens:
                return  # it has ended; the decode says why
            seen += len(result.tokens)
            book.got(agent, result.tokens)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        result = await kernel(Decode(pid, decode))
    if len(result.tokens) != decode:
        raise RuntimeError(f"agent {agent} decoded {len(result.tokens)} tokens, not {decode}: {result.finish}")
    book.got(agent, result.tokens[seen:])


def _counts(before: Stats, after: Stats) -> dict[str, int]:
    names = ("steps", "tokens_computed", "preemptions", "refaults", "moved_out", "moved_in", "tokens_reused")
    return {name: getattr(after, name) - getattr(before, name) for name in names}


def _frame_bytes(model: Path) -> int:
    """Of the KV of a block in bf16."""
    config = json.loads((model / "config.json").read_text())
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    token = 2 * BF16_BYTES * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim
    return int(BLOCK_TOKENS * token)


if __name__ == "__main__":
    serve(LlmasosAgents(sys.argv[1]))
