"""Linear layers with int8 weights and int8 activations, in a few torch operations.

Weights have one scale per output row, activations one per token, so a token's result does not depend on what else is
in the batch. The product is oneDNN's u8 x s8 (activations are shifted by 128). The engine of the system has an int8 path
of its own; this one serves to evaluate the model without it.
"""

import torch
from torch import nn


class Int8Linear(nn.Module):
    """`x @ weight.T` for `x [..., in]` and a quantised `weight [out, in]`."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        rows = weight.detach().float()
        self.scales = rows.abs().amax(dim=1).clamp_min(1e-12) / 127
        quantised = (rows / self.scales[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(quantised, None)
        self.zeros = torch.zeros(len(rows), dtype=torch.int32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, -2).float()
        scale = flat.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
        codes = (flat / scale).round_().add_(128).to(torch.uint8)
        product = torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, 128, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        result: torch.Tensor = (product * scale).to(x.dtype).unflatten(0, x.shape[:-1])
        return result


def quantise(model: nn.Module) -> None:
    """Replace every linear layer of a transformers model in place, the language-model head included.

    Where the head is tied to the embeddings only the head becomes int8: it gets a quantised copy, the embeddings stay.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child.weight))
