"""A checkpoint of a training: tensors as safetensors, and in the same file, as JSON, what is no tensor. Nothing in
it is code, as it could be in a pickle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def save(path: Path, model: torch.nn.Module, optimisers: Sequence[torch.optim.Optimizer], said: dict[str, Any]) -> None:
    """Write a checkpoint: whole or not at all. `said` is what else there is to know."""
    # Tied weights are two names for one tensor, and each gets its own bytes.
    tensors = {f"model/{name}": weight.detach().clone() for name, weight in model.state_dict().items()}
    plain: list[dict[str, Any]] = []
    for number, optimiser in enumerate(optimisers):
        state = optimiser.state_dict()
        others: dict[str, dict[str, Any]] = {}
        for index, entries in state["state"].items():
            for name, value in entries.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimiser/{number}/{index}/{name}"] = value.detach().clone()
                else:
                    others.setdefault(str(index), {})[name] = value
        plain.append({"groups": state["param_groups"], "state": others})
    part = path.with_suffix(".part")
    save_file(tensors, part, {"said": json.dumps(said), "optimisers": json.dumps(plain)})
    part.replace(path)


def load(path: Path, model: torch.nn.Module, optimisers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """Put a checkpoint into a model and its optimisers; returns what else was said."""
    weights: dict[str, torch.Tensor] = {}
    with safe_open(path, "pt") as file:
        notes = file.metadata()
        plain = json.loads(notes["optimisers"])
        states: list[dict[int, dict[str, Any]]] = [
            {int(index): dict(entries) for index, entries in one["state"].items()} for one in plain
        ]
        for key in file.keys():  # noqa: SIM118 (it is no dict)
            kind, _, rest = key.partition("/")
            if kind == "model":
                weights[rest] = file.get_tensor(key)
            else:
                number, index, name = rest.split("/", 2)
                states[int(number)].setdefault(int(index), {})[name] = file.get_tensor(key)
    model.load_state_dict(weights)
    for optimiser, state, one in zip(optimisers, states, plain, strict=True):
        optimiser.load_state_dict({"state": state, "param_groups": one["groups"]})
    said: dict[str, Any] = json.loads(notes["said"])
    return said
