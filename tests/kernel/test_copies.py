"""The core is data: a copy of it, taken between any two events, goes on as the original does. So nothing that waits is
half done in a function, and no timer, wait or request of a copy reaches back into what it was copied from."""

from __future__ import annotations

import copy
import os

from hypothesis import settings

from llmasos.kernel.core import Kernel
from llmasos.kernel.events import Action, Event
from llmasos.simulator import invariants
from tests.kernel.machines.core import Core
from tests.kernel.machines.everything import Everything
from tests.kernel.machines.moves import Moves

EXAMPLES = int(os.environ.get("LLMASOS_TEST_EXAMPLES", "8"))
_EVERY = 7  # events between two copies; the events of a rule are few, so copies fall between any two of them


class Twinned(Kernel):
    """A kernel beside a copy of itself, which is handed the same events."""

    twin: Kernel | None = None
    events = 0

    def handle(self, event: Event, now: int) -> list[Action]:
        if self.events % _EVERY == 0:
            self.twin = None
            self.twin = copy.deepcopy(self)
        self.events += 1
        assert self.twin is not None
        actions = super().handle(event, now)
        assert Kernel.handle(self.twin, event, now) == actions, f"a copy of the core does something else with {event}"
        assert self.twin.recorded().difference(self.recorded()) == ""
        invariants.check(self.twin)
        return actions


class CopiedMoves(Moves):
    config = {**Moves.config, "core": Twinned}


class CopiedEverything(Everything):
    config = {**Everything.config, "core": Twinned}


TestCopiedMoves = CopiedMoves.TestCase
TestCopiedMoves.settings = settings(Core.TestCase.settings, max_examples=EXAMPLES)
TestCopiedEverything = CopiedEverything.TestCase
TestCopiedEverything.settings = settings(Core.TestCase.settings, max_examples=EXAMPLES)
