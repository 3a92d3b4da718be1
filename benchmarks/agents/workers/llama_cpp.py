"""llama.cpp as its server does it: a slot (sequence) for each context that there is memory for, continuous batching, and
an agent without a slot gets that of the one that has been idle longest, whose state is saved to memory and restored later
(the server writes files; this is faster).
"""

from __future__ import annotations

import ctypes
import sys

import llama_cpp as lib

from benchmarks.agents.protocol import AgentsEngine, Room
from benchmarks.agents.workload import Book, Outcome, Work
from benchmarks.peers.protocol import serve
from benchmarks.peers.workers.llama_cpp import BATCH, LlamaCpp


class LlamaCppAgents(AgentsEngine, LlamaCpp):
    def make_room(self, model: str, threads: int, room: Room) -> str:
        self._slots = room.places
        return self.load(model, threads, room.places, room.context)

    def work(self, work: Work) -> Outcome:
        memory = lib.llama_get_memory(self._context)
        lib.llama_memory_clear(memory, False)
        self._saved: dict[int, ctypes.Array[ctypes.c_uint8]] = {}
        self._holder: dict[int, int] = {}  # slot -> agent
        self._idle = dict.fromkeys(range(self._slots))  # those not in use, the longest idle first
        self._moved = {"saved": 0, "restored": 0}
        for agent, context in enumerate(work.contexts):
            slot = self._slot(agent)
            for begin in range(0, len(context), BATCH):
                end = min(begin + BATCH, len(context))
                self._decode([(context[at], at, slot, at == len(context) - 1) for at in range(begin, end)])
            self._idle[slot] = None
        return self._turns(Book(work), [len(context) for context in work.contexts])

    def _turns(self, book: Book, computed: list[int]) -> Outcome:
        waiting = book.ask()
        slots: dict[int, int] = {}  # agent -> slot, of those whose turn is in the batch
        while not book.finished:
            while waiting and self._idle:
                # The next in line for whom there is a slot; those who still hold one are not better off.
                agent = waiting.pop(0)
                slots[agent] = self._slot(agent)
            rows: list[tuple[int, int, int, bool]] = []
            for agent, slot in slots.items():
                log = book.logs[agent]
                end = min(len(log), computed[agent] + BATCH - len(rows))
                rows += [(log[at], at, slot, at == len(log) - 1) for at in range(computed[agent], end)]
                computed[agent] = end
            tokens = self._decode(rows)
            for agent, slot in list(slots.items()):
                if slot in tokens and book.got(agent, [tokens[slot]]):
                    del slots[agent]
                    self._idle[slot] = None
                    waiting += book.ask()
        return book.outcome(self._moved)

    def _slot(self, agent: int) -> int:
        """A slot that holds what there is of the agent's context; it is in use from here on."""
        held = next((slot for slot in self._idle if self._holder.get(slot) == agent), None)
        if held is not None:
            del self._idle[held]
            return held
        slot = next(iter(self._idle))
        del self._idle[slot]
        if slot in self._holder:
            self._saved[self._holder[slot]] = self._save(slot)
        lib.llama_memory_seq_rm(lib.llama_get_memory(self._context), slot, -1, -1)
        self._holder[slot] = agent
        if agent in self._saved:
            self._restore(slot, self._saved.pop(agent))
        return slot

    def _save(self, slot: int) -> ctypes.Array[ctypes.c_uint8]:
        size = lib.llama_state_seq_get_size(self._context, slot)
        state = (ctypes.c_uint8 * size)()
        if lib.llama_state_seq_get_data(self._context, state, size, slot) != size:
            raise RuntimeError(f"the state of slot {slot} could not be saved")
        self._moved["saved"] += 1
        return state

    def _restore(self, slot: int, state: ctypes.Array[ctypes.c_uint8]) -> None:
        if not lib.llama_state_seq_set_data(self._context, state, len(state), slot):
            raise RuntimeError(f"the state of slot {slot} could not be restored")
        self._moved["restored"] += 1


if __name__ == "__main__":
    serve(LlamaCppAgents(sys.argv[1]))
