"""Why an answer has ended, where people look: at the notice of a job, and at `ps PID`."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmasos.syscalls.blocking import Client
from llmasos.syscalls.records import Finish
from llmasos.syscalls.table import Getinfo
from llmasos.userland.programs import ps
from tests.booted import eventually
from tests.userland.prompt import PROMPT, pid_of
from tests.userland.terminal import Terminal

pytestmark = pytest.mark.processes


@pytest.mark.parametrize(
    ("model", "finish", "why"),
    [
        (
            "sim:context=256,vocab=1000",
            Finish.CONTEXT,
            r"its context is full: 256 tokens is the window of sim:context=256",
        ),
        ("sim:error", Finish.ERROR, r"the device could not compute process \d+: the script says so: it is asked to"),
    ],
)
def test_the_notice_of_a_job_and_ps_say_why_an_answer_ended(
    shell: Terminal, kernel: Client, tmp_path: Path, model: str, finish: Finish, why: str
) -> None:
    name = f"ann-{finish}"
    if finish is Finish.ERROR:
        script = tmp_path / "script.toml"
        script.write_text("[[answer]]\nerror = 'it is asked to'\n")
        model = f"sim:vocab=1000,script={script}"
    shell.enter(f"spawn {name} --model {model} --max 4000 Count. &")
    shell.expect(f"{name} answers in the background")
    pid = pid_of(kernel, name)
    eventually(lambda: kernel(Getinfo(pid)).finish is finish, "it has ended so")
    shell.enter("true")  # an answer that ends at once is told of before the first prompt
    shell.expect(rf"\[{pid}\] {name}: ended \({finish}\), {why}".replace(" ", r"\s+"))
    shell.expect(PROMPT)
    assert dict(ps.details(kernel(Getinfo(pid))))["reason"].startswith(why.partition(r"\d")[0])
    shell.enter(f"ps {name}")
    shell.expect(rf"reason +{why.partition(': ')[0]}")
