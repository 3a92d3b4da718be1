"""Processes through both faces of the SDK, on a real system with a tiny random model."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from llmasos import aio
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Finish, KvAction, Limits, Signal, State
from llmasos.syscalls.table import Decode, Getinfo, Read
from llmasos.userland.sdk.system import Process, System
from tests import models_zoo

pytestmark = pytest.mark.processes

PROMPT = "Every call is answered"


@pytest.fixture(scope="module")
def model(zoo: Callable[[str], Path]) -> str:
    return str(zoo("llama"))


@pytest.fixture
def process(cpu_system: System, model: str) -> Process:
    return cpu_system.spawn(model, PROMPT, name="under test", dtype="fp32")


# At leaving a decode in its midst: one may have ended before the test was given the processor again.
ATTEMPTS = 5


def finish(process: Process) -> Finish:
    """How its decode ended, once it has."""
    while (result := process.system(Read(process.pid, -1, follow=False))).decoding:
        pass
    return result.finish


def test_an_estimate_is_what_loading_takes(cpu_system: System, tmp_path: Path) -> None:
    model = models_zoo.build("qwen3", tmp_path / "model")
    said = cpu_system.estimate(model, dtype="fp32", context=100)
    assert (said.state, said.refused, said.architecture) == ("absent", "", "qwen3")
    assert str(model) not in [row.path for row in cpu_system.models()]
    found = cpu_system.load(model, "fp32")
    assert said.parameters == found.parameters
    # What the native decoder will pack is told as an upper bound: each page begins anew, which is much of a tiny model.
    assert found.weight_bytes <= said.weight_bytes < 1.1 * found.weight_bytes
    assert said.pool_bytes == found.frames * found.block_bytes
    assert said.context_bytes == 7 * found.block_bytes, "100 tokens lie in seven blocks of 16"
    assert cpu_system.estimate(model, dtype="fp32").state == "resident"
    cpu_system.evict(model, "fp32")


def test_a_stream_gives_the_text_that_stands_in_the_log(process: Process) -> None:
    text = "".join(process.stream(20))
    assert process.text() == PROMPT + text
    assert process.info().length == len(PROMPT) + 20


def test_leaving_a_stream_early_interrupts_the_decode(process: Process) -> None:
    for _ in range(ATTEMPTS):
        stream = process.stream(400)
        next(stream)
        stream.close()
        if finish(process) is not Finish.LENGTH:
            break
        process.truncate(len(PROMPT))
    assert finish(process) is Finish.INTERRUPT
    assert process.info().length < len(PROMPT) + 400


def test_generation_goes_on_where_it_ended(process: Process, cpu_system: System, model: str) -> None:
    halves = process.generate(8) + process.generate(8)
    other = cpu_system.spawn(model, PROMPT, dtype="fp32")
    assert other.generate(16) == halves


def test_after_a_stop_string_the_log_says_what_the_text_says(process: Process) -> None:
    whole = process.fork(1)[0].generate(24)
    stop = whole[6:8]
    text = process.generate(24, stop=[stop])
    assert text == whole[: whole.index(stop)]
    assert process.text() == PROMPT + text
    assert process.feed("!") == process.info().length


def test_a_stopped_process_stands_still_and_then_says_the_same(process: Process) -> None:
    twin = process.fork(1)[0]
    process.stop()
    process.system(Decode(process.pid, 16, process.language.stop_ids, wait=False))
    said_by_twin = twin.generate(16)
    info = process.info()
    assert (info.state, info.decoding, info.length) == (State.STOPPED, True, len(PROMPT))
    process.cont()
    assert "".join(process.follow(len(PROMPT))) == said_by_twin


def test_forks_share_pages_until_they_write(process: Process) -> None:
    process.generate(20)
    children = process.fork(3)
    shared = [child.info().shared_pages for child in children]
    assert shared == [process.info().pages] * 3
    assert len({child.generate(12) for child in children}) == 1  # greedy: the same future
    assert children[0].info().shared_pages < children[0].info().pages


def test_forks_of_a_sampling_process_part_ways(cpu_system: System, model: str) -> None:
    parent = cpu_system.spawn(model, PROMPT, temperature=1.0, seed=5, dtype="fp32")
    texts = {child.generate(16) for child in parent.fork(4)}
    assert len(texts) > 1


def test_truncate_takes_back_what_was_said(process: Process) -> None:
    first = process.generate(12)
    process.truncate(len(PROMPT))
    assert process.text() == PROMPT
    assert process.generate(12) == first


def test_a_killed_process_is_reaped_with_its_status(process: Process) -> None:
    process.kill()
    gone = process.wait(timeout=30.0)
    assert (gone.pid, gone.status) == (process.pid, 128 + Signal.KILL)
    with pytest.raises(SyscallError, match="has exited") as caught:
        process.info()
    assert caught.value.errno is Errno.ESRCH


def test_an_answer_that_is_cut_off_by_a_kill_is_no_answer(process: Process, cpu_system: System) -> None:
    pieces = process.stream(400)
    next(pieces)
    process.kill()
    with pytest.raises(SyscallError, match="was ended while it decoded: KILL from program") as caught:
        list(pieces)
    assert caught.value.errno is Errno.ESRCH
    process.wait()
    with pytest.raises(SyscallError, match=r"^ESRCH"):
        process.generate(1)


@pytest.mark.parametrize("stop", [[], ["never said"]])
def test_an_answer_that_its_group_has_no_memory_for_says_so(cpu_system: System, model: str, stop: list[str]) -> None:
    frame = cpu_system.spawn(model, dtype="fp32").model.block_bytes
    group = cpu_system.group("small", kv_max=4 * frame, kv_action=KvAction.FAIL)
    other = cpu_system.spawn(model, "Others have pages, too; two.", dtype="fp32", group="small")
    other.generate(1)
    process = cpu_system.spawn(model, PROMPT, dtype="fp32", group="small")
    with pytest.raises(SyscallError, match=f"cannot grow: group {group.path}") as caught:
        process.generate(40, stop=stop)
    assert caught.value.errno is Errno.EDQUOT
    assert process.text().startswith(PROMPT)
    for one in (process, other):
        one.end()


def test_a_full_token_budget_is_an_error_that_says_so(process: Process) -> None:
    process.limits(Limits(tokens=5))
    assert process.generate(50) != ""
    assert process.info().usage.decoded == 5
    with pytest.raises(SyscallError, match="budget of 5") as caught:
        process.generate(1)
    assert caught.value.errno is Errno.EDQUOT


def test_what_is_said_to_a_process_that_may_not_answer_is_not_in_its_context(cpu_system: System) -> None:
    with cpu_system.spawn(name="spent", limits=Limits(tokens=3)) as agent:
        agent.ask("Tell me a story.")
        before = agent.tokens()
        for text in ("abc", "def"):
            with pytest.raises(SyscallError) as refused:
                agent.ask(text)
            assert refused.value.errno is Errno.EDQUOT
        assert agent.tokens() == before
        agent.limits(Limits())
        assert agent.ask("Who are you?")


def test_a_context_that_is_full_ends_the_decode_and_refuses_more(cpu_system: System, model: str) -> None:
    process = cpu_system.spawn(model, "x" * (models_zoo.CONTEXT - 4), dtype="fp32")
    process.generate(50)
    assert process.info().length <= models_zoo.CONTEXT
    with pytest.raises(SyscallError, match="too long") as caught:
        process.feed("more")
    assert caught.value.errno is Errno.E2BIG


def test_a_handle_on_anothers_process_speaks_to_it(process: Process, cpu_system: System) -> None:
    with System.connect(cpu_system.kernel.boot.runtime) as other:
        assert other.process(process.pid).generate(4) == process.text()[len(PROMPT) :]
        with pytest.raises(SyscallError, match=r"^EINVAL: process 1 is init"):
            other.process(1)


def test_handles_of_one_process_are_equal_whoever_made_them(process: Process, cpu_system: System, model: str) -> None:
    again = cpu_system.process(process.pid)
    with System.connect(cpu_system.kernel.boot.runtime) as other:
        assert again == process == other.process(process.pid)
        assert len({again, process, other.process(process.pid)}) == 1
    with cpu_system.spawn(model) as another:
        assert another != process
        assert {process: 1}.get(another) is None
    assert process != process.pid

    async def main() -> bool:
        async with aio.System.connect(cpu_system.kernel.boot.runtime) as system:
            one, two = await system.process(process.pid), await system.process(process.pid)
            return one == two and hash(one) == hash(two)

    assert trio.run(main)


def test_a_program_that_ends_takes_its_processes_with_it_but_not_the_detached(cpu_system: System, model: str) -> None:
    with System.connect(cpu_system.kernel.boot.runtime) as other:
        child = other.spawn(model, PROMPT, dtype="fp32").pid
        daemon = other.spawn(model, PROMPT, dtype="fp32", detached=True).pid
    while any(row.pid == child for row in cpu_system.ps()):
        pass
    orphan = cpu_system.process(daemon)
    assert orphan.info().ppid == 1
    orphan.kill()
    assert orphan.wait().pid == daemon
    with pytest.raises(SyscallError, match=r"^ESRCH"):
        cpu_system(Getinfo(daemon))


def test_speech_remembers_the_conversation_token_for_token(cpu_system: System, model: str) -> None:
    """What two turns leave in the log is the chat template's rendering of them."""
    process = cpu_system.spawn(model, dtype="fp32", system="Be brief.")
    first = process.ask("Who?", 6)
    process.ask("Why?", 6)
    whole = process.language.decode(process.tokens(), special=True)
    assert whole.startswith(f"<|system|>Be brief.<|end|><|user|>Who?<|end|><|assistant|>{first}")
    assert "<|end|><|user|>Why?<|end|><|assistant|>" in whole


def test_a_closed_system_ends_its_private_kernel(tmp_path: Path) -> None:
    system = System.connect(tmp_path / "r", boot=True, flags=["--device", "sim"])
    runtime = Path(system.kernel.boot.runtime)
    assert (runtime / "kernel.sock").exists()
    system.close()
    system.close()
    assert not (runtime / "kernel.sock").exists()
    with pytest.raises(SyscallError, match="llmasos boot") as caught:
        System.connect(runtime)
    assert caught.value.errno is Errno.ECONNREFUSED


# --- the asynchronous face ------------------------------------------------------------------------------------------


def test_the_asynchronous_face_talks_to_many_at_once(cpu_system: System, model: str) -> None:
    async def main() -> list[str]:
        said: dict[int, str] = {}

        async def one(index: int) -> None:
            process = await system.spawn(model, PROMPT + str(index), dtype="fp32")
            async with process:
                said[index] = "".join([piece async for piece in process.stream(12)])

        async with (
            aio.System.connect(cpu_system.kernel.boot.runtime) as system,
            trio.open_nursery() as nursery,
        ):
            for index in range(6):
                nursery.start_soon(one, index)
        return [said[index] for index in range(6)]

    alone = [cpu_system.spawn(model, PROMPT + str(index), dtype="fp32").generate(12) for index in range(6)]
    assert trio.run(main) == alone


def test_a_cancelled_stream_interrupts_the_decode(cpu_system: System, model: str) -> None:
    async def main() -> Finish:
        async with aio.System.connect(cpu_system.kernel.boot.runtime) as system:
            for _ in range(ATTEMPTS):
                process = await system.spawn(model, PROMPT, dtype="fp32")
                with trio.CancelScope() as scope:
                    async for _ in process.stream(400):
                        scope.cancel()
                while (await system(Read(process.pid, -1))).decoding:
                    pass
                assert await process.text() != PROMPT
                finish = (await process.info()).finish
                if finish is not Finish.LENGTH:
                    break
            return finish

    assert trio.run(main) is Finish.INTERRUPT
    gc.collect()


def test_the_asynchronous_face_boots_and_ends_a_private_kernel(tmp_path: Path) -> None:
    async def main() -> Path:
        async with aio.System.connect(tmp_path / "r", boot=True, flags=["--device", "sim"]) as system:
            assert [row.kind.value for row in await system.ps()][:2] == ["init", "driver"]
            return Path(system.kernel.boot.runtime)

    assert not (trio.run(main) / "kernel.sock").exists()


# --- a tokenizer that decodes a text's beginning unlike its middle ----------------------------------------------------


@pytest.fixture(scope="module")
def spaced(cpu_system: System, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with a sentencepiece-like tokenizer, whose words carry the space before them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    directory = models_zoo.build("llama", tmp_path_factory.mktemp("spaced") / "model")
    letters = [chr(code) for code in range(0x4E00, 0x4E00 + 135)]
    vocab = {token: i for i, token in enumerate(["▁", *letters, *("▁" + letter for letter in letters)])}
    tokenizer = Tokenizer(models.BPE(vocab, [("▁", letter) for letter in letters]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    return str(directory)


SPACED = ["丁 七", "万 丈三", "上 下丌不", "丈", "与 丏"]  # some of these go on with a space


def test_the_space_before_the_first_word_of_a_continuation_is_text(cpu_system: System, spaced: str) -> None:
    begun_with_space = 0
    for prompt in SPACED:
        process = cpu_system.spawn(spaced, prompt, dtype="fp32")
        streamed, generated = "".join(process.fork()[0].stream(20)), process.fork()[0].generate(20)
        process.generate(20)
        assert process.text() == prompt + generated
        assert streamed == generated
        begun_with_space += generated.startswith(" ")
    assert begun_with_space


def test_a_stop_string_cuts_log_and_text_alike_where_words_carry_spaces(cpu_system: System, spaced: str) -> None:
    for prompt in SPACED:
        process = cpu_system.spawn(spaced, prompt, dtype="fp32")
        whole = process.fork()[0].generate(12)
        for at in range(len(whole) - 1):
            stop = whole[at : at + 2]
            child = process.fork()[0]
            text = child.generate(12, stop=[stop])
            assert text == whole[: whole.index(stop)]
            assert child.text() == prompt + text


def test_fed_text_goes_on_where_the_context_ends(cpu_system: System, spaced: str) -> None:
    process = cpu_system.spawn(spaced, "丁 七", dtype="fp32")
    process.feed("万 丈")
    process.feed(" 三")
    assert process.text() == "丁 七万 丈 三"


def test_an_image_goes_to_a_relative_path_and_comes_back_as_a_process(
    process: Process, cpu_system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    process.generate(8)
    info = process.checkpoint("image", passphrase="open sesame")
    assert (info.path, info.tokens) == (str(tmp_path / "image"), len(PROMPT) + 8)
    small = process.checkpoint(tmp_path / "small", kv=False)
    assert (small.kv_tokens, small.bytes < info.bytes) == (0, True)
    twin = cpu_system.restore("image", name="twin", passphrase="open sesame")
    other = cpu_system.restore("small", detached=True)
    assert (twin.info().name, other.info().name) == ("twin", "under test")
    assert twin.text() == other.text() == process.text()
    assert twin.generate(8) == other.generate(8) == process.generate(8)
    with pytest.raises(SyscallError) as caught:
        cpu_system.restore("none")
    assert caught.value.errno is Errno.ENOENT
    for restored in (twin, other):
        restored.end()


def test_images_are_written_and_restored_by_tasks(cpu_system: System, model: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with aio.System.connect(cpu_system.kernel.boot.runtime) as system:
            process = await system.spawn(model, PROMPT, dtype="fp32")
            await process.checkpoint(tmp_path / "image")
            async with await system.restore(tmp_path / "image") as twin:
                assert await twin.generate(8) == await process.generate(8)

    trio.run(main)
