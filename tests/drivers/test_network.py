"""Describing a model to the native decoder: what of its files is taken, and in what form; what does not fit is named."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmasos.drivers.cpu import open_device
from llmasos.drivers.cpu.native import library
from llmasos.drivers.engine import files
from llmasos.drivers.protocol import Load
from llmasos.modelfiles.tensors import Packed, SafetensorsWeights, Tensor, Weights
from llmasos.syscalls.errno import Errno, SyscallError
from tests import models_zoo
from tests.drivers.feeder import IMAGE, Feeder, engine
from tests.drivers.native_decoder import image, logits_of
from tests.drivers.reference import greedy, prompt

needs_native = pytest.mark.skipif(isinstance(library.load(), str), reason="there is no native decoder")


class Other:
    """The weights of a directory as something else than safetensors, some changed: None takes one away."""

    def __init__(self, directory: Path, changed: dict[str, np.ndarray | None] | None = None) -> None:
        self._whole: Weights = SafetensorsWeights(directory)
        self._changed = changed or {}

    def names(self) -> Collection[str]:
        known = {*self._whole.names(), *self._changed}
        return {name for name in known if self._changed.get(name, 0) is not None}

    def shape(self, name: str) -> tuple[int, ...]:
        return self.get(name).shape

    def get(self, name: str) -> Tensor:
        changed = self._changed.get(name)
        return self._whole.get(name) if changed is None else Tensor("F32", changed)

    def by_rows(self, name: str) -> Tensor:
        return self.get(name)

    def packed(self, name: str) -> Packed | None:
        return None


class Quantised(Other):
    """Linear weights as whole numbers in groups, which is what their values are; but for names with `plain` in them."""

    def __init__(self, directory: Path, bits: int, group: int, plain: str = "nothing") -> None:
        super().__init__(directory)
        self._bits, self._group, self._plain = bits, group, plain
        self.asked: list[str] = []

    def get(self, name: str) -> Tensor:
        packed = self._made(name)
        if packed is None:
            return super().get(name)
        times = packed.values.shape[1] // packed.scale.shape[1]
        scale, zero = np.repeat(packed.scale, times, 1), np.repeat(packed.zero, times, 1)  # type: ignore[arg-type]
        return Tensor("F32", ((np.asarray(packed.values).astype(np.float32) - zero) * scale).astype(np.float32))

    def packed(self, name: str) -> Packed | None:
        self.asked.append(name)
        return self._made(name)

    def _made(self, name: str) -> Packed | None:
        if "_proj.weight" not in name or self._plain in name:
            return None
        weight = self._whole.get(name).float32()
        groups = weight.reshape(len(weight), -1, self._group or weight.shape[1])
        low, high = (0, 15) if self._bits == 4 else (-127, 127)
        least, most = groups.min(2), groups.max(2)
        scale = ((most - least) / (high - low)).astype(np.float16).astype(np.float32)
        zero = np.clip(np.rint(low - least / scale), -128, 127)
        values = np.clip(np.rint(groups / scale[..., None]) + zero[..., None], low, high)
        kind = np.uint8 if self._bits == 4 else np.int8
        return Packed(
            self._bits,
            self._group or weight.shape[1],
            values.reshape(weight.shape).astype(kind),
            scale,
            zero.astype(np.int8),
        )


@needs_native
@pytest.mark.parametrize("name", ["llama", "phi3"])
@pytest.mark.parametrize(("bits", "group"), [(8, 32), (8, 0), (4, 32), (4, 0)])
def test_integers_of_a_checkpoint_are_taken_as_they_are(
    zoo: Callable[[str], Path], name: str, bits: int, group: int
) -> None:
    """What is left between them and the fp32 of their values is the rounding of activations; quantised again, four bits
    with a scale of their own would be off by ten times as much."""
    weights = Quantised(zoo(name), bits, group)
    tokens = prompt(3, 40)
    exact = image(zoo(name), "fp32", weights=weights)
    assert weights.asked == []
    wanted = np.stack(logits_of(exact, [tokens], lambda i: 40)[0])
    exact.close()
    taken = image(zoo(name), f"int{bits}", weights=weights)
    got = np.stack(logits_of(taken, [tokens], lambda i: 40)[0])
    taken.close()
    assert any("down_proj" in name for name in weights.asked)
    off = np.linalg.norm(got - wanted) / np.linalg.norm(wanted - wanted.mean(1, keepdims=True))
    assert off < 0.12


@needs_native
@pytest.mark.parametrize("plain", ["k_proj", "up_proj", "layers.1."])
def test_where_not_all_parts_are_integers_the_values_are_packed(zoo: Callable[[str], Path], plain: str) -> None:
    weights = Quantised(zoo("llama"), 8, 32, plain)
    tokens = prompt(3, 40)
    exact = np.stack(logits_of(image(zoo("llama"), "fp32", weights=weights), [tokens], lambda i: 40)[0])
    mixed = np.stack(logits_of(image(zoo("llama"), "int8", weights=weights), [tokens], lambda i: 40)[0])
    off = np.linalg.norm(mixed - exact) / np.linalg.norm(exact - exact.mean(1, keepdims=True))
    assert off < 0.12


@needs_native
@pytest.mark.parametrize("left", ["model.embed_tokens.weight", "lm_head.weight"])
def test_a_tied_head_is_taken_from_whichever_name_is_there(
    zoo: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    directory = zoo("llama3_rope")
    shared = SafetensorsWeights(directory).get("model.embed_tokens.weight").float32()
    gone = {"model.embed_tokens.weight", "lm_head.weight"} - {left}
    weights = Other(directory, {left: shared, **dict.fromkeys(gone)})
    monkeypatch.setattr(files, "open_weights", lambda *_: weights)
    reference = greedy(directory, prompt(), 12)
    device = engine(directory)
    feeder = Feeder(device)
    assert feeder.generate([feeder.spawn(reference.prompt)], 12) == [reference.tokens]


@needs_native
def test_a_base_models_checkpoint_lacks_the_first_part_of_names(zoo: Callable[[str], Path]) -> None:
    whole = SafetensorsWeights(zoo("llama3_rope"))
    named: dict[str, Any] = dict.fromkeys(whole.names())
    bare = {name.removeprefix("model."): whole.get(name).float32() for name in whole.names()}
    tokens = prompt(2, 20)
    one, other = (
        logits_of(image(zoo("llama3_rope"), "fp32", weights=weights), [tokens], lambda i: 20)[0]
        for weights in (whole, Other(zoo("llama3_rope"), named | bare))
    )
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@needs_native
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model.layers.1.mlp.up_proj.weight": None}, ["missing keys", "model.layers.1.mlp.up_proj.weight"]),
        ({"lm_head.weight": None}, ["missing keys", "lm_head.weight"]),
        (
            {"model.norm.weight": np.ones(63, np.float32)},
            ["other shapes", "model.norm.weight (63,) for (64,)"],
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(
    zoo: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, np.ndarray | None],
    words: list[str],
) -> None:
    monkeypatch.setattr(files, "open_weights", lambda *_: Other(zoo("llama"), changed))
    for dtype in ("fp32", "int8"):
        with pytest.raises(SyscallError) as caught:
            open_device({"threads": "1", "installed": "no"}).fetch(
                Load(1, 3, str(zoo("llama")), dtype, 4), lambda fraction: None
            )()
        assert caught.value.errno is Errno.EIO
        assert all(word in caught.value.reason for word in words)
        assert str(zoo("llama")) in caught.value.reason


@pytest.mark.parametrize("kind", ["gpt2", "qwen3_moe"])
def test_torch_runs_weights_that_are_no_safetensors_by_their_names(
    kind: str, zoo: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' own conversions apply: experts have one name each in files and one for all in the module."""
    if kind in models_zoo.ZOO:
        directory = zoo(kind)
    else:
        more = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
        monkeypatch.setitem(models_zoo.ZOO, kind, (kind, models_zoo.ZOO["llama"][1] | more))
        directory = models_zoo.build(kind, tmp_path)
    monkeypatch.setattr(files, "open_weights", lambda *_: Other(directory))
    reference = greedy(directory, prompt(), 12)
    device = engine(directory)
    feeder = Feeder(device)
    assert feeder.generate([feeder.spawn(reference.prompt)], 12) == [reference.tokens]
    device.unload(IMAGE)
