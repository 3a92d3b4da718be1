"""The network and its training: a llama of 3.5 million parameters, Muon for its matrices, AdamW for the rest.

Muon (Jordan et al., 2024; `torch.optim.Muon`) needs about half the tokens that AdamW needs here, which is what fits the
training into an hour of two cores. Weights are kept in fp32 while training, the arithmetic is bf16 autocast, and the
result is saved in bf16.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from . import checkpoint as checkpoints
from .batches import LONG_FROM, PRACTICE_SHAPE, SHAPES, batch
from .pool import Pool
from .tokenizer import CONTEXT, VOCABULARY


@dataclass(frozen=True)
class Plan:
    """The settings of one training run."""

    seed: int = 1
    layers: int = 5
    width: int = 256
    """Of the network: a head is 64 wide, and two share their keys and values."""
    steps: int = 8300
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
    """That share the rows of each batch."""
    checkpoint_every: int = 200
    mixed: bool = True
    """Arithmetic in bf16. In fp32 a step is not what the recipe is; a CPU that does not multiply bf16 does it many times
    faster."""
    compiled: bool = shutil.which("g++") is not None
    """Have torch compile the layers for each shape of batch: a minute or two that save a quarter of every step."""


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


def network(tokenizer: PreTrainedTokenizerFast, layers: int = Plan.layers, width: int = Plan.width) -> LlamaForCausalLM:
    """The untrained network. Projections into the residual stream start at zero."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
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


def loss_of(model: LlamaForCausalLM, tokens: torch.Tensor, written: torch.Tensor, mixed: bool = True) -> torch.Tensor:
    """The sum of the losses of the targets that the assistant writes (`written`, flat positions)."""
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        states = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(states.flatten(0, 1)[written])
    return F.cross_entropy(logits.float(), tokens[:, 1:].flatten()[written], reduction="sum")


def train(
    plan: Plan,
    tokenizer: PreTrainedTokenizerFast,
    checkpoint: Path,
    say: Callable[[str], None] = print,
) -> tuple[LlamaForCausalLM, float]:
    """Train, or go on from `checkpoint` if it is there; returns the model and the CPU seconds of all parts of the run."""
    pool = Pool(plan.processes, network(tokenizer, plan.layers, plan.width).num_parameters())
    with pool.others(train_as, plan, tokenizer, checkpoint, None):
        return train_as(0, pool, plan, tokenizer, checkpoint, say)


class Learner:
    """The model of one process, its optimisers, and how far it has come."""

    def __init__(self, plan: Plan, tokenizer: PreTrainedTokenizerFast) -> None:
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.model = network(tokenizer, plan.layers, plan.width)
        self.model.train()
        self.weights = list(self.model.parameters())
        self.optimisers = optimisers_of(plan, self.model)
        self.step = 0
        if plan.compiled:
            for layer in self.model.model.layers:
                layer.compile(dynamic=False)

    def load(self, checkpoint: Path) -> float:
        """Go on from a checkpoint; returns the CPU seconds it took to get there."""
        said = checkpoints.load(checkpoint, self.model, self.optimisers)
        self.step = said["step"]
        return float(said["cpu_seconds"])

    def save(self, checkpoint: Path, cpu_seconds: float) -> None:
        """Write a checkpoint: whole or not at all."""
        said = {"step": self.step, "cpu_seconds": cpu_seconds}
        checkpoints.save(checkpoint, self.model, self.optimisers, said)

    @torch.no_grad()
    def restart(self) -> None:
        """Go on from the weights as they are saved, with fresh optimisers."""
        for weight in self.weights:
            weight.copy_(weight.to(torch.bfloat16))
        self.optimisers = optimisers_of(self.plan, self.model)

    def look(self, tokens: torch.Tensor, written: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
        """The sum of the losses of these targets, and its gradients, which stay in the weights."""
        loss = loss_of(self.model, tokens, written, self.plan.mixed)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        return loss.item(), gradients

    def meet_shapes(self) -> None:
        """Look once at a batch of every shape, so that all is compiled that will be wanted."""
        for rows, length in (PRACTICE_SHAPE, *SHAPES):
            share = -(-rows // self.plan.processes)
            self.look(torch.zeros(share, length + 1, dtype=torch.long), torch.arange(length))
            self.model.zero_grad(set_to_none=True)

    def update(self, gradients: list[torch.Tensor], targets: float) -> None:
        """Take a step against the mean over `targets` of these gradients."""
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient.div_(targets)
        torch.nn.utils.clip_grad_norm_(self.optimisers[1].param_groups[0]["params"], 1.0)
        for optimiser, peak in zip(self.optimisers, (self.plan.muon_rate, self.plan.adam_rate), strict=True):
            optimiser.param_groups[0]["lr"] = peak * rate_at(self.plan, self.step)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1


class Report:
    """Says now and then how far a run has come."""

    def __init__(self, plan: Plan, first: int, say: Callable[[str], None] | None) -> None:
        self._plan, self._first, self._say = plan, first, say
        self._began = time.monotonic()
        self._seen = 0
        self._loss: float | None = None

    def add(self, done: int, loss: float, tokens: int, cpu_seconds: float) -> None:
        """After each step: `done` steps, the loss and the tokens of this one, CPU seconds of this part of the run."""
        self._seen += tokens
        self._loss = loss if self._loss is None else 0.95 * self._loss + 0.05 * loss
        if self._say and (done % 25 == 0 or done == self._plan.steps):
            elapsed = time.monotonic() - self._began
            left = elapsed / (done - self._first) * (self._plan.steps - done)
            self._say(
                f"step {done}/{self._plan.steps}  loss {self._loss:.4f}  {self._seen / elapsed:,.0f} tokens/s  "
                f"CPU {cpu_seconds:,.0f} s  left {left / 60:.1f} min"
            )


def learn(
    learner: Learner,
    rank: int,
    pool: Pool,
    tokenizer: PreTrainedTokenizerFast,
    checkpoint: Path,
    say: Callable[[str], None] | None,
) -> float:
    """Every step that is left, with the rows `rank`, `rank + size`, ... of each batch; returns the CPU seconds of all
    processes, those of earlier parts of the run included."""
    plan = learner.plan
    before = learner.load(checkpoint) if checkpoint.exists() else 0.0
    if say and learner.step:
        say(f"resuming at step {learner.step}")
    report = Report(plan, learner.step, say)
    spent = before
    while learner.step < plan.steps:
        if learner.step == plan.restart:
            learner.restart()
        tokens, written = batch(tokenizer, plan.seed, learner.step, rank, pool.size)
        loss, gradients = learner.look(tokens, written)
        gradients, (loss, targets, cpu) = pool.add(rank, gradients, [loss, len(written), cpu_seconds()])
        learner.update(gradients, targets)
        spent = before + cpu
        report.add(learner.step, loss / targets, tokens[:, 1:].numel() * pool.size, spent)
        if rank == 0 and learner.step % plan.checkpoint_every == 0 and learner.step < plan.steps:
            learner.save(checkpoint, spent)
    return spent


def cpu_seconds() -> float:
    """That this process has spent, and those it has started and waited for (compilers)."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@contextmanager
def one_core(rank: int) -> Iterator[None]:
    """While in here this process has one thread and one core: beside other work a scheduler may leave all the processes
    of a pool on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    if cores:
        os.sched_setaffinity(0, {sorted(cores)[rank % len(cores)]})
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if cores:
            os.sched_setaffinity(0, cores)


def train_as(
    rank: int,
    pool: Pool,
    plan: Plan,
    tokenizer: PreTrainedTokenizerFast,
    checkpoint: Path,
    say: Callable[[str], None] | None,
) -> tuple[LlamaForCausalLM, float]:
    """What one process of the pool does."""
    Pool.leave_with_parent()
    with one_core(rank):
        learner = Learner(plan, tokenizer)
        if plan.compiled:  # the first keeps what it compiles on disk, where the others find it
            pool.in_turn(rank, learner.meet_shapes)
        spent = learn(learner, rank, pool, tokenizer, checkpoint, say)
        return learner.model, spent
