"""The runs of a step on a simulated device: each computes, and verifies the kernel's requests meanwhile.

A run writes its own slots and reads all slots before them through its block table; a frame that does not hold the hash of
this prefix is the kernel's fault, and the run says which slot is wrong. The slots that a run reads decide its token.
"""

from __future__ import annotations

import msgspec

from llmasos.drivers.protocol import BLOCK_TOKENS, Run, RunResult
from llmasos.drivers.sim import script, tokens
from llmasos.drivers.sim.memory import Context, Image, Memory

WRONG_EVERY = 4  # guesses


class Fault(Exception):
    """The kernel asked for something that a correct kernel does not ask for."""


class Unsaid(Exception):
    """The script says that the run fails, and why."""


class Runs:
    """The runs of one step, known by their index in it. All are written before any is read."""

    def __init__(self, memory: Memory) -> None:
        self._images = memory.images
        self._contexts = memory.contexts
        self._writers: dict[tuple[int, int], int] = {}  # (image, frame) -> the run that writes it in this step
        self.seconds = 0.0  # that the step takes longer, as a script says

    def write(self, run: Run, index: int) -> None:
        """Bring the context up to `run.position`, then write the run's own slots."""
        image = self._images.get(run.image)
        if image is None:
            raise Fault(f"image {run.image} is not loaded")
        if not image.weights:
            raise Fault(f"the weights of image {run.image} are not in memory")
        end = run.position + len(run.tokens)
        context = self._contexts.get(run.ctx)
        table = (context.table[: run.keep] if context else []) + run.blocks
        if len(table) != run.keep + len(run.blocks):
            raise Fault(f"keeps {run.keep} blocks of a table of {len(table) - len(run.blocks)}")
        if not run.tokens or end > image.model.context or end > BLOCK_TOKENS * len(table):
            raise Fault(f"tokens {run.position}..{end} do not fit {len(table)} blocks and window {image.model.context}")
        if len(set(table)) != len(table) or not 0 <= min(table) <= max(table) < image.frames:
            raise Fault(f"table {table} has a frame twice or one outside of {image.frames} frames")
        if not all(0 <= t < image.model.vocab for t in run.tokens):
            raise Fault(f"a token outside of the vocabulary of {image.model.vocab}")
        context = self._begin(run, image, context, table)
        del context.log[run.position :], context.chain[run.position :]
        context.log.extend(run.tokens)
        tokens.extend_chain(context.chain, image.root, run.tokens)
        self._store(run, index, run.position, end)

    def read(self, run: Run, index: int) -> None:
        """Attention: every slot up to the run's end must hold this prefix, and be nobody else's in this step."""
        image, context = self._images[run.image], self._contexts[run.ctx]
        chain, end = context.chain, run.position + len(run.tokens)
        for block, first in enumerate(range(0, end, BLOCK_TOKENS)):
            frame = context.table[block]
            held = image.hashes.get(frame, [])
            wanted = chain[first : first + BLOCK_TOKENS]
            if held[: len(wanted)] != wanted:
                slot = next((i for i, (a, b) in enumerate(zip(held, wanted, strict=False)) if a != b), len(held))
                raise Fault(f"frame {frame} slot {slot} does not hold position {first + slot} of this context")
            if self._writers.get((run.image, frame), index) != index:
                raise Fault(f"frame {frame} is written by another run of the step that reads it")

    def sample(self, run: Run) -> RunResult:
        s, context, m = run.sample, self._contexts[run.ctx], self._images[run.image].model
        if s is None:
            return RunResult(run.ctx)
        if s.position != len(context.log):
            raise Fault(f"samples for position {s.position}; the next one is {len(context.log)}")
        if s.sampler.repetition_penalty != 1.0 and not context.told:
            raise Fault("a repetition penalty, and no history was sent")
        state = context.chain[-1]
        said = self._said(run) if m.script else None
        token = tokens.candidates(m, state, said)[0]
        if s.append:
            token = tokens.next_token(m, state, s.sampler, s.position, context.log)
        alternatives = tokens.logprobs(m, state, token, s.logprobs, said) if s.logprobs else None
        return RunResult(run.ctx, token if s.append else -1, alternatives)

    def guess(self, run: Run, index: int, result: RunResult) -> RunResult:
        """Guess as far ahead as the run allows: right some times in a row, then wrong, which stays in its slot."""
        s = run.sample
        if s is None or not s.append or not run.ahead:
            return result
        image, context = self._images[run.image], self._contexts[run.ctx]
        if image.model.script:
            return self._finish_word(run, index, result)
        held = [result.token]
        for position in range(len(context.log), len(context.log) + run.ahead):
            if position + 1 >= image.model.context:
                break
            right = tokens.mix(context.chain[-1], position) % WRONG_EVERY > 0
            guess = held[-1] if right else (held[-1] + 1) % image.model.vocab
            context.log.append(guess)
            tokens.extend_chain(context.chain, image.root, [guess])
            self._store(run, index, position, position + 1)
            if not right:
                del context.log[-1], context.chain[-1]
                break
            held.append(tokens.next_token(image.model, context.chain[-1], s.sampler, position + 1, context.log))
        return msgspec.structs.replace(result, more=held[1:])

    def _said(self, run: Run) -> int:
        """What the script says after the context. Raises Unsaid if it says that the run fails."""
        context = self._contexts[run.ctx]
        following = script.following(self._images[run.image].model, context.log)
        if following.error:
            raise Unsaid(following.error)
        self.seconds = max(self.seconds, following.seconds)
        return following.token

    def _finish_word(self, run: Run, index: int, result: RunResult) -> RunResult:
        """Go on with what the script says to the end of the word, as far as the run allows."""
        image, context = self._images[run.image], self._contexts[run.ctx]
        model, held = image.model, [result.token]
        following = script.following(model, context.log)
        for position in range(len(context.log), len(context.log) + run.ahead):
            if following.ends or held[-1] == model.eos or position + 1 >= model.context:
                break
            context.log.append(held[-1])
            tokens.extend_chain(context.chain, image.root, held[-1:])
            self._store(run, index, position, position + 1)
            following = script.following(model, context.log)
            if following.error:
                break
            held.append(following.token)
        return msgspec.structs.replace(result, more=held[1:])

    def _store(self, run: Run, index: int, first: int, end: int) -> None:
        """Write the context's tokens at positions first .. end - 1 to their slots."""
        image, context = self._images[run.image], self._contexts[run.ctx]
        for block in range(first // BLOCK_TOKENS, (end - 1) // BLOCK_TOKENS + 1):
            frame = context.table[block]
            if self._writers.setdefault((run.image, frame), index) != index:
                raise Fault(f"frame {frame} is written by two runs of the step")
            lo, hi = max(first, block * BLOCK_TOKENS), min(end, (block + 1) * BLOCK_TOKENS)
            slot = lo - block * BLOCK_TOKENS
            kept = image.tokens.get(frame, [])[:slot]
            if len(kept) != slot:
                raise Fault(f"frame {frame} holds {len(kept)} tokens; slot {slot} cannot be next")
            image.tokens[frame] = kept + context.log[lo:hi]
            image.hashes[frame] = image.hashes.get(frame, [])[:slot] + context.chain[lo:hi]

    def _begin(self, run: Run, image: Image, context: Context | None, table: list[int]) -> Context:
        """The run's context, its log known up to `run.position` and found in the frames of `table`."""
        if context is not None and context.image != run.image:
            raise Fault(f"context was of image {context.image}; exec must drop it first")
        if run.history is not None:
            if len(run.history) != run.position:
                raise Fault(f"history of {len(run.history)} tokens before position {run.position}")
            context = Context(run.image, table, list(run.history), [], told=True)
            tokens.extend_chain(context.chain, image.root, context.log)
            self._contexts[run.ctx] = context
        elif context is None:
            context = Context(run.image, table, [], [], told=run.position == 0)
            for block in range((run.position + BLOCK_TOKENS - 1) // BLOCK_TOKENS):
                context.log.extend(image.tokens.get(table[block], []))
            del context.log[run.position :]
            tokens.extend_chain(context.chain, image.root, context.log)
            self._contexts[run.ctx] = context
        if len(context.log) < run.position:
            raise Fault(f"only {len(context.log)} tokens are known before position {run.position}")
        context.table = table
        return context
