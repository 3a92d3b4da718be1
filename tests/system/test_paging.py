"""Weights in less memory than they need, through the whole system: agents on several models go on as if there were
enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmasos.drivers.cpu.native import library
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Advice, ModelInfo
from llmasos.syscalls.table import BootInfoCall, Checkpoint, Decode, Getinfo, Kill, Models, Read, Restore
from llmasos.userland.sdk.system import Process, System
from tests import models_zoo
from tests.booted import eventually

NAMES = ("llama", "mistral")
TURNS, DECODED = 4, 6


def prompt(i: int) -> list[int]:
    return [(7 * i + j * j) % 251 for j in range(60)]


def agents(system: System, models: list[Path], dtype: str) -> list[Process]:
    return [system.spawn(str(model), prompt(i), dtype=dtype) for i, model in enumerate(models)]


def turns(system: System, processes: list[Process]) -> list[list[int]]:
    said: list[list[int]] = [[] for _ in processes]
    for _ in range(TURNS):
        for process, tokens in zip(processes, said, strict=True):
            tokens += system(Decode(process.pid, DECODED)).tokens
    return said


def rows(system: System, dtype: str) -> list[ModelInfo]:
    return [model for model in system(Models()) if model.dtype == dtype]


@pytest.fixture(scope="module", params=["fp32", "int8"])
def dtype(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    if kind == "int8" and isinstance(library.load(), str):
        pytest.skip("there is no native decoder")
    return kind


@pytest.fixture(scope="module")
def small(cpu_system: System, zoo: Callable[[str], Path], dtype: str) -> Iterator[System]:
    """A system with memory for the weights of one of the two."""
    sizes = [cpu_system.load(str(zoo(name)), dtype).weight_bytes for name in NAMES]
    assert max(sizes) * 1.7 < sum(sizes)
    device = f"cpu:threads=1,weight_bytes={int(max(sizes) * 1.7)}"
    with System.connect(boot=True, flags=["--device", device]) as system:
        yield system


def test_requests_to_two_models_in_memory_for_one_get_what_they_would_get_in_plenty(
    small: System, cpu_system: System, zoo: Callable[[str], Path], dtype: str
) -> None:
    models = [zoo(name) for name in NAMES]
    roomy = agents(cpu_system, models, dtype)
    wanted = turns(cpu_system, roomy)
    processes = agents(small, models, dtype)
    assert turns(small, processes) == wanted
    for process in processes:
        info = process.info()
        assert info.usage.computed == info.length - 1, "KV outlives its model's eviction"
    found = rows(small, dtype)
    assert sorted(model.state for model in found) == ["evicted", "resident"]
    assert all(model.faults >= TURNS - 1 for model in found)
    assert [model.mapped_by for model in found] == [[process.pid] for process in processes]
    budget = small(BootInfoCall()).devices[0].weight_bytes
    assert sum(model.resident_bytes for model in found) <= budget
    # Both at once: they take turns.
    for process in processes:
        small(Decode(process.pid, 60, wait=False))
    for process, other in zip(processes, roomy, strict=True):
        position = process.info().length
        again = cpu_system(Decode(other.pid, 60)).tokens
        eventually(lambda p=process: not p.info().decoding, "it has decoded")  # type: ignore[misc]
        whole = small(Read(process.pid, 0)).tokens
        assert position <= len(whole)
        assert whole[-60:] == again
    for process in (*processes, *roomy):
        process.end()


def test_a_process_whose_model_is_out_is_saved_and_restored_with_its_kv(
    small: System, zoo: Callable[[str], Path], dtype: str, tmp_path: Path
) -> None:
    first, second = agents(small, [zoo(name) for name in NAMES], dtype)
    for process in (first, second):
        small(Decode(process.pid, DECODED))
    model = next(model for model in rows(small, dtype) if first.pid in model.mapped_by)
    assert model.state == "evicted"
    file = str(tmp_path / "image")
    written = small(Checkpoint(first.pid, file))
    assert written.kv_tokens == written.tokens - 1
    small(Decode(second.pid, DECODED))
    back = small(Restore(file))
    wanted = small(Decode(first.pid, DECODED)).tokens
    assert small(Decode(back, DECODED)).tokens == wanted
    assert small(Getinfo(back)).usage.computed == DECODED, "it began with the KV of the file"
    for pid in (first.pid, second.pid, back):
        small(Kill(pid))


def test_advice_through_the_whole_system(small: System, zoo: Callable[[str], Path], dtype: str) -> None:
    first, second = (str(zoo(name)) for name in NAMES)
    small.advise(first, Advice.PIN, dtype)
    eventually(
        lambda: any(m.path == first and m.state == "resident" and m.pinned for m in rows(small, dtype)),
        "it is paged in",
    )
    with pytest.raises(SyscallError, match="pinned") as refused:
        small.load(second, dtype)
    assert refused.value.errno is Errno.ENOMEM
    small.advise(first, Advice.NORMAL, dtype)
    assert small.load(second, dtype).state == "resident"
    small.advise(second, Advice.DONTNEED, dtype)
    assert not any(model.path == second for model in rows(small, dtype))


@pytest.mark.skipif(isinstance(library.load(), str), reason="there is no native decoder")
def test_a_model_of_twice_its_memory_runs_streamed_with_the_same_tokens(cpu_system: System, tmp_path: Path) -> None:
    changes = {"num_hidden_layers": 12, "hidden_size": 256, "intermediate_size": 1024}
    model = models_zoo.build("qwen3", tmp_path / "deep", changes=changes)
    info = cpu_system.load(str(model), "int8")
    roomy = cpu_system.spawn(str(model), prompt(1), dtype="int8")
    wanted = cpu_system(Decode(roomy.pid, 20)).tokens
    roomy.end()
    device = f"cpu:threads=1,weight_bytes={info.weight_bytes // 2}"
    with System.connect(boot=True, flags=["--device", device]) as system:
        process = system.spawn(str(model), prompt(1), dtype="int8")
        assert system(Decode(process.pid, 20)).tokens == wanted
        (streamed,) = rows(system, "int8")
        assert streamed.state == "streamed"
        assert 0 < streamed.resident_bytes <= info.weight_bytes // 2
        with pytest.raises(SyscallError, match="cannot be streamed") as refused:
            system.load(str(model), "bf16")
        assert refused.value.errno is Errno.ENOMEM
