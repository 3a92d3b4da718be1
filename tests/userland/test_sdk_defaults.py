"""What generation_config.json says is the process's, field by field, where the caller gives nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Finish, Sampler, SamplingDefaults
from llmasos.syscalls.table import BootInfoCall, Decode, Spawn
from llmasos.userland.sdk.llm import LLM
from llmasos.userland.sdk.options import Options
from llmasos.userland.sdk.system import System
from tests import models_zoo
from tests.userland.references import PROMPT, reference, reference_ids

pytestmark = pytest.mark.processes

ADVISED = SamplingDefaults(temperature=0.7, top_k=20, repetition_penalty=1.05)


# --- field by field -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, Sampler(0.7, 20, 1.0, 0.0, 1.05)),
        ({"temperature": 0.0}, Sampler(0.0, 20, 1.0, 0.0, 1.05)),
        ({"temperature": 1.5, "top_p": 0.5}, Sampler(1.5, 20, 0.5, 0.0, 1.05)),
        ({"top_k": 0, "repetition_penalty": 1.0}, Sampler(0.7)),
        ({"seed": 3}, Sampler(0.7, 20, 1.0, 0.0, 1.05, 3)),
        ({"defaults": False}, None),
        ({"defaults": False, "seed": 3}, Sampler(seed=3)),
        ({"defaults": False, "min_p": 0.1}, Sampler(min_p=0.1)),
    ],
    ids=str,
)
def test_each_field_is_the_callers_else_the_makers_else_off(options: dict[str, Any], wanted: Sampler | None) -> None:
    assert Options(**options).sampler(ADVISED) == wanted


def test_where_the_makers_say_nothing_a_process_is_greedy_with_a_seed_of_its_own() -> None:
    assert Options().sampler(SamplingDefaults()) is None
    assert Options().sampler(SamplingDefaults(temperature=0.0)) is None


# --- on a real system -----------------------------------------------------------------------------------------------


def with_file(zoo: Path, directory: Path, fields: dict[str, Any]) -> Path:
    """A copy of a model with this generation_config.json."""
    shutil.copytree(zoo, directory)
    (directory / "generation_config.json").write_text(json.dumps(fields))
    return directory


def test_text_ends_where_generation_config_says_and_so_do_beams(
    cpu_system: System, zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    """Row 4: config.json names one end, generation_config.json another beside it, as most instruct models do."""
    liked = reference_ids(zoo("llama"), PROMPT, max_new_tokens=8)[4]
    ends = [models_zoo.EOS, liked]
    model = with_file(zoo("llama"), tmp_path / "ends", {"eos_token_id": ends})
    llm = LLM.from_pretrained(model, dtype="fp32", system=cpu_system)
    assert llm.model.eos_ids == ends
    answer = reference_ids(model, PROMPT, max_new_tokens=24)
    assert answer[-1] == liked
    assert len(answer) < 24
    assert llm.generate(PROMPT, max_new_tokens=24) == reference(model, PROMPT, max_new_tokens=24)
    beams = llm.generate(PROMPT, max_new_tokens=16, num_beams=3)
    assert beams == reference(model, PROMPT, max_new_tokens=16, num_beams=3)
    kernel = cpu_system.kernel
    pid = kernel(Spawn(str(model), llm.language.encode(PROMPT, begin=True), dtype="fp32", once=True))
    result = kernel(Decode(pid, 24, llm.model.eos_ids))
    assert (result.tokens, result.finish) == (answer, Finish.STOP)
    cpu_system.evict(str(model))


def test_a_process_samples_as_the_makers_advise_unless_told_otherwise(
    cpu_system: System, zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    advice = {"do_sample": True, "temperature": 0.9, "top_k": 6, "repetition_penalty": 1.2}
    model = with_file(zoo("llama"), tmp_path / "advised", advice)
    advised: dict[str, Any] = {"temperature": 0.9, "top_k": 6, "repetition_penalty": 1.2}

    def says(**options: Any) -> str:
        with cpu_system.spawn(str(model), PROMPT, dtype="fp32", **options) as process:
            return process.generate(16)

    assert says(seed=3) == says(seed=3, defaults=False, **advised) != says(seed=3, defaults=False)
    assert says(temperature=0.0) == says(temperature=0.0, defaults=False, repetition_penalty=1.2)
    assert says(defaults=False) == reference(zoo("llama"), PROMPT, max_new_tokens=16)
    assert len({says() for _ in range(3)}) > 1, "a sampled process without a seed has one of its own"
    llm = LLM.from_pretrained(model, dtype="fp32", system=cpu_system)
    assert llm.model.sampling == SamplingDefaults(0.9, 6, None, None, 1.2)
    assert llm.generate(PROMPT, max_new_tokens=16, seed=3) == says(seed=3)
    assert "".join(llm.stream(PROMPT, 16, seed=3)) == says(seed=3)
    assert llm.generate(PROMPT, max_new_tokens=16, defaults=False) == says(defaults=False)
    beams = llm.generate(PROMPT, max_new_tokens=16, num_beams=3)
    assert beams == reference(zoo("llama"), PROMPT, max_new_tokens=16, num_beams=3), "beams heed none of it"
    cpu_system.evict(str(model))


def test_a_nonsensical_file_is_that_loads_error_and_the_driver_lives(
    cpu_system: System, zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    model = with_file(zoo("llama"), tmp_path / "nonsense", {"eos_token_id": [10**30]})
    kernel = cpu_system.kernel
    restarts = [row.restarts for row in kernel(BootInfoCall()).devices]
    with pytest.raises(SyscallError, match="out of all bounds") as caught:
        cpu_system.load(str(model))
    assert caught.value.errno is Errno.EIO
    with cpu_system.spawn(str(zoo("llama")), PROMPT, dtype="fp32") as process:
        assert process.generate(4)
    assert [row.restarts for row in kernel(BootInfoCall()).devices] == restarts
