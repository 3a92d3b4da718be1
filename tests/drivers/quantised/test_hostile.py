"""Files that somebody has tampered with: whatever they say, the answer is a weight or an errno with its words."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmasos.drivers.engine.quantised import METHODS, check, native_form
from llmasos.syscalls.errno import Errno, SyscallError
from tests.drivers.quantised.integers import Layer, gptq
from tests.drivers.quantised.layers import FOUR, fp8, layer
from tests.drivers.quantised.methods import METHODS as WRITERS
from tests.drivers.quantised.written import opened, write

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 1 << 40, -(1 << 70), 0.5, float("inf"), "", "x", "\x1b[2J", "gptq_v2", "128x0",
    [], [0, 0], [1, 2, 3], [1 << 40, 1 << 40], {}, {"a": 1}, {"config_groups": {}}, ["re:((a+)+)+$"], [[]], [None],
]  # fmt: skip
CAMPAIGN = 120  # changes of each format


def checkpoints() -> dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    made = {
        name: ({f"l.{part}": tensor for part, tensor in make(weight).items()}, settings)
        for name, (make, settings) in WRITERS.items()
    }
    made["act-order"] = (
        Layer(4, 32, order=True).gptq(less_one=True),
        gptq(4, 32, desc_act=True, dynamic={"+:l.*": {}}),
    )
    made["blocks"] = fp8(torch.ones(2, 4)), {"quant_method": "fp8", "weight_block_size": [64, 64]}
    made["states"] = layer(), FOUR
    experts = {
        "e_blocks": torch.zeros(2, 8, 4, 16, dtype=torch.uint8),
        "e_scales": torch.ones(2, 8, 4, dtype=torch.uint8),
    }
    made["mxfp4"] = experts, {"quant_method": "mxfp4"}
    return made


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be put in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    if not path:
        return odd
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], odd)
    return copy


def spoilt(tensor: torch.Tensor, choose: random.Random) -> torch.Tensor:
    """With three of its bytes changed."""
    raw = tensor.reshape(-1).contiguous().clone().view(torch.uint8)
    for _ in range(3 if len(raw) else 0):
        raw[choose.randrange(len(raw))] = choose.randrange(256)
    return raw.view(tensor.dtype).reshape(tensor.shape)


def use(directory: Path) -> None:
    """What a driver does with a checkpoint. Only SyscallError may come out of it."""
    refused = None
    try:
        with np.errstate(all="ignore"):
            ours = opened(directory)
            for name in ours.names():
                tensor = ours.get(name)
                assert tensor.shape == ours.shape(name)
                ours.packed(name)
    except SyscallError as error:
        refused = error
    if refused is not None:
        assert refused.errno in (Errno.EIO, Errno.ENOTSUP)
        assert refused.reason.isprintable()
        assert len(refused.reason) < 2000


@pytest.mark.parametrize("name", checkpoints())
def test_settings_and_tensors_that_are_changed_end_in_an_errno(name: str, tmp_path: Path) -> None:
    tensors, settings = checkpoints()[name]
    choose = random.Random(name)
    write(tmp_path, tensors, settings)
    for _ in range(CAMPAIGN):
        told, there = settings, dict(tensors)
        for _ in range(choose.randint(1, 2)):
            if choose.random() < 0.6:
                told = changed(told, choose.choice(places(told)[1:] or [()]), choose.choice(ODD))
                continue
            victim = choose.choice(sorted(there))
            tensor = there.pop(victim)
            match choose.randint(0, 5):
                case 0:
                    there[victim] = tensor.flatten()
                case 1:
                    there[victim] = tensor[:1] if tensor.ndim else tensor[None]
                case 2:
                    kind = choose.choice([torch.int8, torch.bool, torch.float64])
                    there[victim] = torch.zeros(tensor.shape, dtype=kind)
                case 3:
                    there[victim] = tensor.new_empty(0)
                case 4:
                    there[victim] = spoilt(tensor, choose)
            if not there:
                there["x"] = torch.zeros(1)
        write(tmp_path, there, told if isinstance(told, dict) else {"quant_method": told})
        use(tmp_path)


def test_no_settings_make_the_choice_of_a_form_fail() -> None:
    choose = random.Random(1)
    whole = [settings for _, settings in checkpoints().values()]
    for _ in range(3000):
        settings = choose.choice(whole)
        settings = changed(settings, choose.choice(places(settings)[1:]), choose.choice(ODD))
        assert native_form(settings) in ("", "int8", "int4")


@pytest.mark.parametrize("method", ["hqq", "", "\x1b]0;x\x07", "a" * 100_000])
def test_a_method_that_is_not_read_is_refused_by_name(method: str) -> None:
    with pytest.raises(SyscallError) as refused:
        check({"quant_method": method})
    assert refused.value.errno == Errno.ENOTSUP
    assert refused.value.reason.isprintable()
    assert len(refused.value.reason) < 500


def test_every_method_has_its_words_in_the_documents() -> None:
    table = (Path(__file__).parents[3] / "docs" / "models.md").read_text()
    for method in METHODS:
        assert f"`{method}`" in table
