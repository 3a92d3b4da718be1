"""Processes that train together: who they are, what they add up, and that they leave together."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from threading import BrokenBarrierError, Thread

import torch
from torch import multiprocessing

BESIDE = 3
"""Numbers that the processes add up beside the gradients."""
PARTNER_TIMEOUT = 600.0
"""Seconds to wait for another process of the pool: a step takes one, a machine under load more."""


class Pool:
    """Processes that add up what they have found.

    Each has one thread, the whole model and its own optimisers; all add the same numbers in the same order, so their
    models stay equal to the bit. Two of them take a third less time than one with two threads.
    """

    def __init__(self, processes: int, parameters: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.size = processes
        given = torch.zeros(processes, parameters + BESIDE)
        self._given = given.share_memory_()  # type: ignore[no-untyped-call]
        self._barrier = context.Barrier(processes)
        self._context = context

    @contextmanager
    def others(self, work: Callable[..., object], *arguments: object) -> Iterator[None]:
        """While in here all but the first process do `work(rank, pool, *arguments)`."""
        started = []
        try:
            for rank in range(1, self.size):
                process = self._context.Process(target=work, args=(rank, self, *arguments), daemon=True)
                process.start()
                started.append(process)
            Thread(target=self._watch, args=(list(started),), daemon=True).start()
            yield
        finally:
            for process in started:
                process.terminate()
                process.join()

    def _watch(self, processes: list[SpawnProcess]) -> None:
        """Whoever waits for a process that has gone before its work was done waits no longer."""
        running = {process.sentinel: process for process in processes}
        while running:
            ended = connection.wait(list(running))
            for sentinel in [each for each in running if each in ended]:
                gone = running.pop(sentinel)
                gone.join()
                if gone.exitcode != 0:
                    self._barrier.abort()
                    return

    @staticmethod
    def leave_with_parent() -> None:
        """End this process when the first one has gone, however it went."""
        parent = multiprocessing.parent_process()
        if parent is not None:
            Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()

    def in_turn(self, rank: int, work: Callable[[], object]) -> None:
        """Every process does some work, one after the other.

        Raises:
            RuntimeError: another process has gone.
        """
        for turn in range(self.size):
            if turn == rank:
                work()
            self._meet()

    def _meet(self) -> None:
        try:
            self._barrier.wait(PARTNER_TIMEOUT)
        except BrokenBarrierError:
            gone = "a process of the pool has gone: start again to go on from the checkpoint"
            raise RuntimeError(gone) from None

    def add(self, rank: int, tensors: list[torch.Tensor], beside: list[float]) -> tuple[list[torch.Tensor], list[float]]:
        """The sums over all processes of every tensor and of BESIDE numbers beside.

        Raises:
            RuntimeError: another process has gone.
        """
        mine = self._given[rank]
        torch.cat([tensor.flatten() for tensor in tensors], out=mine[:-BESIDE])
        mine[-BESIDE:] = torch.tensor(beside)
        self._meet()
        total = self._given.sum(0)
        self._meet()  # nobody writes the next ones before all have read these
        parts = total[:-BESIDE].split([tensor.numel() for tensor in tensors])
        summed = [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
        return summed, total[-BESIDE:].tolist()
