"""The simulated model: the next token as a pure function of the token log, the seed and the position.

A context is folded into a 64-bit hash, token by token, as git folds a history into a commit: two logs that differ
anywhere have different hashes from there on. The hash chooses `SUPPORT` candidate tokens and their order; the sampler
chooses among them as a real one does among logits. The model is no good at language, but any mistake in a block table,
a position or a copy changes its tokens, and `continuation` says what they should have been.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from llmasos.drivers.sim import script
from llmasos.drivers.sim.spec import ModelSpec
from llmasos.syscalls.records import Sampler, TokenLogprobs

SUPPORT = 64  # tokens with a probability above zero, or the whole vocabulary if that is smaller
TOP_LOGIT = 8.0  # of the first candidate; each further one has LOGIT_STEP less, so that some are negative
LOGIT_STEP = 0.35

_MASK = (1 << 64) - 1
_STRIDE = (1 << 31) - 1  # a prime above every vocabulary: candidates of one position are distinct


def mix(state: int, value: int) -> int:
    """Fold `value` into a 64-bit state: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014) over both."""
    z = ((state ^ value) + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def extend_chain(chain: list[int], root: int, tokens: Iterable[int]) -> None:
    """Append to `chain` (prefix hashes, one per log position) those of `tokens`; `root` is the model's own hash."""
    state = chain[-1] if chain else root
    for token in tokens:
        state = mix(state, token)
        chain.append(state)


def candidates(model: ModelSpec, state: int, said: int | None = None) -> list[int]:
    """The token ids with a probability above zero after a prefix, most probable first; `said` is what a script says.

    Every `eos_every`-th prefix (by its hash) has the end-of-sequence token in first place; no other has it at all.
    """
    ordinary = model.vocab - 1  # the last id is the end-of-sequence token
    count = min(SUPPORT, ordinary)
    first = state % ordinary
    step = _STRIDE % ordinary
    ids = [(first + i * step) % ordinary for i in range(count)]
    if model.eos_every and (state >> 32) % model.eos_every == 0:
        ids[0] = model.eos
    return ids if said is None else [said, *(token for token in ids if token != said)][:count]


def next_token(model: ModelSpec, state: int, sampler: Sampler, position: int, log: Sequence[int]) -> int:
    """The token that stands at `position` after the prefix with hash `state`; `log` serves the repetition penalty, and is
    all that counts for a model with a script."""
    if model.script:
        return script.following(model, log).token
    ids = candidates(model, state)
    if sampler.temperature == 0.0 and sampler.repetition_penalty == 1.0:
        return ids[0]
    logits = [TOP_LOGIT - LOGIT_STEP * i for i in range(len(ids))]
    if sampler.repetition_penalty != 1.0:
        seen = set(log)
        logits = [
            (x / sampler.repetition_penalty if x > 0 else x * sampler.repetition_penalty) if t in seen else x
            for t, x in zip(ids, logits, strict=True)
        ]
    if sampler.temperature == 0.0:
        return min(zip(ids, logits, strict=True), key=lambda pair: (-pair[1], pair[0]))[0]
    return _draw(ids, logits, sampler, position)


def _draw(ids: list[int], logits: list[float], sampler: Sampler, position: int) -> int:
    ranked = sorted(zip(ids, logits, strict=True), key=lambda pair: (-pair[1], pair[0]))
    if sampler.top_k:
        ranked = ranked[: sampler.top_k]
    top = ranked[0][1]
    weights = [math.exp((x - top) / sampler.temperature) for _, x in ranked]
    weights = [w for w in weights if w >= sampler.min_p]  # the greatest weight is 1
    total = sum(weights)
    kept, mass = 0, 0.0
    while kept < len(weights) and (kept == 0 or mass < sampler.top_p * total):
        mass += weights[kept]
        kept += 1
    u = (mix(mix(0, sampler.seed), position) >> 11) * 2.0**-53 * mass
    for i in range(kept - 1):
        u -= weights[i]
        if u < 0:
            return ranked[i][0]
    return ranked[kept - 1][0]


def logprobs(model: ModelSpec, state: int, token: int, count: int, said: int | None = None) -> TokenLogprobs:
    """Log-probabilities after the prefix with hash `state`: of `token`, and of the `count` most probable ones.

    They are log_softmax over the candidates; a repetition penalty never chooses a token that is none of them.
    """
    ids = candidates(model, state, said)
    logits = [TOP_LOGIT - LOGIT_STEP * i for i in range(len(ids))]
    norm = math.log(sum(math.exp(x) for x in logits))
    top = ids[:count]
    return TokenLogprobs(token, logits[ids.index(token)] - norm, top, [x - norm for x in logits[: len(top)]])


def continuation(
    model: ModelSpec, log: Sequence[int], sampler: Sampler, count: int, stop_ids: Iterable[int] = ()
) -> list[int]:
    """The tokens that a decode of up to `count` appends to `log`, from the definition alone: no frames, no steps."""
    tokens, stops = list(log), set(stop_ids)
    chain: list[int] = []
    extend_chain(chain, model.root, tokens)
    for _ in range(count):
        token = next_token(model, chain[-1], sampler, len(tokens), tokens)
        tokens.append(token)
        extend_chain(chain, model.root, [token])
        if token in stops:
            break
    return tokens[len(log) :]
