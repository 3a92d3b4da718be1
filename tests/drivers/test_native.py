"""The native decoder: exact products, the same bits whatever runs beside, close to torch, clean under sanitizers."""

from __future__ import annotations

import math
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.drivers import hal
from llmasos.drivers.cpu import open_device
from llmasos.drivers.cpu.native import library
from llmasos.drivers.cpu.native.image import NativeKind
from llmasos.drivers.cpu.native.library import GROUP, INSTRUCTION_SETS, LANES, Library
from llmasos.drivers.cpu.native.network import relocate
from llmasos.drivers.cpu.native.packing import Arena, interleave, pack, packed_bytes
from llmasos.drivers.device import Device
from llmasos.drivers.engine.contexts import Context
from llmasos.drivers.protocol import BLOCK_TOKENS, Load, Probe, Run
from llmasos.modelfiles.tensors import SafetensorsWeights, Tensor
from llmasos.syscalls.errno import Errno, SyscallError
from tests.drivers.feeder import IMAGE, Feeder
from tests.drivers.native_decoder import FAMILIES, FRAMES, image, instruction_sets, logits_of, native
from tests.drivers.reference import prompt

COMPILER = shutil.which("cc") or shutil.which("gcc")
SOURCES = Path(library.__file__).parent
DTYPES = ("int8", "int4")


@pytest.mark.skipif(COMPILER is None, reason="there is no C compiler here")
def test_it_is_built_where_there_is_a_compiler() -> None:
    assert isinstance(library.load(), Library)


# --- products -------------------------------------------------------------------------------------------------------


class Packed:
    """A matrix packed into an arena of its own."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, form: str) -> None:
        columns, inputs = weight.shape
        self.arena = Arena(packed_bytes(columns, inputs, form))
        added = None if bias is None else bias.numpy()
        self.offsets = pack(self.arena, weight.float().numpy(), added, form)
        self.matrix = library.Matrix.from_buffer_copy(self.offsets)
        relocate(self.matrix, self.arena.base)

    def read(self, offset: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        size = math.prod(shape) * dtype.itemsize
        return torch.frombuffer(bytearray(self.arena.bytes(offset, offset + size)), dtype=dtype).view(shape)


def product(packed: Packed, x: torch.Tensor, isa: str) -> torch.Tensor:
    out = torch.full((len(x), packed.matrix.columns), float("nan"))
    x = x.contiguous()
    native().product(packed.matrix, x.data_ptr(), len(x), x.shape[1], out.data_ptr(), isa)
    return out


def quantised(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations as whole numbers, and their scales."""
    peak = x.abs().amax(1, keepdim=True).clamp_min(1e-30)
    factor = (
        torch.full_like(peak, 127.0) / peak
    )  # not `127 / peak`: torch makes that 127 times the reciprocal, rounded twice
    return (x * factor).round(), peak / 127


@settings(deadline=None, max_examples=60)
@given(
    columns=st.integers(1, 140),
    inputs=st.integers(1, 300),
    rows=st.integers(1, 33),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_an_eight_bit_product_is_exact_on_every_instruction_set(
    columns: int, inputs: int, rows: int, biased: bool, seed: int
) -> None:
    """Recounted in torch with whole numbers: not one bit may differ."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(columns, inputs, generator=generator) * 0.1
    bias = torch.randn(columns, generator=generator) if biased else None
    x = torch.randn(rows, inputs, generator=generator) * torch.logspace(-3, 3, rows)[:, None]
    scale = weight.abs().amax(1).clamp_min(1e-30) / 127
    values, each = quantised(x)
    sums = values.long() @ (weight / scale[:, None]).round().long().t()
    wanted = sums.float() * scale * each
    if bias is not None:
        wanted = wanted + bias
    packed = Packed(weight, bias, "int8")
    for isa in instruction_sets():
        assert torch.equal(product(packed, x, isa)[:, :columns], wanted), isa


@settings(deadline=None, max_examples=40)
@given(columns=st.integers(1, 100), inputs=st.integers(1, 300), rows=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_four_bit_product_is_that_of_its_weights(columns: int, inputs: int, rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(columns, inputs, generator=generator)
    x = torch.randn(rows, inputs, generator=generator)
    packed = Packed(weight, None, "int4")
    dense = unpacked(packed)
    values, each = quantised(x)
    padded = torch.nn.functional.pad(values, (0, dense.shape[1] - inputs)).double()
    wanted = (padded @ dense.double().t() * each.double()).float()
    sizes = (padded.abs() @ dense.abs().double().t() * each.double()).float()
    for isa in instruction_sets():
        got = product(packed, x, isa)
        assert torch.all((got - wanted).abs() <= 1e-5 * sizes + 1e-20), isa


@settings(deadline=None, max_examples=40)
@given(columns=st.integers(1, 20), inputs=st.integers(1, 130), seed=st.integers(0, 99))
def test_a_scale_of_four_bits_is_at_least_as_good_as_the_plain_one(columns: int, inputs: int, seed: int) -> None:
    """The plain one keeps the value of the greatest magnitude; compared by squared error, group by group."""
    weight = torch.randn(columns, inputs, generator=torch.Generator().manual_seed(seed))
    dense = unpacked(Packed(weight, None, "int4"))[:columns]
    groups = torch.nn.functional.pad(weight, (0, -inputs % GROUP)).view(columns, -1, GROUP)
    greatest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    scale = (greatest / -8).to(torch.bfloat16).float()
    plain = (groups / scale.where(scale != 0, 1.0)).round().clamp(-8, 7) * scale
    ours = (dense.view(groups.shape) - groups).square().sum(2)
    assert torch.all(ours <= (plain - groups).square().sum(2) * 1.0001)


def unpacked(packed: Packed) -> torch.Tensor:
    """The weights of a packed 4-bit matrix, [columns, inputs], read from its layout as native.h gives it."""
    rows, wide = packed.matrix.columns, packed.matrix.inputs
    data = packed.read(packed.offsets.data, torch.uint8, rows // LANES, wide // 8, LANES, 4)
    scale = packed.read(packed.offsets.group_scale, torch.bfloat16, rows // LANES, wide // GROUP, LANES)
    halves = torch.stack([data & 15, data >> 4], 3).to(torch.float32) - 8  # [blocks, eights, 16, 2, 4]
    values = halves.permute(0, 2, 1, 3, 4).reshape(rows, wide)
    scales = scale.transpose(1, 2).reshape(rows, -1).float()
    return values * scales.repeat_interleave(GROUP, 1)


def test_gate_and_up_take_turns_of_sixteen() -> None:
    gate, up = np.arange(20.0)[:, None], 100 + np.arange(20.0)[:, None]
    rows = interleave(gate, up)[:, 0].tolist()
    assert rows[:32] == [*range(16), *range(100, 116)]
    assert rows[32:36] == [16, 17, 18, 19]
    assert rows[36:48] == [0] * 12
    assert rows[48:52] == [116, 117, 118, 119]


# --- whole models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "kv"), [("int8", "bf16"), ("int4", "bf16"), ("int8", "int8")])
@pytest.mark.parametrize("name", FAMILIES)
def test_no_bit_depends_on_neighbours_chunks_threads_or_frames(
    zoo: Callable[[str], Path], name: str, dtype: str, kv: str
) -> None:
    built, pair = image(zoo(name), dtype, kv=kv), image(zoo(name), dtype, threads=2, kv=kv)
    tokens = prompt(0, 70)
    (alone,) = logits_of(built, [tokens], lambda i: 1)
    rng = random.Random(name)
    for count in (1, 2, 3, 8, 16, 32):
        prompts = [prompt(seed, rng.randrange(1, 60)) for seed in range(1, count)]
        at = rng.randrange(count)
        prompts.insert(at, tokens)
        for many, chunk in ((built, lambda i: rng.randrange(1, 70)), (pair, lambda i: rng.randrange(1, 20))):
            among = logits_of(many, prompts, chunk, seed=count)[at]
            for position, (one, other) in enumerate(zip(alone, among, strict=True)):
                assert torch.equal(one, other), f"position {position} among {count}"
    built.close()
    pair.close()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("dtype", "kv"), [("int8", "bf16"), ("int4", "bf16"), ("int8", "int8")])
def test_it_computes_what_transformers_computes(zoo: Callable[[str], Path], name: str, dtype: str, kv: str) -> None:
    """Against transformers' own fp32 with the weights as they are after rounding, so what remains is the rounding of
    activations: some hundredths for these networks with large weights. A wrong sign, norm or window gives 1 and more."""
    from transformers import AutoModelForCausalLM

    tokens = prompt(3, 64)
    built = image(zoo(name), dtype, kv=kv)
    got = torch.stack(logits_of(built, [tokens], lambda i: 64)[0])
    built.close()
    model = AutoModelForCausalLM.from_pretrained(zoo(name), attn_implementation="eager", dtype=torch.float32)
    for module in model.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = rounded(module.weight.data, dtype)
    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor([tokens])).logits[0]
    assert (got - wanted).norm() / (wanted - wanted.mean(1, keepdim=True)).norm() < 0.15


def rounded(weight: torch.Tensor, dtype: str) -> torch.Tensor:
    """A weight that went through packing, in fp32."""
    columns, inputs = weight.shape
    if dtype == "int4":
        return unpacked(Packed(weight, None, "int4"))[:columns, :inputs]
    scale = weight.float().abs().amax(1, keepdim=True) / 127
    return (weight.float() / scale).round() * scale


@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets_agree(zoo: Callable[[str], Path], dtype: str) -> None:
    """Their sums of floats may be contracted otherwise, their sums of whole numbers not."""
    tokens = prompt(4, 40)
    loaded = native()
    results = []
    for isa in instruction_sets():
        one = Library(loaded.path, isa)
        built = image(zoo("qwen3"), dtype, kind=NativeKind(one, 1))
        results.append(torch.stack(logits_of(built, [tokens], lambda i: 40)[0]))
        built.close()
    for other in results[1:]:
        assert (other - results[0]).norm() / results[0].norm() < 0.02


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_greatest_is_that_of_the_logits(zoo: Callable[[str], Path], dtype: str) -> None:
    built = image(zoo("gemma2"), dtype, threads=2)
    runs = [Run(i, 0, 0, prompt(i, 5 + 3 * i), 0, [i]) for i in range(4)]
    contexts = [Context(0) for _ in runs]
    for run, context in zip(runs, contexts, strict=True):
        assert not context.follow(run)
    batch = built.prepare(runs, contexts)
    logits = built.forward(batch, batch.last_row)
    assert built.greatest(batch, batch.last_row) == logits.argmax(1).tolist()
    rows = list(range(len(batch.token)))
    assert built.greatest(batch, rows) == built.forward(batch, rows).argmax(1).tolist()
    built.close()


def test_of_greedy_and_drawn_rows_in_one_batch_each_gets_its_own(zoo: Callable[[str], Path]) -> None:
    built = image(zoo("qwen3"), "int8")
    runs = [Run(i, 0, 0, prompt(i, 6 + i), 0, [i]) for i in range(5)]
    contexts = [Context(0) for _ in runs]
    for run, context in zip(runs, contexts, strict=True):
        assert not context.follow(run)
    batch = built.prepare(runs, contexts)
    logits, best = built.forward(batch, batch.last_row), built.greatest(batch, batch.last_row)
    plain = [True, False, True, True, False]
    greedy, scored = built.choose(batch, batch.last_row, plain)
    assert [greedy[i] for i in (0, 2, 3)] == [best[i] for i in (0, 2, 3)]
    assert [row.tobytes() for row in scored] == [logits[i].tobytes() for i in (1, 4)]
    built.close()


class Spoilt(SafetensorsWeights):
    """With one value that is no number."""

    def __init__(self, directory: Path, where: str, at: int) -> None:
        super().__init__(directory)
        self._spoilt, self._at = where, at

    def get(self, name: str) -> Tensor:
        tensor = super().get(name)
        if name != self._spoilt:
            return tensor
        values = tensor.float32().copy()
        values[self._at] = float("nan")
        return Tensor("F32", values)

    def by_rows(self, name: str) -> Tensor:
        return self.get(name)


EMBEDDING, QUERY = ("model.embed_tokens.weight", 7), ("model.layers.1.self_attn.q_norm.weight", 3)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize(
    ("name", "spoil"), [("llama", EMBEDDING), ("gemma2", EMBEDDING), ("qwen3", QUERY)], ids=lambda x: str(x)
)
def test_what_is_no_number_reaches_the_result(
    zoo: Callable[[str], Path], name: str, spoil: tuple[str, int], isa: str
) -> None:
    """A broken weight must show as an error of the run, as with torch, and not as some token."""
    if not native().has(isa):
        pytest.skip(f"this CPU has no {isa}")
    built = image(zoo(name), "int8", kind=NativeKind(Library(native().path, isa), 1), weights=Spoilt(zoo(name), *spoil))
    runs = [Run(0, 0, 0, [5, 6, 8], 0, [0]), Run(1, 0, 0, [5, 7, 8], 0, [1])]
    contexts = [Context(0), Context(0)]
    for run, context in zip(runs, contexts, strict=True):
        assert not context.follow(run)
    batch = built.prepare(runs, contexts)
    sound, broken = built.greatest(batch, [2, 5])
    logits = torch.from_numpy(built.forward(batch, [2, 5]))
    assert broken == -1
    assert not torch.isfinite(logits[1].amax())
    if spoil is EMBEDDING:
        assert sound == logits[0].argmax() >= 0
    built.close()


def decodes_the_same_after_preemption_and_fork(device: Device) -> None:
    """Of the image that is loaded, which is unloaded."""
    feeder = Feeder(device, frames=FRAMES)
    one = feeder.spawn(prompt())
    (tokens,) = feeder.generate([one], 12)
    feeder.preempt(one)
    del one.log[len(prompt()) :]
    assert feeder.generate([one], 12, chunk=3) == [tokens]
    child = feeder.fork(one)
    assert feeder.generate([child], 5) == feeder.generate([one], 5)
    device.unload(IMAGE)


def test_steps_of_the_driver_are_decoded_natively_and_say_so(zoo: Callable[[str], Path]) -> None:
    device = open_device({"threads": "2", "dtype": "int4"})
    assert f"native {native().isa}" in device.hello().description
    assert set(device.hello().dtypes) == {"fp32", "bf16", "int8", "int4"}
    probed = device.probe(Probe(1, str(zoo("llama")), ""))
    assert probed.dtype == "int4"
    loaded = device.fetch(Load(1, IMAGE, str(zoo("llama")), "", FRAMES), lambda fraction: None)()
    assert 0 < loaded.weight_bytes <= probed.weight_bytes
    decodes_the_same_after_preemption_and_fork(device)


def test_keys_and_values_of_eight_bits_take_half_the_memory(
    zoo: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    plain, small = open_device({"threads": "1"}), open_device({"threads": "2", "kv": "int8"})
    path = str(zoo("llama"))
    ratio = small.probe(Probe(1, path, "int8")).block_bytes / plain.probe(Probe(1, path, "int8")).block_bytes
    head = BLOCK_TOKENS * LANES  # the zoo's heads are padded to this many dimensions, at least
    assert 0.5 < ratio <= (head + 4 * BLOCK_TOKENS) / (2 * head)
    assert small.probe(Probe(1, path, "fp32")).block_bytes == plain.probe(Probe(1, path, "fp32")).block_bytes
    small.fetch(Load(1, IMAGE, path, "int8", FRAMES), lambda fraction: None)()
    assert "kv=int8" not in caplog.text
    decodes_the_same_after_preemption_and_fork(small)
    small.fetch(Load(1, IMAGE, path, "fp32", FRAMES), lambda fraction: None)()
    assert "kv=int8" in caplog.text  # it says so where it cannot be had
    small.unload(IMAGE)


def test_a_kind_of_kv_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SyscallError, match="bf16 or int8") as refused:
        open_device({"kv": "int4"})
    assert refused.value.errno == Errno.EINVAL
    monkeypatch.setattr(library, "load", lambda: "it was not built")
    with pytest.raises(SyscallError, match=r"^EINVAL: kv=int8"):
        open_device({"kv": "int8"})


@pytest.mark.parametrize(
    ("switch", "said"),
    [(library.SWITCH, r"LLMASOS_NATIVE is 0 or one of .*generic .*found 'avx3'"), (hal.BF16, "LLMASOS_BF16 is 0 or 1")],
)
def test_a_switch_of_the_environment_that_means_nothing_is_refused_with_what_is_allowed(
    switch: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    native()
    library.load.cache_clear()
    monkeypatch.setenv(switch, "avx3")
    try:
        with pytest.raises(SyscallError, match=said) as refused:
            open_device({"threads": "1"})
        assert refused.value.errno == Errno.EINVAL
    finally:
        library.load.cache_clear()


def test_four_bits_are_refused_with_a_reason_where_they_cannot_be_had(
    zoo: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SyscallError) as refused:
        open_device({"threads": "1"}).probe(Probe(1, str(zoo("gpt2")), "int4"))
    assert refused.value.errno == Errno.ENOTSUP
    assert "gpt2" in refused.value.reason
    monkeypatch.setattr(library, "load", lambda: "it was not built")
    with pytest.raises(SyscallError) as refused:
        open_device({"threads": "1"}).probe(Probe(1, str(zoo("llama")), "int4"))
    assert refused.value.errno == Errno.ENOTSUP
    assert "it was not built" in refused.value.reason


# --- sanitizers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("there is no C compiler here")
    out = tmp_path_factory.mktemp("fuzz") / "fuzz"
    # -O0: with sanitizers -O1 takes five times as long to compile, more than the runs save.
    flags = ["-std=c11", "-O0", "-g1", "-ffp-contract=off", "-pthread", f"-I{SOURCES}"]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    files = [*sorted(SOURCES.glob("*.c")), Path(__file__).parent / "native" / "fuzz.c"]
    objects = [out.with_name(f"{file.stem}.o") for file in files]
    idle = {f"kernels_{isa}" for isa in INSTRUCTION_SETS if not native().has(isa)}  # nothing of those can run here

    def built(watched: bool, *arguments: str | Path) -> None:
        command = [COMPILER, *flags, *(sanitizers if watched else []), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode and "asan" in done.stderr:
            pytest.skip("the compiler has no sanitizers")
        assert done.returncode == 0, done.stderr

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(lambda file, made: built(file.stem not in idle, "-c", file, "-o", made), files, objects))
    built(True, *objects, "-o", out, "-lm")
    return out


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_networks_of_odd_sizes_run_clean_under_the_sanitizers(isa: str, request: pytest.FixtureRequest) -> None:
    if not native().has(isa):
        pytest.skip(f"this CPU has no {isa}")
    fuzzer = request.getfixturevalue("fuzzer")
    ran = subprocess.run([str(fuzzer), "1", "8", isa], capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stdout[-500:] + ran.stderr[-3000:]
