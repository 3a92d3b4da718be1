"""Contexts: the block table and the tokens of a process, a cache of what the kernel has told the engine.

The kernel owns both, and sends a context whole that the engine does not know (protocol.Run). vLLM's InputBatch keeps the
same between steps; this keeps it per context, so that a context costs nothing while it does not run.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from llmasos.drivers.protocol import Run


@dataclass(slots=True)
class Context:
    """`table[i]` is the frame of block i. `log` holds the tokens at positions `start`, `start + 1`, ...: the
    whole log if `start` is 0, else the known end of it. `end` is the position after the last token computed."""

    image: int
    table: array[int] = field(default_factory=lambda: array("q"))
    log: array[int] = field(default_factory=lambda: array("q"))
    start: int = 0
    end: int = -1
    trust: float = 0.5  # that a guess at its next token holds (guess.py)

    def follow(self, run: Run) -> str:
        """Apply a run to the context. Returns the fault of the run, or ""."""
        if run.keep > len(self.table):
            return (
                f"context {run.ctx}: the run keeps {run.keep} blocks, the driver knows {len(self.table)}; send it whole"
            )
        del self.table[run.keep :]
        self.table.extend(run.blocks)
        if run.history is not None:
            if len(run.history) != run.position:
                return f"context {run.ctx}: history has {len(run.history)} tokens, position is {run.position}"
            self.log, self.start = array("q", run.history), 0
        elif self.start <= run.position <= self.start + len(self.log):
            del self.log[run.position - self.start :]
        else:
            self.log, self.start = array("q"), run.position
        self.log.extend(run.tokens)
        return ""

    def copy(self) -> Context:
        """An independent copy."""
        return Context(self.image, self.table[:], self.log[:], self.start, self.end, self.trust)

    def cut(self, tokens: int) -> None:
        """Forget the last `tokens` tokens, which were guessed wrong."""
        if tokens:
            del self.log[-tokens:]
            self.end -= tokens

    @property
    def complete(self) -> bool:
        """Is the log known from its first token on?"""
        return self.start == 0
