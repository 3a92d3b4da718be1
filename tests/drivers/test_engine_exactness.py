"""The engine against transformers itself, in fp32: the same greedy tokens and log-probabilities, however scheduled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmasos.drivers.cpu.native import library
from llmasos.drivers.cpu.native.config import FAMILIES
from llmasos.drivers.device import Device
from llmasos.drivers.engine.layout import TESTED
from llmasos.syscalls.errno import Errno, SyscallError
from tests import gguf_zoo, models_zoo
from tests.drivers.feeder import IMAGE, Feeder, engine
from tests.drivers.reference import DECODED, Reference, greedy, prompt

TOLERANCE = 1e-4  # of log-probabilities


class Case(NamedTuple):
    name: str
    device: Device
    reference: Reference


@pytest.fixture(scope="module", params=sorted(models_zoo.ZOO))
def case(request: pytest.FixtureRequest, zoo: Callable[[str], Path]) -> Iterator[Case]:
    directory = zoo(request.param)
    device = engine(directory)
    yield Case(request.param, device, greedy(directory, prompt()))
    device.unload(IMAGE)


def test_the_zoo_has_every_architecture_the_driver_declares() -> None:
    assert {kind for kind, _ in models_zoo.ZOO.values()} == set(TESTED)


def test_the_reference_is_worth_comparing_with(case: Case) -> None:
    """A model that repeats one token would agree with anything."""
    assert len(set(case.reference.tokens)) > 4


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_greedy_tokens_and_logprobs_are_those_of_transformers(case: Case, chunk: int) -> None:
    feeder = Feeder(case.device)
    process = feeder.spawn(case.reference.prompt)
    assert feeder.generate([process], DECODED, chunk, logprobs=5) == [case.reference.tokens]
    for ours, theirs in zip(process.logprobs, case.reference.logprobs, strict=True):
        assert ours.logprob == pytest.approx(float(theirs[ours.token]), abs=TOLERANCE)
        top = theirs.topk(5)
        assert ours.top_ids == top.indices.tolist()
        assert ours.top_logprobs == pytest.approx(top.values.tolist(), abs=TOLERANCE)
    feeder.end(process)


def test_tokens_do_not_depend_on_fifteen_neighbours(case: Case) -> None:
    feeder = Feeder(case.device)
    others = [feeder.spawn(prompt(seed, 3 + 7 * seed)) for seed in range(1, 16)]
    process = feeder.spawn(case.reference.prompt)
    made = feeder.generate([*others[:8], process, *others[8:]], DECODED, chunk=[5, 16, 1, 33])
    assert made[8] == case.reference.tokens
    for other in [*others, process]:
        feeder.end(other)


def test_forks_that_share_frames_decode_alike_and_apart(case: Case) -> None:
    feeder = Feeder(case.device)
    parent = feeder.spawn(case.reference.prompt)
    half = DECODED // 2
    first = feeder.generate([parent], half)[0]
    child, stray = feeder.fork(parent), feeder.fork(parent)
    stray.log[-1] = (stray.log[-1] + 1) % 256  # this one goes its own way, in its own copy of the last frame
    made = feeder.generate([parent, stray, child], DECODED - half)
    assert first + made[0] == first + made[2] == case.reference.tokens
    assert made[1] != made[0]
    for process in (parent, child, stray):
        feeder.end(process)


def test_a_preempted_process_is_rebuilt_from_its_log(case: Case) -> None:
    feeder = Feeder(case.device)
    process = feeder.spawn(case.reference.prompt)
    made = feeder.generate([process], 11)[0]
    feeder.preempt(process)
    squatter = feeder.spawn(prompt(5, 100))
    feeder.generate([squatter], 3)
    made += feeder.generate([process], DECODED - 11, chunk=9)[0]
    assert made == case.reference.tokens
    feeder.end(process)
    feeder.end(squatter)


def test_a_truncated_process_decodes_the_same_again(case: Case) -> None:
    feeder = Feeder(case.device)
    process = feeder.spawn(case.reference.prompt)
    feeder.generate([process], DECODED)
    feeder.truncate(process, len(case.reference.prompt) + 4)
    assert feeder.generate([process], DECODED - 4) == [case.reference.tokens[4:]]
    feeder.end(process)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    neighbours=st.lists(st.integers(1, 90), max_size=4),
    preempt_after=st.integers(0, 12),
)
def test_tokens_are_the_same_under_any_chunking(
    case: Case, sizes: list[int], neighbours: list[int], preempt_after: int
) -> None:
    feeder = Feeder(case.device)
    process = feeder.spawn(case.reference.prompt)
    others = [feeder.spawn(prompt(seed, length)) for seed, length in enumerate(neighbours)]
    made: list[int] = []
    if preempt_after:
        made = feeder.generate([process, *others], preempt_after, sizes)[0]
        feeder.preempt(process)
    made += feeder.generate([*others, process], 13 - preempt_after, sizes)[-1]
    assert made == case.reference.tokens[:13]
    for other in [*others, process]:
        feeder.end(other)


@pytest.mark.parametrize("name", sorted(name for name, (kind, _) in models_zoo.ZOO.items() if kind in FAMILIES))
def test_torch_too_decodes_what_the_native_decoder_knows(
    zoo: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a GPU, and where there was no compiler."""
    monkeypatch.setattr(library, "load", lambda: "it is switched off")
    device = engine(zoo(name))
    reference = greedy(zoo(name), prompt())
    for chunk in (1, [33, 7]):
        feeder = Feeder(device)
        others = [feeder.spawn(prompt(seed, 3 + 9 * seed)) for seed in range(1, 6)]
        process = feeder.spawn(reference.prompt)
        made = feeder.generate([*others, process], 12, chunk)[-1]
        child = feeder.fork(process)
        made += feeder.generate([*others, child], DECODED - 12)[-1]
        assert made == reference.tokens
        for one in [*others, process, child]:
            feeder.end(one)
    device.unload(IMAGE)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_a_long_prompt_crosses_the_tiles_of_attention(name: str, tmp_path: Path) -> None:
    """Beyond 512 keys attention works in tiles; beyond the window it starts in a later one."""
    directory = models_zoo.build(name, tmp_path / name, changes={"max_position_embeddings": 2048})
    reference = greedy(directory, prompt(1, 1100), 8)
    device = engine(directory)
    feeder = Feeder(device)
    for chunk in (1100, 250, [77, 300]):
        process = feeder.spawn(reference.prompt)
        assert feeder.generate([process], 8, chunk) == [reference.tokens]
        feeder.end(process)


_COMMON = models_zoo.ZOO["llama"][1]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("gemma", {"head_dim": 16}),
        ("olmo2", {}),
        ("starcoder2", {"sliding_window": 24}),
        ("granite", {"attention_multiplier": 0.3}),
        ("cohere", {}),
        ("smollm3", {}),
        ("phi", {}),
        ("gemma3_text", {"head_dim": 16, "sliding_window": 20, "query_pre_attn_scalar": 16}),
        ("olmo3", {"sliding_window": 20}),
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        (
            "qwen3_moe",
            {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
        ),
    ],
)
def test_other_architectures_are_taken_on_trial(
    kind: str, more: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of these is in the list of tested ones: their form is accepted, and a trial run agrees."""
    monkeypatch.setitem(models_zoo.ZOO, kind, (kind, _COMMON | more | {"tie_word_embeddings": False}))
    models_zoo.build(kind, tmp_path)
    device = engine(tmp_path)
    reference = greedy(tmp_path, prompt(), 12)
    process = Feeder(device).spawn(reference.prompt)
    assert Feeder(device).generate([process], 12, [20, 3]) == [reference.tokens]


@pytest.mark.parametrize(("dtype", "wrong"), [("fp32", 1.05), ("bf16", 1.5)])
def test_a_model_that_computes_something_else_fails_its_trial(
    dtype: str, wrong: float, zoo: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmasos.drivers.engine import attention, torch_kind

    monkeypatch.setattr(torch_kind, "TESTED", ())
    engine(zoo("gpt2"), dtype)
    plain = attention._attend
    monkeypatch.setattr(attention, "_attend", lambda *args: plain(*args) * wrong)
    with pytest.raises(SyscallError) as refused:
        engine(zoo("gpt2"), dtype)
    assert refused.value.errno == Errno.ENOEXEC
    assert "trial" in refused.value.reason


@pytest.mark.parametrize("name", ["gpt2", "phi3_longrope", "granitemoe", "qwen2_moe"])
def test_what_bf16_rounds_refuses_no_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 no two orders of summation agree to 1e-9: fp32 decides, and leaves the model as it was loaded."""
    from llmasos.drivers.engine import torch_kind, verify

    directory = models_zoo.build(name, tmp_path) if name in models_zoo.ZOO else gguf_zoo.build(name, tmp_path)
    usual = engine(directory, "bf16")
    wanted = Feeder(usual).generate([Feeder(usual).spawn(prompt())], 12)
    monkeypatch.setattr(torch_kind, "TESTED", ())
    monkeypatch.setitem(verify._TOLERANCE, torch.bfloat16, 1e-9)
    device = engine(directory, "bf16")
    assert Feeder(device).generate([Feeder(device).spawn(prompt())], 12) == wanted
