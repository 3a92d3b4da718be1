"""GPTQ and AWQ written after their published description, in every shape that people publish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.drivers.engine.quantised import integers
from llmasos.syscalls.errno import Errno, SyscallError
from tests.drivers.quantised.integers import COLUMNS, INPUTS, Layer, gptq, words
from tests.drivers.quantised.written import meant, same, written


@given(st.integers(2, 8), st.integers(1, 70), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_words_give_back_what_was_put_in(bits: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, (3, count))
    assert integers.unpack(words(values, bits), bits, count).tolist() == values.tolist()


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_means_what_its_integers_say(bits: int, group: int, order: bool, tmp_path: Path) -> None:
    layer = Layer(bits, group, order=order)
    config = gptq(bits, group, checkpoint_format="gptq_v2", desc_act=order)
    ours = written(tmp_path, layer.gptq(less_one=False), config)
    assert same(ours.get("l.weight"), layer.weight)
    packed = ours.packed("l.weight")
    ordered = not order or group in (-1, INPUTS)
    assert (packed is not None) is (bits in (4, 8) and ordered)
    if packed is not None:
        assert torch.equal(torch.from_numpy(meant(packed)).half(), layer.weight)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_first_format_stores_zeros_less_one(bits: int, tmp_path: Path) -> None:
    layer = Layer(bits, 32)
    layer.zeros = np.maximum(layer.zeros, 1)
    ours = written(tmp_path, layer.gptq(less_one=True), gptq(bits, 32))
    assert same(ours.get("l.weight"), layer.weight)


def test_a_checkpoint_without_g_idx_has_its_inputs_side_by_side(tmp_path: Path) -> None:
    layer = Layer(4, 64)
    tensors = layer.gptq(less_one=False)
    del tensors["l.g_idx"]
    ours = written(tmp_path, tensors, gptq(4, 64, checkpoint_format="gptq_v2"))
    assert same(ours.get("l.weight"), layer.weight)


def test_gpt2_has_its_weights_the_other_way_round(tmp_path: Path) -> None:
    layer = Layer(4, 64)
    config = gptq(4, 64, checkpoint_format="gptq_v2")
    ours = written(tmp_path, layer.gptq(less_one=False), config, model_type="gpt2")
    assert ours.shape("l.weight") == (INPUTS, COLUMNS)
    assert same(ours.get("l.weight"), layer.weight.T)
    assert ours.packed("l.weight") is None


def test_the_settings_of_old_repositories_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    layer = Layer(4, 64)
    layer.zeros = np.maximum(layer.zeros, 1)
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "group_size": 64, "desc_act": false, "sym": false}')
    assert same(written(tmp_path, layer.gptq(less_one=True), None).get("l.weight"), layer.weight)


def test_exceptions_of_layers_are_heeded(tmp_path: Path) -> None:
    eight, four = Layer(8, 64), Layer(4, 32, seed=1)
    tensors = {name.replace("l.", "model.up.", 1): tensor for name, tensor in eight.gptq(less_one=False).items()}
    tensors |= {name.replace("l.", "model.q.", 1): tensor for name, tensor in four.gptq(less_one=False).items()}
    dynamic = {r"-:.*\.k$": {}, r"+:.*\.up$": {"bits": 8, "group_size": 64}}
    ours = written(tmp_path, tensors, gptq(4, 32, checkpoint_format="gptq_v2", dynamic=dynamic))
    assert same(ours.get("model.up.weight"), eight.weight)
    assert same(ours.get("model.q.weight"), four.weight)
    extra = {"model.up": {"bits": 8, "group_size": 64}, "model.k": {"bits": 16}}
    config = {
        "quant_method": "auto-round",
        "bits": 4,
        "group_size": 32,
        "packing_format": "auto_round:gptqmodel",
    }
    ours = written(tmp_path / "auto-round", tensors, config | {"extra_config": extra})
    assert same(ours.get("model.up.weight"), eight.weight)


@pytest.mark.parametrize("group", [32, 64, 128, -1])
@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "awq", "version": "gemm", "zero_point": True},
        {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq"},
    ],
    ids=["awq", "auto-round"],
)
def test_awq_means_what_its_integers_say(config: dict[str, Any], group: int, tmp_path: Path) -> None:
    layer = Layer(4, group)
    ours = written(tmp_path, layer.awq(), config | {"bits": 4, "group_size": group})
    assert same(ours.get("l.weight"), layer.weight)
    packed = ours.packed("l.weight")
    assert packed is not None
    assert packed.group == layer.size
    assert np.asarray(packed.values).tolist() == layer.values.tolist()
    assert torch.equal(torch.from_numpy(meant(packed)).half(), layer.weight)


@pytest.mark.parametrize(
    ("change", "words_"),
    [
        ({"checkpoint_format": "marlin"}, "marlin"),
        ({"bits": 5}, "5 bits"),
        ({"is_marlin_format": True}, "gptq"),
        ({"rotation": "hadamard"}, "rotation"),
        ({"quant_method": "awq", "version": "gemv_fast"}, "gemv_fast"),
        ({"quant_method": "awq", "bits": 8}, "8 bits"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:nv_fp"}, "nv_fp"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "\x1b]0;owned\x07"}, r"\x1b"),
    ],
)
def test_what_is_not_read_is_refused_by_name(change: dict[str, Any], words_: str, tmp_path: Path) -> None:
    with pytest.raises(SyscallError) as refused:
        written(tmp_path, Layer(4, 32).gptq(less_one=True), gptq(4, 32) | change)
    assert refused.value.errno == Errno.ENOTSUP
    assert words_ in refused.value.reason
    assert refused.value.reason.isprintable()


@pytest.mark.parametrize(
    ("change", "words_"),
    [
        ({"l.scales": torch.ones(3, COLUMNS).half()}, "l.scales"),
        ({"l.scales": torch.ones(4, COLUMNS, dtype=torch.int32)}, "l.scales"),
        ({"l.qzeros": torch.zeros(4, 5, dtype=torch.int32)}, "l.qzeros"),
        ({"l.qweight": torch.zeros(16, COLUMNS)}, "l.qweight"),
        ({"l.g_idx": torch.zeros(9, dtype=torch.int32)}, "l.g_idx"),
        ({"l.weight": torch.zeros(COLUMNS, INPUTS)}, "twice"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(change: dict[str, torch.Tensor], words_: str, tmp_path: Path) -> None:
    with pytest.raises(SyscallError) as refused:
        written(tmp_path, Layer(4, 32).gptq(less_one=True) | change, gptq(4, 32))
    assert (refused.value.errno, words_ in refused.value.reason) == (Errno.EIO, True)


def test_a_group_that_is_not_there_is_told_when_it_is_read(tmp_path: Path) -> None:
    tensors = Layer(4, 32).gptq(less_one=True) | {"l.g_idx": torch.full((INPUTS,), 99, dtype=torch.int32)}
    ours = written(tmp_path, tensors, gptq(4, 32))
    for ask in (ours.get, ours.packed):
        with pytest.raises(SyscallError, match="group 99 of 4") as refused:
            ask("l.weight")
        assert refused.value.errno == Errno.EIO


@pytest.mark.parametrize("value", [0, -2, True, 1 << 60, "4", 3.5, [4]])
def test_numbers_of_a_configuration_are_bounded(value: Any, tmp_path: Path) -> None:
    with pytest.raises(SyscallError) as refused:
        written(tmp_path, Layer(4, 32).gptq(less_one=True), gptq(4, 32) | {"bits": value})
    assert refused.value.errno == Errno.EIO
