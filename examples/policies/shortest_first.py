"""A scheduling policy: the process with the fewest tokens left to decode goes first, as shortest-job-first does it.

llmasos boot --policy examples/policies/shortest_first.py:ShortestFirst
"""

from llmasos.policies import LLMProcess, Policy


class ShortestFirst(Policy):
    """Those that wait grow more urgent with every token that others get, so nobody starves."""

    def woke(self, process: LLMProcess) -> None:
        process.policy_state = self.stamp()

    def key(self, process: LLMProcess) -> int:
        left = process.decoding.left if process.decoding is not None else 0
        return left + int(process.policy_state)

    def ran(self, process: LLMProcess, tokens: int) -> None:
        self.stamp()  # the stamps of those that wait fall behind
