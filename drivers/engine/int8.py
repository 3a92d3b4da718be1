"""Linear layers in int8: weights quantised per output row, activations per token, products summed in int32 by oneDNN.

The W8A8 scheme of LLM.int8() and SmoothQuant without their treatment of outliers. Each token has a scale of its
own (one scale per batch would let a neighbour's outlier spoil, and change, this row), and integer sums do not depend
on order: a row's result is bit-identical alone and in any batch. Activations between the layers are fp32, which spares
conversions. They are quantised to unsigned values around 128, for which oneDNN has fast kernels on x86 with VNNI; without
VNNI its u8 x s8 products may saturate, so int8 is refused there (hal.py says which machines have it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

_TINY = 1e-30  # in place of the maximum of a row of zeros
_PIECE = 4096  # weight rows quantised at a time: an embedding-sized head in fp32 is large
# Layers that modelling code calls one after the other on the same tensor: one product serves them.
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class Int8Linear(nn.Module):
    """y = x w^T + bias for w [out, in]; x [..., in] and y [..., out] in fp32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        scale = torch.empty(self.out_features)
        quantised = torch.empty(weight.shape, dtype=torch.int8)
        for first in range(0, self.out_features, _PIECE):
            rows = slice(first, first + _PIECE)
            piece = weight[rows].float()
            scale[rows] = piece.abs().amax(1).clamp_min_(_TINY) / 127
            quantised[rows] = piece.div_(scale[rows, None]).round_().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(quantised, None)
        self.scale = scale / 127  # the weights' scale, and the 127 of the activations'
        self.zeros = torch.zeros(self.out_features, dtype=torch.int64)
        self.bias = None if bias is None else bias.float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        if rows.shape[0] == 0:
            return x.new_zeros(*x.shape[:-1], self.out_features)
        quantised, peak = quantise(rows)
        y: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            quantised, 1.0, 128, self.packed, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        y = y.mul_(peak) if self.bias is None else torch.addcmul(self.bias, y, peak)
        return y.view(*x.shape[:-1], self.out_features)

    @property
    def weight_bytes(self) -> int:
        return self.out_features * (self.in_features + 12) + (0 if self.bias is None else 4 * self.out_features)


def quantise(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[rows, in] in fp32 -> u8 values around 128, and the greatest magnitude of each row [rows, 1]."""
    peak = rows.abs().amax(1, keepdim=True).clamp_min_(_TINY)
    # By way of int8: torch converts to it many times faster than to uint8. Adding 128 wraps round as it should.
    return (rows * (127 / peak)).round_().to(torch.int8).view(torch.uint8).add_(128), peak


class _Product:
    """One product for several layers: computed for the first of them that sees an input, kept until the last has."""

    def __init__(self, linear: Int8Linear, widths: list[int]) -> None:
        self._linear = linear
        self._widths = widths
        self._input: torch.Tensor | None = None
        self._outputs: list[torch.Tensor] = []
        self._owed = 0

    def part(self, x: torch.Tensor, index: int) -> torch.Tensor:
        if self._input is not x:
            self._input, self._outputs = x, list(self._linear(x).split(self._widths, dim=-1))
            self._owed = len(self._widths)
        out = self._outputs[index]
        self._owed -= 1
        if self._owed == 0:
            self._input, self._outputs = None, []
        return out


class Int8Part(nn.Module):
    """A layer that shares its product with its siblings."""

    def __init__(self, product: _Product, index: int) -> None:
        super().__init__()
        self._product = product
        self._index = index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._product.part(x, self._index)


def quantise_model(model: nn.Module, progress: Callable[[], None]) -> int:
    """Make every nn.Linear and Conv1D of `model`, the head included, an int8 layer; calls `progress()` at each.

    Embeddings stay as they are and give fp32; a head tied to one gets weights of its own. Everything else becomes
    fp32. Returns the bytes of int8 weights.
    """
    total = 0
    for parent in list(model.modules()):
        linears = {name: child for name, child in parent.named_children() if _weight(child) is not None}
        for names in _SIBLINGS:
            members = [linears[name] for name in names if name in linears]
            if len(members) == len(names) and _alike(members):
                linear = Int8Linear(torch.cat([_matrix(member) for member in members]), _joined_bias(members))
                product = _Product(linear, [len(_matrix(member)) for member in members])
                for index, name in enumerate(names):
                    setattr(parent, name, Int8Part(product, index))
                    del linears[name]
                total += linear.weight_bytes
                progress()
        for name, child in linears.items():
            linear = Int8Linear(_matrix(child), _bias(child))
            setattr(parent, name, linear)
            total += linear.weight_bytes
            progress()
        linears.clear()
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    kept = {id(module.weight) for module in embeddings}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.float()
    for embedding in embeddings:
        embedding.register_forward_hook(lambda module, inputs, output: output.float())
    return total


def _weight(module: nn.Module) -> torch.Tensor | None:
    """The weight of a layer that int8 replaces; None for others."""
    from transformers.pytorch_utils import Conv1D

    return module.weight if isinstance(module, nn.Linear | Conv1D) else None


def _matrix(module: nn.Module) -> torch.Tensor:
    """[out, in], also of a Conv1D, which keeps it the other way round."""
    weight = _weight(module)
    assert weight is not None
    return weight.detach() if isinstance(module, nn.Linear) else weight.detach().t()


def _bias(module: nn.Module) -> torch.Tensor | None:
    bias = module.bias
    return bias.detach() if isinstance(bias, torch.Tensor) else None


def _alike(members: Sequence[nn.Module]) -> bool:
    """Do they take the same input, and have biases all or none?"""
    return (
        len({_matrix(member).shape[1] for member in members}) == 1
        and len({_bias(member) is None for member in members}) == 1
    )


def _joined_bias(members: Sequence[nn.Module]) -> torch.Tensor | None:
    biases = [bias for member in members if (bias := _bias(member)) is not None]
    return torch.cat(biases) if biases else None
