"""The forms of weights that the native decoder holds: each against float64, the same bits whatever runs beside, packed as
they were quantised elsewhere without losing a bit, and in fp32 transformers' own tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.drivers.cpu.native.image import NativeKind
from llmasos.drivers.cpu.native.library import FLOAT16, GROUP, LANES, OWN, Library, Matrix
from llmasos.drivers.cpu.native.network import relocate
from llmasos.drivers.cpu.native.packing import (
    FORMS,
    MOST_OF_GROUP,
    Arena,
    interleave,
    pack,
    pack_as_is,
    packed_bytes,
    stack,
)
from llmasos.drivers.engine.contexts import Context
from llmasos.drivers.engine.image import Frames
from llmasos.drivers.protocol import BLOCK_TOKENS, Run
from llmasos.modelfiles.tensors import Packed, Tensor, bfloat16_to_float32, float32_to_bfloat16
from llmasos.syscalls.errno import Errno, SyscallError
from tests.drivers.native_decoder import FAMILIES, image, instruction_sets, logits_of, native
from tests.drivers.reference import prompt

GROUPS = (32, 64, 128, 0)  # 0: the whole column


class Held:
    """A matrix in an arena of its own."""

    def __init__(self, weight: np.ndarray | Tensor | Packed, bias: np.ndarray | None, form: str = "") -> None:
        if isinstance(weight, Packed):
            columns, inputs = weight.values.shape
            self.arena = Arena(packed_bytes(columns, inputs, f"int{weight.bits}", MOST_OF_GROUP))
            self.offsets = pack_as_is(self.arena, weight, bias)
        else:
            columns, inputs = weight.shape
            self.arena = Arena(packed_bytes(columns, inputs, form))
            self.offsets = pack(self.arena, weight, bias, form)
        self.matrix = Matrix.from_buffer_copy(self.offsets)
        relocate(self.matrix, self.arena.base)

    def array(self, offset: int, dtype: type, *shape: int) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(self.arena.bytes(offset, offset + size), dtype).reshape(shape)

    def dense(self) -> np.ndarray:
        """The weights [columns, inputs] in float64, read from the layout that native.h gives."""
        at, rows, wide = self.offsets, self.matrix.columns, self.matrix.inputs
        if at.bits == 32:
            return _columns(self.array(at.data, np.float32, rows // LANES, wide, LANES, 1))
        if at.bits == 16:
            return _columns(bfloat16_to_float32(self.array(at.data, np.uint16, rows // LANES, wide // 2, LANES, 2)))
        if at.bits == 8:
            whole = _columns(self.array(at.data, np.int8, rows // LANES, wide // 4, LANES, 4))
        else:
            bytes_ = self.array(at.data, np.uint8, rows // LANES, wide // 8, LANES, 4)
            whole = _columns(np.concatenate([bytes_ & 15, bytes_ >> 4], axis=3))
        if not at.group_kind:
            return whole * self.array(at.scale, np.float32, rows).astype(np.float64)[:, None]
        shape = (rows // LANES, wide // GROUP, LANES)
        if at.group_kind == 3:
            scale = self.array(at.group_scale, np.float32, *shape)
        elif at.group_kind == FLOAT16:
            scale = self.array(at.group_scale, np.float16, *shape).astype(np.float32)
        else:
            scale = bfloat16_to_float32(self.array(at.group_scale, np.uint16, *shape))
        zero = np.full(shape, 8.0 if at.bits == 4 else 0.0)
        if at.group_zero:
            zero = self.array(at.group_zero, np.int8, *shape).astype(np.float64)
        each = (array.transpose(0, 2, 1).reshape(rows, -1).repeat(GROUP, axis=1) for array in (zero, scale))
        less, times = each
        return (whole - less) * times.astype(np.float64)


def _columns(blocks: np.ndarray) -> np.ndarray:
    """[columns / 16, steps, 16, inputs of a step] -> [columns, inputs] in float64."""
    return blocks.transpose(0, 2, 1, 3).reshape(blocks.shape[0] * LANES, -1).astype(np.float64)


def product(held: Held, x: np.ndarray, isa: str) -> np.ndarray:
    out = np.full((len(x), held.matrix.columns), np.nan, np.float32)
    x = np.ascontiguousarray(x, np.float32)
    native().product(held.matrix, x.ctypes.data, len(x), x.shape[1], out.ctypes.data, isa)
    return out


def by_group(matrix: Matrix) -> bool:
    """Whether its groups are a file's."""
    return matrix.group_kind not in (0, OWN)


def activations(x: np.ndarray, bits: int, by_group: bool) -> np.ndarray:
    """What a product of so many bits makes of its rows, in float64: with groups of a file each has a scale of its own."""
    if by_group:
        padded = np.pad(x, ((0, 0), (0, -x.shape[1] % GROUP)))
        groups = activations(padded.reshape(-1, GROUP), bits, False)
        return groups.reshape(padded.shape)[:, : x.shape[1]]
    if bits == 32:
        return x.astype(np.float64)
    if bits == 16:
        return bfloat16_to_float32(float32_to_bfloat16(x)).astype(np.float64)
    peak = np.maximum(np.abs(x).max(1, keepdims=True), np.float32(1e-30))
    return np.rint(x * (np.float32(127) / peak)).astype(np.float64) * (peak / np.float32(127))


def quantised(columns: int, inputs: int, bits: int, group: int, kind: str, zeros: bool, seed: int) -> Packed:
    """Random integers of the whole range, with scales that fp16, bf16 or fp32 holds."""
    rng = np.random.default_rng(seed)
    group = group or inputs
    groups = -(-inputs // group)
    values = rng.integers(*((-128, 128) if bits == 8 else (0, 16)), (columns, inputs))
    scale = (rng.standard_normal((columns, groups)) * 0.01).astype(np.float32)
    if kind == "fp16":
        scale = scale.astype(np.float16).astype(np.float32)
    if kind == "bf16":
        scale = bfloat16_to_float32(float32_to_bfloat16(scale))
    zero = None
    if zeros:
        zero = rng.integers(*((-128, 128) if bits == 8 else (0, 17)), (columns, groups)).astype(np.int8)
    return Packed(bits, group, values.astype(np.int8 if bits == 8 else np.uint8), scale, zero)


def meaning(packed: Packed) -> np.ndarray:
    """The weights of a packed matrix, exactly."""
    inputs = packed.values.shape[1]
    zero = np.full(packed.scale.shape, 8 if packed.bits == 4 else 0) if packed.zero is None else packed.zero
    less, times = (each.repeat(packed.group, axis=1)[:, :inputs] for each in (zero, packed.scale))
    return (np.asarray(packed.values).astype(np.float64) - less) * times


def check(held: Held, dense: np.ndarray, x: np.ndarray, bias: np.ndarray | None) -> None:
    """On every instruction set within the rounding of so many sums in fp32 of the sum in float64, and for each row the
    bits that it has alone. The bound is on the sum of magnitudes: half an ulp for each of the additions, twice that."""
    rows = activations(x, held.matrix.bits, by_group(held.matrix))
    wanted, sizes = rows @ dense.T, np.abs(rows) @ np.abs(dense.T)
    if bias is not None:
        wanted, sizes = wanted + bias, sizes + np.abs(bias)
    bound = (dense.shape[1] + 8) * 2.0**-24 * 2 * sizes + 1e-25
    for isa in instruction_sets():
        got = product(held, x, isa)[:, : len(dense)]
        assert np.all(np.abs(got - wanted) <= bound), isa
        for row in {0, len(x) // 2, len(x) - 1}:
            assert np.array_equal(product(held, x[row : row + 1], isa)[0, : len(dense)], got[row]), isa


sizes = {
    "columns": st.integers(1, 100),
    "inputs": st.integers(1, 300),
    "rows": st.integers(1, 21),
    "biased": st.booleans(),
    "seed": st.integers(0, 99),
}


def inputs_of(rows: int, inputs: int, columns: int, biased: bool, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    rng = np.random.default_rng(seed + 1000)
    x = rng.standard_normal((rows, inputs)) * np.logspace(-3, 3, rows)[:, None]
    bias = rng.standard_normal(columns).astype(np.float32) if biased else None
    return x.astype(np.float32), bias


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=20)
@given(**sizes)
def test_a_product_is_that_of_its_weights_in_every_form(
    form: str, columns: int, inputs: int, rows: int, biased: bool, seed: int
) -> None:
    weight = (np.random.default_rng(seed).standard_normal((columns, inputs)) * 0.1).astype(np.float32)
    x, bias = inputs_of(rows, inputs, columns, biased, seed)
    held = Held(weight, bias, form)
    dense = held.dense()[:columns, :inputs]
    if form == "fp32":
        assert np.array_equal(dense, weight)
    if form == "bf16":
        assert np.array_equal(dense, bfloat16_to_float32(float32_to_bfloat16(weight)))
    check(held, dense, x, bias)


@settings(deadline=None, max_examples=60)
@given(
    **sizes,
    bits=st.sampled_from((8, 4)),
    group=st.sampled_from(GROUPS),
    kind=st.sampled_from(("fp16", "bf16", "fp32")),
    zeros=st.booleans(),
)
def test_the_integers_of_a_checkpoint_are_held_exactly_and_multiplied_so(
    columns: int,
    inputs: int,
    rows: int,
    biased: bool,
    seed: int,
    bits: int,
    group: int,
    kind: str,
    zeros: bool,
) -> None:
    packed = quantised(columns, inputs, bits, group, kind, zeros, seed)
    x, bias = inputs_of(rows, inputs, columns, biased, seed)
    held = Held(packed, bias)
    dense = held.dense()[:columns, :inputs]
    assert np.array_equal(dense, meaning(packed))
    if kind != "fp32" and held.offsets.group_kind:
        assert held.offsets.group_kind != 3  # scales of 16 bits stay so
    check(held, dense, x, bias)


def test_every_float16_is_a_scale_on_every_instruction_set() -> None:
    """All finite ones, those without a hidden bit too, against numpy's."""
    finite = np.arange(1 << 16, dtype=np.uint16)
    finite = finite[(finite & 0x7C00) != 0x7C00].view(np.float16).astype(np.float32)
    values = np.full((64, 32 * (len(finite) // 64)), 8, np.uint8)
    values[:, ::32] = 9  # one weight of a group counts
    packed = Packed(4, 32, values, finite.reshape(64, -1))
    held = Held(packed, None)
    assert held.offsets.group_kind == FLOAT16
    for group in range(0, packed.scale.shape[1], 97):
        x = np.zeros((1, values.shape[1]), np.float32)
        x[0, 32 * group] = 127.0
        for isa in instruction_sets():
            wanted = packed.scale[:, group] * np.float32(127)
            assert np.array_equal(product(held, x, isa)[0], wanted), isa


def test_groups_that_no_form_holds_are_refused() -> None:
    packed = quantised(8, 96, 4, 48, "fp16", False, 0)
    with pytest.raises(SyscallError, match=r"groups of 32.* not of 48") as refused:
        Held(packed, None)
    assert refused.value.errno == Errno.ENOTSUP


@pytest.mark.parametrize("zeros", [False, True])
def test_packed_matrices_are_stacked_and_interleaved_as_their_weights_are(zeros: bool) -> None:
    one, other = quantised(20, 96, 4, 32, "fp16", False, 1), quantised(20, 96, 4, 32, "fp16", zeros, 2)
    for join in (stack, interleave):
        joined = join(one, other)
        wanted = join(meaning(one), meaning(other))
        assert np.array_equal(meaning(joined), wanted)
        assert np.array_equal(Held(joined, None).dense()[: len(wanted)], wanted)


@pytest.mark.parametrize("form", FORMS)
def test_tensors_of_every_kind_are_packed_as_their_values_are(form: str) -> None:
    rng = np.random.default_rng(5)
    values = rng.standard_normal((3000, 160)).astype(np.float16).astype(np.float32)  # more than one piece
    values = bfloat16_to_float32(float32_to_bfloat16(values)).astype(np.float16).astype(np.float32)
    plain = Held(values, None, form)
    for tensor in (Tensor("F16", values.astype(np.float16)), Tensor("BF16", float32_to_bfloat16(values))):
        assert bytes(Held(tensor, None, form).arena.bytes(4096, plain.arena.used)) == bytes(
            plain.arena.bytes(4096, plain.arena.used)
        )


# --- what torch made of them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_eight_and_four_bits_are_those_that_torch_gives(seed: int) -> None:
    """Ties go to the even, scales are divided and not multiplied by a reciprocal. The four bits' search compares sums of
    floats, whose order in torch is the CPU's: scales may differ where the errors are the same but for rounding."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(200, 320, generator=generator) * torch.logspace(-4, 4, 200)[:, None]
    weight[3] = 0.0
    weight[4, :32] = torch.tensor([1.0, -1.0] * 16)
    weight[5] = (torch.arange(320) % 255 - 127.0) / 2  # whole and half numbers of its scale
    weight[5, 0] = 127.0
    weight[6, 32:64] = 0.0
    held = Held(weight.numpy(), None, "int8")
    scale = weight.abs().amax(1).clamp_min(1e-30) / 127
    wanted = (weight / scale[:, None]).round()
    assert np.array_equal(held.array(held.offsets.scale, np.float32, 224)[:200], scale.numpy())
    assert np.array_equal(held.dense()[:200], wanted.double().numpy() * scale.double().numpy()[:, None])

    held = Held(weight.numpy(), None, "int4")
    groups = weight.view(200, -1, GROUP)
    full = groups.gather(2, groups.abs().argmax(2, keepdim=True)) / -8
    least, best = torch.full_like(full, float("inf")), torch.zeros_like(groups)
    for shrink in (1.0, 0.95, 0.9, 0.85, 0.8, 0.75):
        scale = (full * shrink).to(torch.bfloat16).float()
        rounded = (groups / torch.where(scale == 0, 1.0, scale)).round().clamp(-8, 7) * scale
        error = (rounded - groups).square().sum(2, keepdim=True)
        best = torch.where(error < least, rounded, best)
        least = torch.minimum(error, least)
    ours = torch.from_numpy(held.dense()[:200, :320]).float().view(groups.shape)
    error = (ours - groups).square().sum(2, keepdim=True)
    same = (ours == best).all(2, keepdim=True)
    assert torch.all(same | ((error - least).abs() <= 1e-6 * least))
    assert same.float().mean() > 0.999


# --- whole models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_in_fp32_logits_and_greedy_tokens_are_those_of_transformers(zoo: Callable[[str], Path], name: str) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(zoo(name), attn_implementation="eager", dtype=torch.float32)
    start = prompt(3, 40)
    with torch.inference_mode():
        tokens = model.generate(
            torch.tensor([start]), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0].tolist()
        wanted = model(input_ids=torch.tensor([tokens])).logits[0]
    built = image(zoo(name), "fp32")
    got = torch.stack(logits_of(built, [tokens], lambda i: 17)[0])
    built.close()
    assert (got - wanted).abs().max() <= 1e-4 * max(1.0, float(wanted.abs().max()))
    assert got[len(start) - 1 : -1].argmax(1).tolist() == tokens[len(start) :]


@pytest.mark.parametrize("name", FAMILIES)
def test_in_bf16_logits_are_those_of_the_rounded_weights(zoo: Callable[[str], Path], name: str) -> None:
    """Against transformers in fp32 with weights in bf16: what is left is the rounding of activations, keys and values."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(zoo(name), attn_implementation="eager", dtype=torch.bfloat16)
    tokens = prompt(3, 64)
    with torch.inference_mode():
        wanted = model.float()(input_ids=torch.tensor([tokens])).logits[0]
    built = image(zoo(name), "bf16")
    got = torch.stack(logits_of(built, [tokens], lambda i: 64)[0])
    built.close()
    assert (got - wanted).norm() / (wanted - wanted.mean(1, keepdim=True)).norm() < 0.05


@pytest.mark.parametrize("form", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["gemma2", "qwen3", "phi3"])
def test_no_bit_of_floats_depends_on_neighbours_chunks_threads_or_frames(
    zoo: Callable[[str], Path], name: str, form: str
) -> None:
    one, pair = (image(zoo(name), form, threads) for threads in (1, 2))
    tokens = prompt(0, 50)
    (alone,) = logits_of(one, [tokens], lambda i: 1)

    def share(step: int, i: int) -> int:
        return 1 + (i + step) % 50

    for count in (1, 3, 9):
        prompts = [prompt(seed, 7 * seed) for seed in range(1, count)] + [tokens]
        for many, step in ((one, 50), (pair, 11)):
            among = logits_of(many, prompts, partial(share, step), seed=count)[-1]
            assert all(torch.equal(*both) for both in zip(alone, among, strict=True)), count
    one.close()
    pair.close()


def greatest(built: Frames, tokens: list[int]) -> list[int]:
    """The token of the greatest logit after each of the tokens."""
    context, run = Context(0), Run(0, 0, 0, tokens, 0, list(range(-(-len(tokens) // BLOCK_TOKENS))))
    assert not context.follow(run)
    batch = built.prepare([run], [context])
    return built.greatest(batch, list(range(len(tokens))))


@pytest.mark.parametrize("form", ["fp32", "bf16"])
def test_the_greatest_is_that_of_the_logits_on_every_instruction_set(zoo: Callable[[str], Path], form: str) -> None:
    tokens, seen = prompt(4, 30), []
    for isa in instruction_sets():
        built = image(zoo("gemma2"), form, kind=NativeKind(Library(native().path, isa), 2))
        logits = torch.stack(logits_of(built, [tokens], lambda i: 30)[0])
        seen.append(logits)
        assert greatest(built, tokens) == logits.argmax(1).tolist(), isa
        built.close()
    for other in seen[1:]:
        assert (other - seen[0]).norm() / seen[0].norm() < (1e-5 if form == "fp32" else 0.02)
