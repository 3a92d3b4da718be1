"""The simulated device: its tokens, its checks of what the kernel tells it, its costs, and the failures it acts out."""

from __future__ import annotations

from collections import Counter
from math import exp, fsum
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.drivers.device import Device
from llmasos.drivers.protocol import Copy, Load, Probe, Run, Sample, Step, StepDone
from llmasos.drivers.sim import open_device, roofline, tokens
from llmasos.drivers.sim.device import SimDevice
from llmasos.drivers.sim.fate import Fate
from llmasos.drivers.sim.spec import DeviceSpec, ModelSpec, model, parse
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Sampler

SPEC = DeviceSpec(time_scale=0.0)
MODELS = ModelSpec(vocab=1000, context=256)
SIM = model("sim", "", MODELS)
PROMPT = [5, 6, 7] * 9  # two blocks, the second in part
ids = st.integers(0, SIM.vocab - 2)


class Died(Exception):
    pass


class Hung(Exception):
    pass


class Recorded(Fate):
    """Deaths and hangs are raised, sleeps are noted."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def die(self) -> NoReturn:
        raise Died

    def hang(self) -> NoReturn:
        raise Hung

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def loaded(frames: int = 32, **options: Any) -> SimDevice:
    device = SimDevice(DeviceSpec(**{"time_scale": 0.0, **options}), MODELS, Recorded())
    device.fetch(Load(1, 1, "sim", "", frames), lambda _: None)()
    return device


def run(ctx: int, position: int, toks: list[int], blocks: list[int], keep: int = 0, **more: Any) -> Run:
    sampler = more.pop("sampler", Sampler())
    sample = Sample(sampler, position + len(toks), True, more.pop("logprobs", 0))
    return Run(ctx, 1, position, toks, keep, blocks, more.pop("sample", sample), **more)


def step(device: SimDevice, *runs: Run, copies: list[Copy] | None = None) -> StepDone:
    return device.step(Step(1, list(runs), copies or []))


def decode(device: SimDevice, ctx: int, log: list[int], table: list[int], count: int, sampler: Sampler) -> list[int]:
    """Drive one context by hand: the prompt in one run, then token after token."""
    out = list(log)
    token = step(device, run(ctx, 0, log, table, sampler=sampler)).results[0].token
    out.append(token)
    for _ in range(count - 1):
        result = step(device, run(ctx, len(out) - 1, out[-1:], [], keep=len(table), sampler=sampler)).results[0]
        assert result.error == ""
        out.append(result.token)
    return out[len(log) :]


def test_a_device_made_from_options_is_a_device_and_says_what_it_is() -> None:
    device: Device = open_device({"memory": "8Gi", "bandwidth": "2t", "max_runs": "4", "vocab": "77"})
    hello = device.hello()
    assert (hello.kind, hello.max_runs, hello.tiers[0].size) == ("sim", 4, 8 * 2**30)
    assert device.probe(Probe(9, "sim", "")).vocab == 77


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"colour": "red"}, "no option 'colour'"),
        ({"vocab": "many"}, "vocab='many': a whole number"),
        ({"vocab": "1.5"}, "vocab='1.5': a whole number"),
        ({"flops": "nan"}, "flops='nan': a number"),
        ({"bandwidth": "0"}, "bandwidth must be above zero, found 0"),
        ({"max_runs": "-2"}, "max_runs must be above zero, found -2"),
        ({"overhead": "-1"}, "overhead is at least 0, found -1"),
        ({"fail_load": "EWHAT"}, "no error 'EWHAT'"),
    ],
)
def test_a_wrong_option_is_refused_with_its_name(options: dict[str, str], said: str) -> None:
    with pytest.raises(SyscallError, match=said) as caught:
        parse(options)
    assert caught.value.errno is Errno.EINVAL


@pytest.mark.parametrize(
    ("path", "errno"),
    [
        ("tiny", Errno.ENOENT),
        ("/models/llama", Errno.ENOENT),
        ("sim:7b,arch=mamba", Errno.ENOEXEC),
        ("sim:7b,fail=EIO", Errno.EIO),
        ("sim:7b,heads=3", Errno.EINVAL),
        ("sim:7b,vocab", Errno.EINVAL),
        ("sim:vocab=1", Errno.EINVAL),
    ],
)
def test_a_model_that_cannot_be_is_refused_with_its_errno(path: str, errno: Errno) -> None:
    with pytest.raises(SyscallError) as caught:
        loaded().probe(Probe(1, path, ""))
    assert caught.value.errno is errno


def test_a_models_name_declares_its_size_and_shape() -> None:
    probed = loaded().probe(Probe(1, "sim:1.5b,layers=2,kv_dim=8,eos_every=3", "int8"))
    assert probed.parameters == probed.weight_bytes == 1_500_000_000
    assert probed.block_bytes == 16 * 2 * 2 * 8 * 2
    assert probed.eos_ids == [999]
    assert loaded().probe(Probe(1, "sim:1b", "fp32")).weight_bytes == 4_000_000_000


def test_an_unknown_dtype_is_not_supported() -> None:
    with pytest.raises(SyscallError) as caught:
        loaded().probe(Probe(1, "sim", "fp8"))
    assert caught.value.errno is Errno.ENOTSUP


def test_loading_more_than_the_memory_holds_is_enomem_and_unloading_makes_room() -> None:
    device = SimDevice(DeviceSpec(memory=20 * 10**9, time_scale=0.0), MODELS, Recorded())
    device.fetch(Load(1, 1, "sim:7b", "", 10), lambda _: None)()
    with pytest.raises(SyscallError) as caught:
        device.fetch(Load(2, 2, "sim:7b", "", 10), lambda _: None)()
    assert caught.value.errno is Errno.ENOMEM
    device.unload(1)
    assert device.fetch(Load(3, 2, "sim:7b", "", 10), lambda _: None)().weight_bytes == 14 * 10**9
    with pytest.raises(SyscallError):
        device.unload(1)


def test_a_load_fails_as_the_option_says() -> None:
    device = SimDevice(DeviceSpec(fail_load="EIO", time_scale=0.0), MODELS, Recorded())
    with pytest.raises(SyscallError) as caught:
        device.fetch(Load(1, 1, "sim", "", 4), lambda _: None)()
    assert caught.value.errno is Errno.EIO


# --- tokens ---------------------------------------------------------------------------------------------------------

samplers = st.builds(
    Sampler,
    temperature=st.sampled_from([0.0, 0.7, 2.0]),
    top_k=st.sampled_from([0, 1, 5]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    seed=st.integers(0, 2**63 - 1),
)


@given(log=st.lists(ids, min_size=1, max_size=40), sampler=samplers, chunk=st.integers(1, 17))
def test_tokens_are_those_of_the_definition_however_the_prompt_is_chunked(
    log: list[int], sampler: Sampler, chunk: int
) -> None:
    device, table = loaded(), [9, 3, 7, 1]
    at = 0
    while len(log) - at > chunk:
        part = run(1, at, log[at : at + chunk], table if at == 0 else [], 0 if at == 0 else 4, sample=None)
        assert step(device, part).results[0].error == ""
        at += chunk
    out = list(log)
    for _ in range(5):
        part = run(1, at, out[at:], table if at == 0 else [], 0 if at == 0 else 4, sampler=sampler)
        result = step(device, part).results[0]
        assert result.error == ""
        at, out = len(out), [*out, result.token]
    assert out[len(log) :] == tokens.continuation(SIM, log, sampler, 5)
    assert device.faults == []


@given(log=st.lists(ids, min_size=2, max_size=20), at=st.integers(0, 19), other=ids)
def test_one_other_token_anywhere_gives_another_continuation(log: list[int], at: int, other: int) -> None:
    at %= len(log)
    changed = [*log[:at], other, *log[at + 1 :]]
    same = tokens.continuation(SIM, log, Sampler(), 4) == tokens.continuation(SIM, changed, Sampler(), 4)
    assert same == (log == changed)


def test_the_same_log_continues_differently_on_another_model_or_precision() -> None:
    outs = [
        tokens.continuation(model(path, dtype, MODELS), PROMPT, Sampler(), 6)
        for path, dtype in [("sim", "bf16"), ("sim", "int8"), ("sim:7b", "bf16")]
    ]
    assert len({tuple(o) for o in outs}) == 3


def test_a_sampled_token_depends_on_seed_and_position_only() -> None:
    hot = [Sampler(temperature=1.5, seed=s) for s in range(40)]
    state = 12345
    at_10 = [tokens.next_token(SIM, state, s, 10, []) for s in hot]
    assert at_10 == [tokens.next_token(SIM, state, s, 10, []) for s in hot]
    assert len(set(at_10)) > 5
    assert at_10 != [tokens.next_token(SIM, state, s, 11, []) for s in hot]


def test_sampling_follows_the_softmax_of_the_logits() -> None:
    state, draws = 777, 4000
    sampler = Sampler(temperature=1.0)
    seen = Counter(tokens.next_token(SIM, state, sampler, p, []) for p in range(draws))
    report = tokens.logprobs(SIM, state, tokens.candidates(SIM, state)[0], 64)
    chi2 = fsum(
        (seen[t] - draws * exp(lp)) ** 2 / (draws * exp(lp))
        for t, lp in zip(report.top_ids, report.top_logprobs, strict=True)
        if draws * exp(lp) >= 5
    )
    assert chi2 < 40  # 16 cells; the 99.9% point is 39.3, and the draws are always the same


def test_a_top_k_of_one_is_greedy_and_a_penalty_avoids_what_was_said() -> None:
    state = 99
    greedy = tokens.next_token(SIM, state, Sampler(), 5, [])
    assert tokens.next_token(SIM, state, Sampler(temperature=9.0, top_k=1, seed=3), 5, []) == greedy
    assert tokens.next_token(SIM, state, Sampler(repetition_penalty=2.0), 5, [greedy]) != greedy


def test_logprobs_are_normalised_sorted_and_agree_with_greedy() -> None:
    device = loaded()
    result = step(device, run(1, 0, PROMPT, [0, 1], logprobs=64)).results[0]
    report = result.logprobs
    assert report is not None
    assert report.token == report.top_ids[0] == result.token
    assert report.top_logprobs == sorted(report.top_logprobs, reverse=True)
    assert fsum(exp(x) for x in report.top_logprobs) == pytest.approx(1.0)
    asked = Sample(Sampler(temperature=5.0), len(PROMPT), False, 3)
    again = step(device, run(2, 0, PROMPT, [2, 3], sample=asked)).results[0]
    assert again.token == -1
    assert again.logprobs is not None
    assert (again.logprobs.token, again.logprobs.logprob) == (report.token, report.logprob)


def test_the_end_of_sequence_comes_as_often_as_declared_and_otherwise_never() -> None:
    often = model("sim:eos_every=4", "", MODELS)
    assert 700 < tokens.continuation(often, [1], Sampler(), 4000).count(often.eos) < 1300
    assert SIM.eos not in tokens.continuation(SIM, [1], Sampler(temperature=3.0), 2000)


# --- verification ---------------------------------------------------------------------------------------------------


def fault(device: SimDevice, *runs: Run, copies: list[Copy] | None = None) -> str:
    """Do a step in which the last run must be reported as the kernel's mistake."""
    error = step(device, *runs, copies=copies).results[-1].error
    assert error
    assert error in device.faults
    return error


def test_a_context_whose_frame_was_given_to_another_is_found_out() -> None:
    device = loaded()
    step(device, run(1, 0, PROMPT, [0, 1]))
    step(device, run(2, 0, [9] * 16, [1]))
    assert "frame 1 slot 0" in fault(device, run(1, 27, [4], [], keep=2))


def test_a_missed_copy_is_found_out_and_a_made_one_is_right() -> None:
    right = loaded()
    log = [*PROMPT, right_token(right)]
    step(right, run(2, 27, [8], [0, 2]), copies=[Copy(1, 1, 2)])
    assert step(right, run(1, 27, log[27:], [], keep=2)).results[0].error == ""
    wrong = loaded()
    right_token(wrong)
    step(wrong, run(2, 27, [8], [0, 1]))
    assert "frame 1 slot 11" in fault(wrong, run(1, 28, [4], [], keep=2, history=[*log]))


def right_token(device: SimDevice) -> int:
    return step(device, run(1, 0, PROMPT, [0, 1])).results[0].token


def test_two_runs_of_a_step_may_not_write_one_frame_nor_read_what_the_other_writes() -> None:
    device = loaded()
    assert "two runs" in fault(device, run(1, 0, [1], [0]), run(2, 0, [2], [0]))
    device = loaded()
    step(device, run(1, 0, PROMPT[:16], [0]))
    assert "another run" in fault(device, run(3, 0, PROMPT[:16], [0]), run(2, 16, [1], [0, 1]))


def test_a_prefix_found_in_frames_serves_a_context_that_never_computed_it() -> None:
    device = loaded()
    step(device, run(1, 0, PROMPT, [0, 1]))
    result = step(device, run(2, 16, PROMPT[16:], [0, 5])).results[0]
    assert (result.token, result.error) == (tokens.continuation(SIM, PROMPT, Sampler(), 1)[0], "")


def test_a_wrong_position_a_short_table_and_a_foreign_token_are_faults() -> None:
    device = loaded()
    step(device, run(1, 0, PROMPT, [0, 1]))
    assert "only 27 tokens" in fault(device, run(1, 30, [4], [], keep=2))
    assert "do not fit" in fault(device, run(2, 0, [1] * 17, [4]))
    assert "vocabulary" in fault(device, run(2, 0, [1000], [4]))
    assert "keeps 3" in fault(device, run(9, 0, [1], [4], keep=3))
    assert "frame twice" in fault(device, run(2, 0, [1] * 20, [4, 4]))
    assert "not loaded" in fault(device, Run(1, 7, 0, [1], 0, [0]))
    assert "samples for position" in fault(device, run(2, 0, [1], [4], sample=Sample(Sampler(), 5, True)))
    step(device, copies=[Copy(1, 30, 31)])
    assert "cannot copy" in device.faults[-1]


def test_history_must_be_whole_true_and_present_for_a_penalty() -> None:
    device, harsh = loaded(), Sampler(repetition_penalty=1.3)
    step(device, run(1, 0, PROMPT, [0, 1]))
    assert "repetition penalty" in fault(device, run(2, 16, PROMPT[16:], [0, 2], sampler=harsh))
    assert "history of 15" in fault(device, run(2, 16, PROMPT[16:], [0, 2], history=PROMPT[:15]))
    assert "slot 15" in fault(device, run(2, 16, PROMPT[16:], [0, 2], history=[*PROMPT[:15], 1]))
    good = step(device, run(2, 16, PROMPT[16:], [0, 2], sampler=harsh, history=PROMPT[:16])).results[0]
    assert good.token == tokens.continuation(SIM, PROMPT, harsh, 1)[0]


def test_a_truncated_context_forgets_the_tokens_after_the_cut() -> None:
    device = loaded()
    step(device, run(1, 0, PROMPT, [0, 1]))
    result = step(device, run(1, 20, [3], [], keep=2)).results[0]
    assert result.token == tokens.continuation(SIM, [*PROMPT[:20], 3], Sampler(), 1)[0]
    assert "only 21 tokens" in fault(device, run(1, 27, [3], [], keep=2))


def test_dropped_contexts_start_anew_and_unknown_ones_are_ignored() -> None:
    device = loaded()
    step(device, run(1, 0, PROMPT, [0, 1]))
    device.drop([1, 55])
    assert "keeps 2" in fault(device, run(1, 27, [4], [], keep=2))
    assert step(device, run(1, 27, [4], [0, 1])).results[0].error == ""


def test_one_failing_run_leaves_the_others_of_its_step_alone() -> None:
    device = loaded(error_token=666)
    results = step(device, run(1, 0, [666], [0]), run(2, 0, PROMPT, [1, 2])).results
    assert "option error_token" in results[0].error
    assert results[1].token == tokens.continuation(SIM, PROMPT, Sampler(), 1)[0]
    assert device.faults == []


# --- time and failure -----------------------------------------------------------------------------------------------


def test_a_step_costs_what_the_roofline_says() -> None:
    device = DeviceSpec(flops=1e12, bandwidth=1e11, overhead=0.001)
    small = ModelSpec(params=1e9, block_bytes=16_000)  # 2 GB of weights, 1000 bytes of KV a token
    one, phases = roofline.step_seconds(device, [(small, 100, 1)], 0)
    assert one == pytest.approx(0.001 + (2e9 + 102_000) / 1e11)  # bound by bandwidth
    assert sum(phases.values()) == pytest.approx(one)
    many, _ = roofline.step_seconds(device, [(small, 0, 1000)], 0)
    assert many == pytest.approx(0.001 + (2e12 + 1000 * 500_500) / 1e12)  # bound by arithmetic
    two, _ = roofline.step_seconds(device, [(small, 100, 1), (small, 100, 1)], 0)
    assert two - one == pytest.approx(102_000 / 1e11)  # the weights are read once
    copied, _ = roofline.step_seconds(device, [(small, 100, 1)], 500_000)
    assert copied - one == pytest.approx(1e6 / 1e11)


def test_modelled_time_is_slept_in_slices_that_show_progress() -> None:
    fate = Recorded()
    device = SimDevice(DeviceSpec(link=14e9, time_scale=0.5), MODELS, fate)
    seen: list[float] = []
    device.fetch(Load(1, 1, "sim:7b", "", 4), seen.append)()
    assert sum(fate.slept) == pytest.approx(0.5)
    assert max(fate.slept) <= 0.05
    assert device.progress == len(fate.slept) == len(seen) == 10
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_without_a_time_scale_nothing_is_slept_and_costs_are_still_reported() -> None:
    device = loaded()
    done = step(device, run(1, 0, PROMPT, [0, 1]))
    assert done.seconds == pytest.approx(sum(done.phases.values()))
    assert done.seconds > SPEC.overhead
    assert isinstance(device._fate, Recorded)
    assert device._fate.slept == []


@pytest.mark.parametrize(
    ("options", "raised"),
    [
        ({"crash_after": 2}, Died),
        ({"hang_after": 2}, Hung),
        ({"crash_token": 6}, Died),
        ({"hang_token": 6}, Hung),
    ],
)
def test_deaths_and_hangs_happen_where_they_were_asked_for(options: dict[str, int], raised: type[Exception]) -> None:
    device = loaded(**options)
    step(device, run(1, 0, [5], [0]))
    with pytest.raises(raised):
        step(device, run(1, 1, [6], [], keep=1))


def test_two_interleaved_contexts_give_the_tokens_each_gives_alone() -> None:
    hot = Sampler(temperature=1.0, seed=4)
    device = loaded()
    a, b = decode(device, 1, PROMPT, [0, 1, 2], 8, hot), decode(device, 2, PROMPT[::-1], [5, 4, 3], 8, hot)
    assert a == tokens.continuation(SIM, PROMPT, hot, 8)
    assert b == tokens.continuation(SIM, PROMPT[::-1], hot, 8)
