"""The network and its training: a llama of 3.5 million parameters, Muon for its matrices, AdamW for the rest.

Muon (Jordan et al., 2024; `torch.optim.Muon`) needs about half the tokens that AdamW needs here, which is what fits the
training into an hour of two cores. Weights are kept in fp32 while training, the arithmetic is bf16 autocast, and the
result is saved in bf16.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .batches import batch
from .tokenizer import CONTEXT, VOCABULARY


@dataclass(frozen=True)
class Plan:
    """The settings of one training run."""

    seed: int = 1
    steps: int = 2600
    warmup: int = 60
    decay_from: int = 1200
    """The step after which the learning rate falls as a parabola, to zero at the last step."""
    muon_rate: float = 0.005
    adam_rate: float = 0.002
    threads: int = 2
    checkpoint_every: int = 200


LONGEST_PLAIN = 512
"""Sequences up to this length are attended to by plain products, which beat torch's fused CPU kernel backwards 2-4x."""


def causal_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float = 1.0,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention of whole sequences: `query [rows, heads, T, D]`, `key` and `value [rows, kv heads, T, D]`."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    length = query.shape[2]
    if length > LONGEST_PLAIN:
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    else:
        mask = torch.full((length, length), float("-inf"), dtype=query.dtype).triu(1)
        mixed = (query @ key.transpose(2, 3) * scaling + mask).softmax(-1).to(value.dtype) @ value
    return mixed.transpose(1, 2), None


AttentionInterface.register("tiny_training", causal_attention)


def network(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained network. Projections into the residual stream start at zero."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="tiny_training")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
    return model


def rate_at(plan: Plan, step: int) -> float:
    """The learning rate of a step as a share of its peak."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    left = (plan.steps - step) / max(1, plan.steps - plan.decay_from)
    return min(1.0, left) ** 2


def loss_of(model: LlamaForCausalLM, tokens: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
    """The mean loss of the targets that the assistant writes (`written`, flat positions)."""
    with torch.autocast("cpu", torch.bfloat16):
        states = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(states.flatten(0, 1)[written])
    return F.cross_entropy(logits.float(), tokens[:, 1:].flatten()[written])


def train(
    plan: Plan,
    tokenizer: PreTrainedTokenizerFast,
    checkpoint: Path,
    say: Callable[[str], None] = print,
) -> tuple[LlamaForCausalLM, float]:
    """Train, or go on from `checkpoint` if it is there; returns the model and the CPU seconds of all parts of the run."""
    torch.set_num_threads(plan.threads)
    torch.manual_seed(plan.seed)
    model = network(tokenizer)
    model.train()
    matrices = [
        weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name
    ]
    others = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
    optimisers: tuple[torch.optim.Optimizer, ...] = (
        torch.optim.Muon(matrices, lr=plan.muon_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=plan.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    )
    peaks = (plan.muon_rate, plan.adam_rate)
    first, spent = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        first, spent = state["step"], state["cpu_seconds"]
        say(f"resuming at step {first}")
    began, wall = time.process_time(), time.monotonic()
    seen = 0
    smooth: float | None = None
    for step in range(first, plan.steps):
        tokens, written = batch(tokenizer, plan.seed, step)
        loss = loss_of(model, tokens, written)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimiser, peak in zip(optimisers, peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * rate_at(plan, step)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        seen += tokens.shape[0] * (tokens.shape[1] - 1)
        value = loss.item()
        smooth = value if smooth is None else 0.95 * smooth + 0.05 * value
        done = step + 1
        if done % 25 == 0 or done == plan.steps:
            elapsed = time.monotonic() - wall
            left = elapsed / (done - first) * (plan.steps - done)
            cpu = spent + time.process_time() - began
            say(
                f"step {done}/{plan.steps}  loss {smooth:.4f}  {seen / elapsed:,.0f} tokens/s  "
                f"CPU {cpu:,.0f} s  left {left / 60:.1f} min"
            )
        if done % plan.checkpoint_every == 0 and done < plan.steps:
            state = {
                "model": model.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in optimisers],
                "step": done,
                "cpu_seconds": spent + time.process_time() - began,
            }
            part = checkpoint.with_suffix(".part")
            torch.save(state, part)
            part.replace(checkpoint)
    return model, spent + time.process_time() - began
