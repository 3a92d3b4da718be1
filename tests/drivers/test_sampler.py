"""The sampler against the exact distribution: the rules of syscalls.records.Sampler, and transformers' processors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.drivers.engine import sampler as rules
from llmasos.drivers.protocol import Sample
from llmasos.syscalls.records import Sampler

VOCAB = 40
DRAWS = 4000


def logits(seed: int = 0, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 2


def sample(
    rows: torch.Tensor, wanted: list[Sample], logs: Sequence[np.ndarray | None] | None = None
) -> list[rules.Choice]:
    return rules.sample(rows.numpy(), wanted, logs or [None] * len(rows))


def draw(row: torch.Tensor, sampler: Sampler, log: list[int] | None = None, draws: int = DRAWS) -> torch.Tensor:
    """How often each id comes in as many draws, each at a position of its own."""
    ids = np.array(log) if log else None
    counts = torch.zeros(len(row))
    for first in range(0, draws, 100):
        wanted = [Sample(sampler, first + i, True) for i in range(100)]
        for choice in sample(row.expand(100, -1), wanted, [ids] * 100):
            assert not choice.error
            counts[choice.token] += 1
    return counts


def exact(row: torch.Tensor, sampler: Sampler, log: list[int] | None = None) -> torch.Tensor:
    """The distribution that transformers' own processors leave, in the order of the ABI."""
    from transformers.generation import logits_process as warpers

    ids = torch.tensor([log or [0]])
    scores = row[None].clone()
    if sampler.repetition_penalty != 1.0:
        scores = warpers.RepetitionPenaltyLogitsProcessor(sampler.repetition_penalty)(ids, scores)
    scores = warpers.TemperatureLogitsWarper(sampler.temperature)(ids, scores)
    if sampler.top_k:
        scores = warpers.TopKLogitsWarper(sampler.top_k)(ids, scores)
    if sampler.min_p:
        scores = warpers.MinPLogitsWarper(sampler.min_p)(ids, scores)
    if sampler.top_p < 1.0:
        scores = warpers.TopPLogitsWarper(sampler.top_p)(ids, scores)
    return torch.softmax(scores[0].double(), 0)


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """The statistic over cells with at least 5 expected (the others pooled), and its 0.9995 quantile
    (Wilson-Hilferty)."""
    want = expected * counts.sum()
    large = want >= 5
    pairs = list(zip(counts[large].tolist(), want[large].tolist(), strict=True))
    rest = float(want[~large].sum())
    if rest >= 1:
        pairs.append((float(counts[~large].sum()), rest))
    freedom = max(len(pairs) - 1, 1)
    statistic = sum((got - wanted) ** 2 / wanted for got, wanted in pairs)
    quantile = freedom * (1 - 2 / (9 * freedom) + 3.29 * math.sqrt(2 / (9 * freedom))) ** 3
    return statistic, quantile


SAMPLERS = [
    Sampler(temperature=1.0, seed=1),
    Sampler(temperature=0.6, seed=2),
    Sampler(temperature=1.7, seed=3),
    Sampler(temperature=1.0, top_k=5, seed=4),
    Sampler(temperature=1.0, top_p=0.7, seed=5),
    Sampler(temperature=1.3, min_p=0.1, seed=6),
    Sampler(temperature=1.0, repetition_penalty=1.8, seed=7),
    Sampler(temperature=0.9, top_k=12, top_p=0.85, min_p=0.02, repetition_penalty=1.2, seed=8),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=range(len(SAMPLERS)))
def test_tokens_are_distributed_as_they_should(sampler: Sampler) -> None:
    log = [int(i) for i in logits().topk(3).indices] * 2 + [7]
    counts, expected = draw(logits(), sampler, log), exact(logits(), sampler, log)
    assert (counts[expected == 0] == 0).all(), "an id outside the support was drawn"
    statistic, quantile = chi_square(counts, expected)
    assert statistic < quantile


def test_the_chi_square_notices_a_wrong_temperature() -> None:
    statistic, quantile = chi_square(draw(logits(), Sampler(temperature=1.0)), exact(logits(), Sampler(temperature=1.15)))
    assert statistic > quantile


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_a_nucleus_in_a_large_vocabulary_is_that_of_the_definition(top_p: float, spread: float) -> None:
    """A flat distribution's nucleus is larger than the head that is looked at first."""
    row = logits(3, 5000) * spread
    sampler = Sampler(temperature=1.0, top_p=top_p)
    support = set(torch.nonzero(exact(row, sampler))[:, 0].tolist())
    drawn = set(torch.nonzero(draw(row, sampler, draws=400))[:, 0].tolist())
    assert drawn <= support
    if spread < 1:  # a draw rarely repeats one of many equals
        assert len(drawn) > 150


def test_greedy_takes_the_greatest_and_the_lowest_id_among_equals() -> None:
    row = torch.tensor([0.0, 3.0, 1.0, 3.0])
    assert sample(row[None], [Sample(Sampler(), 0, True)], [None])[0].token == 1


def test_greedy_looks_at_penalised_logits() -> None:
    row = torch.tensor([[0.5, 3.0, 2.0, -1.0]])
    want = [Sample(Sampler(repetition_penalty=2.0), 0, True)]
    assert sample(row, want, [np.array([1, 1, 1])])[0].token == 2
    assert sample(row, want, [np.array([0])])[0].token == 1


def test_a_token_depends_on_its_own_row_seed_and_position_only() -> None:
    rows = torch.stack([logits(seed) for seed in range(16)])
    samplers = [SAMPLERS[i % 6] if i % 6 < 6 else Sampler() for i in range(16)]
    wanted = [Sample(sampler, 10 + i, True, 3) for i, sampler in enumerate(samplers)]
    together = sample(rows, wanted, [None] * 16)
    for i in range(16):
        assert sample(rows[i : i + 1], wanted[i : i + 1], [None])[0] == together[i]


def test_the_number_of_a_token_is_that_of_its_seed_and_position() -> None:
    row = torch.zeros(1, 1000)
    first = [sample(row, [Sample(Sampler(temperature=1.0, seed=5), p, True)], [None])[0].token for p in range(20)]
    again = [sample(row, [Sample(Sampler(temperature=1.0, seed=5), p, True)], [None])[0].token for p in range(20)]
    other = [sample(row, [Sample(Sampler(temperature=1.0, seed=6), p, True)], [None])[0].token for p in range(20)]
    assert first == again
    assert first != other
    assert len(set(first)) > 15


def test_logprobs_are_of_the_raw_logits_sorted_and_lowest_id_first_among_equals() -> None:
    row = torch.tensor([1.0, 4.0, 2.0, 4.0, 0.0])
    choice = sample(row[None], [Sample(Sampler(temperature=0.2, top_k=1), 0, True, 4)], [None])[0]
    raw = torch.log_softmax(row, 0)
    assert choice.logprobs is not None
    assert choice.logprobs.top_ids == [1, 3, 2, 0]
    assert choice.logprobs.top_logprobs == pytest.approx(raw[[1, 3, 2, 0]].tolist())
    assert choice.logprobs.token == choice.token
    assert choice.logprobs.logprob == pytest.approx(float(raw[choice.token]))


def test_more_alternatives_than_the_vocabulary_has_are_all_of_it() -> None:
    choice = sample(logits()[None], [Sample(Sampler(), 0, True, 64)], [None])[0]
    assert choice.logprobs is not None
    assert sorted(choice.logprobs.top_ids) == list(range(VOCAB))


def test_a_run_that_only_asks_gets_the_greedy_token_in_its_logprobs_and_no_token() -> None:
    row = torch.tensor([1.0, 4.0, 2.0])
    choice = sample(row[None], [Sample(Sampler(temperature=5.0), 0, False, 0)], [None])[0]
    assert choice.token == -1
    assert choice.logprobs is not None
    assert (choice.logprobs.token, choice.logprobs.top_ids) == (1, [])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error_of_their_row_only(bad: float) -> None:
    rows = torch.stack([logits(), logits()])
    rows[0, 3] = bad
    broken, sound = sample(rows, [Sample(Sampler(), 9, True)] * 2, [None, None])
    assert "position 9" in broken.error
    assert (sound.error, sound.token) == ("", int(logits().argmax()))


def test_a_penalty_without_the_log_is_an_error_of_its_row_only() -> None:
    rows = torch.stack([logits(), logits()])
    wanted = [Sample(Sampler(repetition_penalty=1.5), 9, True), Sample(Sampler(), 9, True)]
    broken, sound = sample(rows, wanted, [None, None])
    assert "log" in broken.error
    assert not sound.error


@pytest.mark.parametrize("how", [Sampler(temperature=t, top_p=p) for t in (9e-7, 1e-46, 5e-324) for p in (1.0, 0.5)])
def test_a_tiny_temperature_is_greedy(how: Sampler) -> None:
    row = logits()[None] * 1e-30  # where even a small temperature would leave a choice
    want = Sample(how, 3, True)
    assert rules.is_plain(want)
    assert sample(row, [want])[0].token == int(row.argmax())


@pytest.mark.parametrize("how", [Sampler(temperature=1.1e-6), Sampler(temperature=1e-5, top_p=0.5)])
def test_a_small_temperature_is_as_good_as_greedy(how: Sampler) -> None:
    choice = sample(logits()[None] * 50, [Sample(how, 3, True)])[0]
    assert choice.token == int(logits().argmax())


@pytest.mark.parametrize("penalty", [1e-40, 1e-46, 1e39, 1e300, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_penalty_that_makes_scores_infinite_ends_its_row_alone_with_the_reason(
    penalty: float, temperature: float
) -> None:
    row = logits() * 10
    seen = np.array([int(row.argmin()), int(row.argmax())])
    odd = Sample(Sampler(temperature=temperature, repetition_penalty=penalty, seed=3), 9, True)
    plain = Sample(SAMPLERS[7], 9, True)
    neighbours = sample(torch.stack([row, row, row]), [plain, odd, plain], [seen] * 3)
    alone = sample(row[None], [plain], [seen])[0]
    assert "position 9 are not finite" in neighbours[1].error
    assert f"{penalty:g}" in neighbours[1].error
    assert neighbours[0] == neighbours[2] == alone
    assert not alone.error


def test_logits_of_minus_infinity_are_tokens_that_are_never_chosen() -> None:
    row = logits()
    row[row.argmax()] = -math.inf
    for how in (Sampler(), SAMPLERS[1], SAMPLERS[7]):
        choice = sample(row[None], [Sample(how, 5, True, 2)], [np.arange(VOCAB)])[0]
        assert not choice.error
        assert row[choice.token] > -math.inf


@settings(max_examples=200, deadline=None)
@given(
    row=st.lists(st.floats(width=32), min_size=1, max_size=300),
    temperature=st.floats(0, 1e38),
    top_k=st.integers(0, 400),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    penalty=st.floats(0, exclude_min=True),
    seed=st.integers(0, 2**63),
)
def test_sampling_is_total(
    row: list[float], temperature: float, top_k: int, top_p: float, min_p: float, penalty: float, seed: int
) -> None:
    """Whatever the scores and the sampler are, there is a token of the row or a reason, and the row stays as it was."""
    how = Sampler(temperature, top_k, top_p, min_p, penalty, seed=seed)
    scores = np.array(row, dtype=np.float32)
    before = scores.copy()
    choice = rules.sample(scores[None], [Sample(how, seed % 1000, True, 3)], [np.arange(len(row))[::2]])[0]
    assert scores.tobytes() == before.tobytes()
    assert (choice.token == -1) == bool(choice.error)
    if not choice.error:
        assert np.isfinite(scores[choice.token])
        assert choice.logprobs is not None
        assert math.isfinite(choice.logprobs.logprob)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 9000), count=st.integers(1, 300), levels=st.integers(1, 50), seed=st.integers(0, 99))
def test_the_greatest_are_those_of_a_stable_sort(size: int, count: int, levels: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, levels, size).astype(np.float32)
    order = np.argsort(-values, kind="stable")
    wanted = order[values[order] >= values[order[min(count, size) - 1]]]
    assert rules._greatest(values, count).tolist() == wanted.tolist()


@pytest.mark.parametrize("size", [1, 1000, 2048, 2049, 70_000])
@pytest.mark.parametrize("number", [0.0, 0.3, 1 - 2**-53])
def test_a_number_finds_the_place_where_the_cumulative_weight_exceeds_it(size: int, number: float) -> None:
    weights = np.random.default_rng(size).random(size).astype(np.float32)
    weights[: size // 3] = 0
    weights[-(size // 5) :] = 0 if size > 5 else weights[-1]
    exact = np.cumsum(weights.astype(np.longdouble))
    wanted = int(np.searchsorted(exact, np.longdouble(number) * exact[-1], side="right"))
    assert rules._invert(weights, number) == wanted
