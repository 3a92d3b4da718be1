"""The network and its training: a llama of 3.5 million parameters, Muon for its matrices, AdamW for the rest.

Muon (Jordan et al., 2024; `torch.optim.Muon`) needs about half the tokens that AdamW needs here, which is what fits the
training into an hour of two cores. Weights are kept in fp32 while training, the arithmetic is bf16 autocast, and the
result is saved in bf16.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import multiprocessing, nn
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .batches import LONG_FROM, batch
from .tokenizer import CONTEXT, VOCABULARY


@dataclass(frozen=True)
class Plan:
    """The settings of one training run."""

    seed: int = 1
    steps: int = 6900
    warmup: int = 60
    decay_from: int = 2600
    """The step after which the learning rate falls as a parabola, to zero at `restart`."""
    restart: int = LONG_FROM
    """The step at which training starts anew from the weights as they are saved (bf16), with fresh optimisers."""
    restart_rate: float = 0.6
    """Of the peak: what the rate falls from then, to zero at the last step."""
    muon_rate: float = 0.005
    adam_rate: float = 0.002
    processes: int = 2
    checkpoint_every: int = 200


PARTNER_TIMEOUT = 600.0
"""Seconds to wait for another process of the pool: a step takes one, a machine under load more."""


QUERIES = 256
"""Queries that attend together: what lies behind them is then not computed, and their scores stay in the cache. Plain
products of these pieces, forwards and backwards, take half the time of torch's fused CPU kernel."""


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
    key, value = key.repeat_interleave(group, dim=1).transpose(2, 3), value.repeat_interleave(group, dim=1)
    query = query * scaling
    length = query.shape[2]
    later = torch.full((QUERIES, QUERIES), float("-inf"), dtype=query.dtype).triu(1)
    mixed = []
    for first in range(0, length, QUERIES):
        end = min(first + QUERIES, length)
        scores = query[:, :, first:end] @ key[..., :end]
        scores[..., first:] += later[: end - first, : end - first]
        mixed.append(scores.softmax(-1).to(value.dtype) @ value[:, :, :end])
    return torch.cat(mixed, dim=2).transpose(1, 2), None


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
    if step >= plan.restart:
        since, length = step - plan.restart, plan.steps - plan.restart
        return plan.restart_rate * min(1.0, (since + 1) / plan.warmup) * (1 - since / length) ** 2
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    left = (plan.restart - step) / max(1, plan.restart - plan.decay_from)
    return min(1.0, left) ** 2


def optimisers_of(plan: Plan, model: LlamaForCausalLM) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for the embedding and the norms."""
    named = list(model.named_parameters())
    matrices = [weight for name, weight in named if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in named if weight.ndim != 2 or "embed" in name]
    return (
        torch.optim.Muon(matrices, lr=plan.muon_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=plan.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    )


def loss_of(model: LlamaForCausalLM, tokens: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
    """The sum of the losses of the targets that the assistant writes (`written`, flat positions)."""
    with torch.autocast("cpu", torch.bfloat16):
        states = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(states.flatten(0, 1)[written])
    return F.cross_entropy(logits.float(), tokens[:, 1:].flatten()[written], reduction="sum")


class Pool:
    """Processes that share the rows of each batch and add their gradients up.

    Each has one thread, the whole model and its own optimisers; all add the same numbers in the same order, so their
    models stay equal to the bit. Two of them take a third less time than one with two threads.
    """

    def __init__(self, processes: int, parameters: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.size = processes
        self._sums = torch.zeros(processes, parameters + 2).share_memory_()  # type: ignore[no-untyped-call] # gradients, loss, CPU seconds
        self._barrier = context.Barrier(processes)
        self._context = context

    def start(self, work: Callable[..., object], *arguments: object) -> None:
        """Start all but the first process, with `work(rank, pool, *arguments)`; they go when this process does."""
        for rank in range(1, self.size):
            self._context.Process(target=work, args=(rank, self, *arguments), daemon=True).start()

    def add(self, rank: int, model: LlamaForCausalLM, loss: float, seconds: float) -> tuple[float, float]:
        """Give every parameter the sum of all processes' gradients; returns the sums of the losses and CPU seconds.

        Raises:
            threading.BrokenBarrierError: another process has gone.
        """
        weights = list(model.parameters())
        mine = self._sums[rank]
        torch.cat([weight.grad.flatten() for weight in weights], out=mine[:-2])
        mine[-2], mine[-1] = loss, seconds
        self._barrier.wait(PARTNER_TIMEOUT)
        total = self._sums.sum(0)
        self._barrier.wait(PARTNER_TIMEOUT)  # nobody writes the next ones before all have read these
        for weight, part in zip(
            weights, total.split([weight.numel() for weight in weights] + [2])[:-1], strict=True
        ):
            weight.grad = part.view_as(weight)
        return total[-2].item(), total[-1].item()


def save(state: dict[str, object], checkpoint: Path) -> None:
    """Write a checkpoint: whole or not at all."""
    part = checkpoint.with_suffix(".part")
    torch.save(state, part)
    part.replace(checkpoint)


def train(
    plan: Plan,
    tokenizer: PreTrainedTokenizerFast,
    checkpoint: Path,
    say: Callable[[str], None] = print,
) -> tuple[LlamaForCausalLM, float]:
    """Train, or go on from `checkpoint` if it is there; returns the model and the CPU seconds of all parts of the run."""
    pool = Pool(plan.processes, network(tokenizer).num_parameters())
    pool.start(train_as, plan, tokenizer, checkpoint, None)
    return train_as(0, pool, plan, tokenizer, checkpoint, say)


def train_as(
    rank: int,
    pool: Pool,
    plan: Plan,
    tokenizer: PreTrainedTokenizerFast,
    checkpoint: Path,
    say: Callable[[str], None] | None,
) -> tuple[LlamaForCausalLM, float]:
    """What one process of the pool does: with the rows `rank`, `rank + size`, ... of each batch."""
    torch.set_num_threads(1)
    if hasattr(
        os, "sched_setaffinity"
    ):  # a scheduler may leave both on one core beside other work: all wait then
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.manual_seed(plan.seed)
    model = network(tokenizer)
    model.train()
    optimisers = optimisers_of(plan, model)
    peaks = (plan.muon_rate, plan.adam_rate)
    first, spent, smooth = 0, 0.0, None
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        first, spent = state["step"], state["cpu_seconds"]
        if say:
            say(f"resuming at step {first}")
    wall, seen = time.monotonic(), 0
    seconds = spent
    for step in range(first, plan.steps):
        if step == plan.restart:
            with torch.no_grad():
                for weight in model.parameters():
                    weight.copy_(weight.to(torch.bfloat16))
            optimisers = optimisers_of(plan, model)
        tokens, written = batch(tokenizer, plan.seed, step)
        length = tokens.shape[1] - 1
        rows, columns = written // length, written % length
        mine = rows % pool.size == rank
        part = rows[mine] // pool.size * length + columns[mine]
        loss = loss_of(model, tokens[rank :: pool.size], part) / len(written)
        loss.backward()  # type: ignore[no-untyped-call]
        value, cpu = pool.add(rank, model, loss.item(), time.process_time())
        torch.nn.utils.clip_grad_norm_(optimisers[1].param_groups[0]["params"], 1.0)
        for optimiser, peak in zip(optimisers, peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * rate_at(plan, step)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        seen += tokens.shape[0] * length
        smooth = value if smooth is None else 0.95 * smooth + 0.05 * value
        done, seconds = step + 1, spent + cpu
        if say and (done % 25 == 0 or done == plan.steps):
            elapsed = time.monotonic() - wall
            left = elapsed / (done - first) * (plan.steps - done)
            say(
                f"step {done}/{plan.steps}  loss {smooth:.4f}  {seen / elapsed:,.0f} tokens/s  "
                f"CPU {seconds:,.0f} s  left {left / 60:.1f} min"
            )
        if rank == 0 and done % plan.checkpoint_every == 0 and done < plan.steps:
            states = [optimiser.state_dict() for optimiser in optimisers]
            save(
                {"model": model.state_dict(), "optimisers": states, "step": done, "cpu_seconds": seconds},
                checkpoint,
            )
    return model, seconds
