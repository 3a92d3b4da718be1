"""The tokens of a process do not depend on what happens around it: every architecture, in fp32, through the whole system.

The reference is transformers' greedy generation, one prompt at a time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmasos.syscalls.records import Limits, State
from llmasos.syscalls.table import BootInfoCall, Decode, Read
from llmasos.userland.sdk.script import together
from llmasos.userland.sdk.system import Process, System
from tests.models_zoo import EOS

ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neo", "gpt_neox"]
DECODED = 24
LENGTHS = [
    70,
    41,
    17,
    64,
]  # of prompts, in tokens: longer than a block, than a window, and exactly four blocks


def prompt(index: int) -> list[int]:
    """A prompt of bytes; no two begin alike."""
    return [(index * 37 + i * i + 11 * i) % 251 for i in range(LENGTHS[index % len(LENGTHS)])]


@pytest.fixture(scope="session")
def expected(zoo: Callable[[str], Path]) -> Callable[[str, int], list[int]]:
    """What transformers decodes after `prompt(index)`, the end token not counting as an end."""
    known: dict[tuple[str, int], list[int]] = {}

    def tokens(name: str, index: int) -> list[int]:
        if (name, index) not in known:
            import torch
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_pretrained(zoo(name), dtype=torch.float32).eval()
            ids = torch.tensor([prompt(index)])
            with torch.no_grad():
                out = model.generate(ids, max_new_tokens=DECODED, do_sample=False, eos_token_id=None, pad_token_id=EOS)
            known[name, index] = [int(i) for i in out[0][ids.shape[1] :]]
        return known[name, index]

    return tokens


@pytest.fixture(scope="module", params=["swap=0", "swap=64MiB"])
def small_system(request: pytest.FixtureRequest) -> Iterator[System]:
    """A system with KV memory for about 20 blocks of a zoo model: contexts are preempted all the time, and computed again
    or moved to a file and back."""
    with System.connect(
        boot=True, flags=["--device", f"cpu:threads=1,{request.param}", "--kv-bytes", str(4 * 20 * 12_288)]
    ) as system:
        yield system


def spawn(system: System, model: Path, indices: range | list[int]) -> list[Process]:
    return [system.spawn(str(model), prompt(i), dtype="fp32", name=f"p{i}") for i in indices]


def decode(system: System, processes: list[Process], count: int = DECODED) -> list[list[int]]:
    """Let them all decode at once."""
    results = system.run(together([Decode(process.pid, count) for process in processes]))
    return [result.tokens for result in results]


def end(system: System, processes: list[Process]) -> None:
    for process in processes:
        process.end()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_alone_and_among_fifteen_neighbours(
    cpu_system: System, zoo: Callable[[str], Path], expected: Callable[[str, int], list[int]], name: str
) -> None:
    (alone,) = spawn(cpu_system, zoo(name), [0])
    assert decode(cpu_system, [alone]) == [expected(name, 0)]
    crowd = spawn(cpu_system, zoo(name), range(16))
    said = decode(cpu_system, crowd)
    assert said[:4] == [expected(name, i) for i in range(4)]
    end(cpu_system, [alone, *crowd])


@pytest.mark.parametrize(("chunk", "index"), [(1, 16), (7, 20), (64, 24)])  # prompts of this test only
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_with_prompts_in_chunks(
    cpu_system: System,
    zoo: Callable[[str], Path],
    expected: Callable[[str, int], list[int]],
    name: str,
    chunk: int,
    index: int,
) -> None:
    before = cpu_system.sched()
    cpu_system.sched(step_tokens=chunk)
    try:
        processes = spawn(cpu_system, zoo(name), [index, index + 1])
        first = decode(cpu_system, processes, 1)
        # A prompt of 70 tokens took a step a chunk, the last of which gave the first token.
        used = processes[0].info().usage
        assert used.reused == 0
        assert used.steps >= -(-LENGTHS[0] // chunk)
        rest = decode(cpu_system, processes, DECODED - 1)
        assert [a + b for a, b in zip(first, rest, strict=True)] == [
            expected(name, index),
            expected(name, index + 1),
        ]
    finally:
        cpu_system.sched(step_tokens=before.step_tokens)
    end(cpu_system, processes)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_after_a_fork_in_mid_sentence(
    cpu_system: System, zoo: Callable[[str], Path], expected: Callable[[str, int], list[int]], name: str
) -> None:
    (parent,) = spawn(cpu_system, zoo(name), [1])
    want = expected(name, 1)
    assert cpu_system(Decode(parent.pid, 9)).tokens == want[:9]
    family = [parent, *parent.fork(3)]
    assert family[1].info().shared_pages == family[1].info().pages > 0
    results = cpu_system.run(together([Decode(p.pid, DECODED - 9) for p in family]))
    assert [r.tokens for r in results] == [want[9:]] * 4
    end(cpu_system, family)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_after_preemption(
    small_system: System, zoo: Callable[[str], Path], expected: Callable[[str, int], list[int]], name: str
) -> None:
    processes = spawn(small_system, zoo(name), range(8))
    assert decode(small_system, processes) == [expected(name, i) for i in range(8)]
    assert sum(process.info().usage.preemptions for process in processes) > 0
    end(small_system, processes)
    small_system.evict(str(zoo(name)))


# Three at a time: a driver that comes back with models for torch takes seconds to import it.
@pytest.mark.parametrize("names", [ARCHITECTURES[:3], ARCHITECTURES[3:6], ARCHITECTURES[6:]], ids="-".join)
def test_after_the_driver_is_killed_in_mid_stream(
    cpu_system: System, zoo: Callable[[str], Path], expected: Callable[[str, int], list[int]], names: list[str]
) -> None:
    streams = {
        (name, index): process for name in names for index, process in enumerate(spawn(cpu_system, zoo(name), range(3)))
    }
    for process in streams.values():
        cpu_system(Decode(process.pid, 9))
    device = cpu_system(BootInfoCall()).devices[0]
    os.kill(device.os_pid, signal.SIGSTOP)  # so that it does not end before it is killed
    for process in streams.values():
        cpu_system(Decode(process.pid, DECODED - 9, wait=False))
    assert State.RUNNING in [process.info().state for process in streams.values()]
    os.kill(device.os_pid, signal.SIGKILL)
    for (name, index), process in streams.items():
        log: list[int] = []
        while len(log) < DECODED:
            log += cpu_system(Read(process.pid, LENGTHS[index] + len(log))).tokens
        assert log == expected(name, index), name
    assert cpu_system(BootInfoCall()).devices[0].incarnation == device.incarnation + 1
    end(cpu_system, [*streams.values()])


def test_a_prefix_another_has_computed_is_reused_and_changes_nothing(
    cpu_system: System, zoo: Callable[[str], Path], expected: Callable[[str, int], list[int]]
) -> None:
    first, second = spawn(cpu_system, zoo("qwen2"), [3, 3])
    want = expected("qwen2", 3)
    assert decode(cpu_system, [first]) == [want]
    (third,) = spawn(cpu_system, zoo("qwen2"), [3])
    assert decode(cpu_system, [third, second]) == [want, want]
    assert third.info().usage.reused == 48  # of 64 tokens: the last block is computed for its logits
    assert third.info().shared_pages == 3
    end(cpu_system, [first, second, third])


def test_limits_of_pages_bound_the_context(cpu_system: System, zoo: Callable[[str], Path]) -> None:
    process = cpu_system.spawn(str(zoo("llama")), prompt(2), dtype="fp32", limits=Limits(pages=2))
    result = cpu_system(Decode(process.pid, 100))
    assert result.finish.value == "context"
    assert process.info().length == 32
    end(cpu_system, [process])
