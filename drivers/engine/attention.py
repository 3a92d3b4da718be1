"""Attention of packed rows over paged KV, as the function that transformers' modelling code calls for every layer.

The rows' new keys and values are written to their frames first; then every group of rows (plan.py) gathers the frames
it sees and attends over them. On a CPU one fused kernel does a group; its tiles of 512 keys are summed in order,
so a row's result depends on its own keys only. vLLM's CPU backend reads frames in place; gathering costs
one more pass over the KV, which decode hides behind the weights it has to read anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from llmasos.drivers.engine.plan import Group, Plan
from llmasos.drivers.engine.torch_kv import TorchSlab

# With fewer query rows per key head the CPU's product takes its matrix-vector path, which sums in another order.
MIN_QUERY_ROWS = 4


class PagedAttention:
    """The attention of one image's layers. `plan` must be set before the model is called."""

    def __init__(self, slots: dict[torch.nn.Module, int]) -> None:
        self.slots = slots  # attention module -> layer of the slab
        self.slab: TorchSlab | None = None
        self.plan: Plan | None = None

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: Any,  # what else may come was checked when the model was opened (architecture.py)
    ) -> tuple[torch.Tensor, None]:
        """query [1, heads, rows, dim], key and value [1, kv_heads, rows, dim] -> [1, rows, heads, dim]."""
        plan, slab = self.plan, self.slab
        assert plan is not None
        assert slab is not None
        layer = self.slots[module]
        heads, dim = query.shape[1], query.shape[3]
        kv_heads = slab.shape.heads
        repeat = heads // kv_heads
        scale = dim**-0.5 if scaling is None else scaling
        dtype = query.dtype
        if dtype != slab.dtype:
            query, key, value = (x.to(slab.dtype) for x in (query, key, value))

        keys, values = slab.token_rows[layer]
        keys.index_copy_(0, plan.kv_index, key[0, :, : plan.rows].transpose(0, 1).reshape(-1, dim))
        values.index_copy_(0, plan.kv_index, value[0, :, : plan.rows].transpose(0, 1).reshape(-1, dim))

        rows = query[0].transpose(0, 1).reshape(-1, kv_heads, repeat, dim)
        parts: list[torch.Tensor] = []
        for group in plan.groups[sliding_window]:
            gathered = slab.block_rows[layer].index_select(0, group.index)
            k, v = gathered.view(2, -1, kv_heads, group.keys, dim)
            part = rows[group.first : group.last]
            if group.decode:
                parts.append(_decode(part, k, v, group, scale, softcap).reshape(-1, heads, dim))
            else:
                parts.append(_segment(part, k, v, group, scale, softcap).reshape(-1, heads, dim))
        if plan.padded > plan.rows:
            parts.append(query.new_zeros(plan.padded - plan.rows, heads, dim))
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out.to(dtype)[None], None


def _decode(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, group: Group, scale: float, softcap: float | None
) -> torch.Tensor:
    """q [rows, kv_heads, repeat, dim], k and v [rows, kv_heads, keys, dim] -> as q."""
    repeat = q.shape[2]
    if repeat < MIN_QUERY_ROWS:
        q = q.repeat(1, 1, -(-MIN_QUERY_ROWS // repeat), 1)
    return _attend(q, k, v, group.mask, scale, softcap)[:, :, :repeat]


def _segment(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, group: Group, scale: float, softcap: float | None
) -> torch.Tensor:
    """q [rows, kv_heads, repeat, dim], k and v [1, kv_heads, keys, dim] -> as q."""
    repeat = q.shape[2]
    shape = (k.shape[1], repeat, *k.shape[2:])
    out = _attend(
        q.permute(1, 2, 0, 3),
        k[0][:, None].expand(shape),
        v[0][:, None].expand(shape),
        group.mask,
        scale,
        softcap,
    )
    return out.permute(2, 0, 1, 3)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float, softcap: float | None
) -> torch.Tensor:
    """softmax(softcap(scale * q k^T) + mask) v for [batch, heads, rows, dim]; `mask` is broadcast to the scores."""
    if softcap is not None:
        scores = torch.matmul(q, k.transpose(-1, -2)).float().mul_(scale / softcap).tanh_().mul_(softcap)
        weights = functional.softmax(scores.add_(mask), dim=-1)
        return torch.matmul(weights.to(v.dtype), v)
    mask = mask.expand(q.shape[0], mask.shape[1], q.shape[2], k.shape[2])
    if q.device.type == "cpu":
        out: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, attn_mask=mask, scale=scale
        )[0]
        return out
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype), scale=scale)
