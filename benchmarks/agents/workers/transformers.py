"""transformers in bf16 with its own cache: the turns that wait are done in batches of as many contexts as there is
memory for, without padding, since in round robin they are equally long. The caches of the batches used last are kept;
one that is gone is computed again.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

from benchmarks.agents.protocol import AgentsEngine, Room
from benchmarks.agents.workload import Book, Outcome, Work
from benchmarks.peers.protocol import serve
from benchmarks.peers.workers.transformers import Transformers


class TransformersAgents(AgentsEngine, Transformers):
    def make_room(self, model: str, threads: int, room: Room) -> str:
        self._places = room.places
        return self.load(model, threads, room.places, room.context)

    def work(self, work: Work) -> Outcome:
        book = Book(work)
        self._caches: dict[tuple[int, ...], DynamicCache] = {}  # by batch, the longest unused first
        self._again = 0
        agents = list(range(len(work.contexts)))
        for begin in range(0, len(agents), self._places):
            batch = tuple(agents[begin : begin + self._places])
            self._forward(batch, [book.logs[agent] for agent in batch])
        self._again = 0
        waiting = book.ask()
        while not book.finished:
            batch = self._batch(waiting, book)
            done = 0
            for _ in range(work.decode):
                tokens = self._forward(batch, [book.logs[agent] for agent in batch])
                done = sum(book.got(agent, [token]) for agent, token in zip(batch, tokens, strict=True))
            assert done == len(batch)
            waiting = [agent for agent in waiting if agent not in batch] + book.ask()
        return book.outcome({"computed_again": self._again})

    def _batch(self, waiting: list[int], book: Book) -> tuple[int, ...]:
        """The first in line and those with equally long contexts behind it."""
        length = len(book.logs[waiting[0]])
        return tuple(agent for agent in waiting if len(book.logs[agent]) == length)[: self._places]

    def _forward(self, batch: tuple[int, ...], logs: list[list[int]]) -> list[int]:
        """The next token of each log, after what is not in the batch's cache has been computed."""
        cache = self._caches.pop(batch, None)
        if cache is None:
            while self._caches and sum(map(len, self._caches)) + len(batch) > self._places:
                del self._caches[next(iter(self._caches))]
            cache = DynamicCache()
            self._again += len(batch)
        self._caches[batch] = cache
        begin = int(cache.get_seq_length())
        ids = torch.tensor([log[begin:] for log in logs])
        with torch.inference_mode():
            output: Any = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return [int(token) for token in output.logits[:, -1].argmax(-1)]


if __name__ == "__main__":
    serve(TransformersAgents())
