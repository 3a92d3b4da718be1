"""How the embedded model is trained: work is shared, runs stop and go on."""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmasos.models.tiny.recipe.batches import batch
from llmasos.models.tiny.recipe.training import Learner, Plan, train

TINY = Path(__file__).parents[2] / "models" / "tiny"
PLAN = Plan(
    layers=1, width=128, steps=3, warmup=1, decay_from=1, restart=1, checkpoint_every=1, mixed=False, compiled=False
)  # narrow: Muon multiplies in bf16, which takes seconds a step where the CPU does not


class Stopped(Exception):
    pass


def quiet(line: str) -> None:
    pass


def stop_at(what: str) -> Callable[[str], None]:
    def say(line: str) -> None:
        if what in line:
            raise Stopped

    return say


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(TINY)
    return tokenizer


def test_two_processes_find_the_loss_of_one(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    losses = []
    for processes in (1, 2):
        said: list[str] = []
        train(replace(PLAN, steps=1, processes=processes), tokenizer, tmp_path / f"{processes}.pt", said.append)
        losses.append(float(said[-1].split("loss ")[1].split()[0]))
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)


def test_processes_make_a_batch_together(tokenizer: PreTrainedTokenizerFast) -> None:
    whole, _ = batch(tokenizer, 1, 3000)
    parts = [batch(tokenizer, 1, 3000, rank, 2)[0] for rank in range(2)]
    assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), whole)


@pytest.mark.filterwarnings("ignore")  # torch warns of its own workings
@pytest.mark.skipif(not Plan.compiled, reason="there is no C++ compiler here")
def test_compiled_layers_find_what_others_find(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = torch.randint(0, 2000, (2, 33), generator=torch.Generator().manual_seed(1))

    def look(compiled: bool) -> tuple[float, list[torch.Tensor]]:
        learner = Learner(replace(PLAN, compiled=compiled), tokenizer)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for weight in learner.weights:
                if not weight.any():  # as it begins; most gradients are zero then
                    weight.normal_(0, 0.02, generator=generator)
        return learner.look(tokens, torch.arange(64))

    from torch._inductor import config as inductor

    with inductor.patch(compile_threads=1):  # a pool of processes is not repaid by so few kernels
        plain, compiled = look(False), look(True)
    assert compiled[0] == pytest.approx(plain[0], rel=1e-3)
    for weight, other in zip(compiled[1], plain[1], strict=True):
        assert torch.linalg.norm(other) > 0
        assert torch.linalg.norm(weight - other) <= 0.05 * torch.linalg.norm(other)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    whole, cpu_seconds = train(PLAN, tokenizer, tmp_path / "whole.pt", quiet)
    assert cpu_seconds > 0
    with pytest.raises(Stopped):
        train(PLAN, tokenizer, tmp_path / "stopped.pt", stop_at("step 3/3"))
    model, spent = train(PLAN, tokenizer, tmp_path / "stopped.pt", quiet)
    assert spent > 0
    for (name, weight), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(weight, other), name


def test_a_run_that_loses_a_process_says_so_at_once(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    def kill() -> None:
        while not (others := multiprocessing.active_children()):
            time.sleep(0.05)
        others[0].kill()

    killer = Thread(target=kill)
    killer.start()
    with pytest.raises(RuntimeError, match="start again to go on"):
        train(replace(PLAN, steps=500), tokenizer, tmp_path / "lost.pt", quiet)
    killer.join()
    assert not multiprocessing.active_children()
