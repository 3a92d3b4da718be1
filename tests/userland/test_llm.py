"""LLM and the seed interfaces on a real system, against transformers' own generate in fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import llmasos
from llmasos import aio
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.beams import beam_search
from llmasos.userland.sdk.llm import LLM
from llmasos.userland.sdk.system import System
from tests import models_zoo
from tests.booted import PATIENCE
from tests.userland.references import PROMPT, reference, reference_ids

ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neo", "gpt_neox"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_and_five_beams_are_what_transformers_generates(
    cpu_system: System, zoo: Callable[[str], Path], name: str
) -> None:
    llm = LLM.from_pretrained(zoo(name), dtype="fp32", system=cpu_system)
    assert llm.generate(PROMPT, max_new_tokens=24) == reference(zoo(name), PROMPT, max_new_tokens=24)
    beams = llm.generate(PROMPT, max_new_tokens=16, num_beams=5)
    assert beams == reference(zoo(name), PROMPT, max_new_tokens=16, num_beams=5)
    cpu_system.evict(str(zoo(name)))


@pytest.mark.parametrize(
    "options",
    [
        {"length_penalty": 0.2},
        {"length_penalty": 2.0},
        {"early_stopping": True},
        {"early_stopping": "never", "length_penalty": 1.5},
        {"length_penalty": -1.0},
    ],
    ids=str,
)
def test_beams_that_end_early_are_kept_as_transformers_keeps_them(
    cpu_system: System, tmp_path: Path, options: dict[str, Any]
) -> None:
    """The end token is one the model likes, so hypotheses finish all the time."""
    directory = models_zoo.build("llama", tmp_path / "model")
    liked = reference_ids(directory, PROMPT, max_new_tokens=8)[2]
    ends = models_zoo.build("llama", tmp_path / "ends", changes={"eos_token_id": liked})
    llm = LLM.from_pretrained(ends, dtype="fp32", system=cpu_system)
    for beams in (2, 5):
        ours = llm.generate(PROMPT, max_new_tokens=20, num_beams=beams, **options)
        assert ours == reference(ends, PROMPT, max_new_tokens=20, num_beams=beams, **options)
    cpu_system.evict(str(ends))


@pytest.fixture(scope="module")
def llm(cpu_system: System, zoo: Callable[[str], Path]) -> LLM:
    return LLM.from_pretrained(zoo("llama"), dtype="fp32", system=cpu_system)


def test_max_length_counts_the_prompt_as_in_transformers(llm: LLM, zoo: Callable[[str], Path]) -> None:
    assert llm.generate(PROMPT, max_length=40) == reference(zoo("llama"), PROMPT, max_length=40)


def test_a_list_of_prompts_gives_what_each_gives_alone(llm: LLM) -> None:
    prompts = [PROMPT, "a", "Drivers are crash-only.", PROMPT]
    assert llm.generate(prompts, max_new_tokens=12) == [llm.generate(p, max_new_tokens=12) for p in prompts]


def test_the_pieces_of_a_stream_join_to_the_text(llm: LLM) -> None:
    assert "".join(llm.stream(PROMPT, 24)) == llm.generate(PROMPT, max_new_tokens=24)


def test_sampling_repeats_with_its_seed_and_differs_with_another(llm: LLM) -> None:
    def sample(seed: int) -> str:
        return llm.generate(PROMPT, max_new_tokens=24, temperature=1.0, seed=seed)

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    text = llm.generate(PROMPT, max_new_tokens=24)
    stop = text[5:7]
    assert llm.generate(PROMPT, max_new_tokens=24, stop=[stop]) == text[: text.index(stop)]


def test_the_prompt_comes_first_if_asked_for(llm: LLM) -> None:
    full = llm.generate(PROMPT, max_new_tokens=4, return_full_text=True)
    assert full == PROMPT + llm.generate(PROMPT, max_new_tokens=4)


@pytest.mark.parametrize(
    ("options", "errno", "words"),
    [
        ({"max_length": 3}, Errno.EINVAL, "leaves none to generate"),
        ({"max_length": 99, "max_new_tokens": 3}, Errno.EINVAL, "not both"),
        ({"num_beams": 0}, Errno.EINVAL, "must be 1 or more"),
        ({"num_beams": 2, "temperature": 1.0}, Errno.EINVAL, "beam search takes no"),
        ({"num_beams": 50}, Errno.EINVAL, "use fewer"),
    ],
)
def test_options_that_cannot_be_are_refused(llm: LLM, options: dict[str, Any], errno: Errno, words: str) -> None:
    with pytest.raises(SyscallError, match=words) as caught:
        llm.generate(PROMPT, **options)
    assert caught.value.errno is errno


def test_a_prompt_longer_than_the_context_is_refused(llm: LLM) -> None:
    with pytest.raises(SyscallError, match="too long") as caught:
        llm.generate("x" * (models_zoo.CONTEXT + 1), max_new_tokens=1)
    assert caught.value.errno is Errno.E2BIG


def test_no_process_is_left_when_generation_is_over(llm: LLM) -> None:
    llm.generate([PROMPT, "b"], max_new_tokens=4, num_beams=3)
    assert not [row for row in llm.system.ps() if row.name == "generate"]


def test_a_beam_search_that_is_cancelled_leaves_no_process(cpu_system: System, zoo: Callable[[str], Path]) -> None:
    async def main() -> list[str]:
        async with aio.System.connect(cpu_system.kernel.boot.runtime) as system:
            root = await system.spawn(str(zoo("llama")), PROMPT, name="cancelled", dtype="fp32")

            async def beams() -> list[str]:
                return [row.name for row in await system.ps() if row.name == "cancelled"]

            async with trio.open_nursery() as nursery:
                nursery.start_soon(system.run, beam_search(root.pid, 400, 5, []))
                while len(await beams()) < 5:
                    pass
                nursery.cancel_scope.cancel()
            return await beams()

    assert trio.run(main) == []


def test_a_model_directory_may_be_named_bare(
    cpu_system: System, zoo: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(zoo("llama").parent)
    assert cpu_system.load("llama", "fp32").path == str(zoo("llama"))
    assert LLM.from_pretrained("llama", dtype="fp32", system=cpu_system).model.path == str(zoo("llama"))


def test_an_unknown_model_says_which_are_known(cpu_system: System) -> None:
    with pytest.raises(SyscallError, match=r"known by name: .*tiny") as caught:
        LLM.from_pretrained("no-such-model", system=cpu_system)
    assert caught.value.errno is Errno.ENOENT


def test_the_seed_interface_boots_a_private_kernel_and_predicts(
    zoo: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLMASOS_RUNTIME", str(tmp_path / "none"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with llmasos.Client() as client:
        image = client.load_image(str(zoo("llama")), dtype="fp32")
        instance = client.create_instance(image)
        first = instance.predict("Hello", max_tokens=8)
        assert first == client.predict(client.create_instance(image), "Hello", max_tokens=8)
        latest = client.create_instance(image)
        assert client.predict("Hello", max_tokens=8) == first
        assert latest.process.info().length > 0
        with pytest.raises(SyscallError, match=r"^EINVAL: "):
            client.predict(instance)  # type: ignore[call-overload]
        with pytest.raises(SyscallError, match=r"^EINVAL: .*'Hello'"):
            client.predict("Hello", "there")  # type: ignore[call-overload]
        assert client.system.kernel.boot.runtime != str(tmp_path / "none")


@pytest.mark.parametrize("options", [{"num_beams": "2"}, {"max_new_tokens": "3"}, {"max_length": 3.5}])
def test_a_number_that_is_none_is_named(cpu_system: System, zoo: Callable[[str], Path], options: dict[str, Any]) -> None:
    llm = LLM.from_pretrained(zoo("llama"), system=cpu_system)
    with pytest.raises(SyscallError, match=f"{next(iter(options))}: wanted a whole number.*, found") as caught:
        llm.generate(PROMPT, **options)
    assert caught.value.errno is Errno.EINVAL


# --- the same from a trio program -----------------------------------------------------------------------------------


def test_a_trio_program_generates_and_streams_what_the_blocking_face_does(llm: LLM) -> None:
    prompts = [PROMPT, "a", "Drivers are crash-only."]

    async def main() -> tuple[str, list[str], str, str]:
        async with aio.System.connect(llm.system.kernel.boot.runtime) as system:
            other = await aio.LLM.from_pretrained(llm.model.path, dtype="fp32", system=system)
            one = await other.generate(PROMPT, max_new_tokens=12)
            many = await other.generate(prompts, max_new_tokens=12)
            beams = await other.generate(PROMPT, max_new_tokens=8, num_beams=3)
            return one, many, beams, "".join([piece async for piece in other.stream(PROMPT, 12)])

    one, many, beams, streamed = trio.run(main)
    assert one == streamed == llm.generate(PROMPT, max_new_tokens=12)
    assert many == llm.generate(prompts, max_new_tokens=12)
    assert beams == llm.generate(PROMPT, max_new_tokens=8, num_beams=3)


def test_a_trio_program_hears_the_first_error_of_many_prompts_and_leaves_no_process(llm: LLM) -> None:
    async def main() -> None:
        async with aio.System.connect(llm.system.kernel.boot.runtime) as system:
            other = await aio.LLM.from_pretrained(llm.model.path, dtype="fp32", system=system)
            with pytest.raises(SyscallError) as refused:
                await other.generate([PROMPT, "b", "c"], max_new_tokens=400, top_p=7.0)
            assert refused.value.errno is Errno.EINVAL
            with trio.move_on_after(0.05):
                await other.generate([PROMPT, "b", "c"], max_new_tokens=400)
            with trio.fail_after(PATIENCE):
                # a kill takes effect at the end of a step
                while "generate" in {row.name for row in await system.ps()}:  # noqa: ASYNC110
                    await trio.sleep(0.01)

    trio.run(main)


def test_a_trio_program_predicts_on_a_private_kernel(llm: LLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMASOS_RUNTIME", str(tmp_path / "none"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    async def main() -> None:
        async with aio.Client() as client:
            image = await client.load_image(llm.model.path, dtype="fp32")
            instance = await client.create_instance(image)
            first = await instance.predict("Hello", max_tokens=8)
            assert first == await client.predict(await client.create_instance(image), "Hello", max_tokens=8)
            process = llm.system.spawn(llm.model.path, dtype="fp32")
            assert first == llmasos.Instance(process).predict("Hello", max_tokens=8)
            with pytest.raises(SyscallError, match=r"known by name: .*tiny"):
                await aio.LLM.from_pretrained("no-such-model", system=client.system)

    trio.run(main)
