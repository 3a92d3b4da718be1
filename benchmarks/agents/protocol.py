"""What the comparison of agents and an engine's worker say to each other, beyond benchmarks/peers/protocol.py:

    {"do": "make room", "model": ..., "threads": ..., "room": a Room}   -> {"ok": "what was loaded"}
    {"do": "work", "work": a Work}                                      -> {"ok": an Outcome}

This file is imported in the environments of all engines: it needs the standard library and nothing else.
"""

from __future__ import annotations

import abc
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.agents.workload import Outcome, Turn, Work
from benchmarks.peers.protocol import Engine


@dataclass(frozen=True)
class Room:
    """KV memory for `places` contexts of `context` tokens. `outstanding`: the most turns at once. `swap`: what does not
    fit may be kept elsewhere, if the engine can."""

    places: int
    context: int
    outstanding: int
    swap: bool = True


class AgentsEngine(Engine):
    """An engine that agents work with. A context may be remembered from turn to turn as far as its memory goes, or where
    it is swapped to; nothing is from one piece of work to the next."""

    @abc.abstractmethod
    def make_room(self, model: str, threads: int, room: Room) -> str:
        """Load a model with so much KV memory, computed by `threads`; says what was loaded."""

    @abc.abstractmethod
    def work(self, work: Work) -> Outcome:
        """Compute the agents' contexts in their order, then do their turns."""

    def other(self, request: dict[str, Any]) -> Any:
        match request:
            case {"do": "make room", "model": model, "threads": threads, "room": room}:
                return self.make_room(model, threads, Room(**room))
            case {"do": "work", "work": work}:
                return asdict(self.work(Work(**work)))
            case _:
                return super().other(request)


def outcome(answer: dict[str, Any]) -> Outcome:
    """An Outcome as it was sent."""
    return Outcome(**{**answer, "turns": [Turn(**turn) for turn in answer["turns"]]})
