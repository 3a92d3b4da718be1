"""The SDK in a real notebook: ipykernel runs the cells, nbclient collects what they show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from llmasos.syscalls.records import ModelInfo, ProcessInfo
from llmasos.userland.sdk import notebook
from llmasos.userland.sdk.system import System

pytestmark = [pytest.mark.processes, pytest.mark.long]


_RUN = """
import json, sys
import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

cells = [nbformat.v4.new_code_cell(cell) for cell in json.load(sys.stdin)]
written = nbformat.v4.new_notebook(cells=cells)
NotebookClient(written, km=AsyncKernelManager(kernel_name="python3"), timeout=120).execute()
json.dump([cell["outputs"] for cell in written["cells"]], sys.stdout)
"""


def run(system: System, *cells: str) -> list[list[dict[str, Any]]]:
    """The outputs of each cell. A cell that raises fails the test. In a process of its own: Jupyter's clients leave
    sockets to the garbage collector."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _RUN],
        input=json.dumps(cells),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "LLMASOS_RUNTIME": str(system.kernel.runtime), "PYTHONWARNINGS": "ignore"},
    )
    assert ran.returncode == 0, ran.stderr
    outputs: list[list[dict[str, Any]]] = json.loads(ran.stdout)
    return outputs


def shown(outputs: list[dict[str, Any]], kind: str = "text/html") -> list[str]:
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


def printed(outputs: list[dict[str, Any]]) -> str:
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")


def test_cells_await_at_their_top_level_and_a_connection_lives_from_one_to_the_next(cpu_system: System) -> None:
    outputs = run(
        cpu_system,
        "from llmasos import aio\nsystem = await aio.System.connect()",
        "agent = await system.spawn(name='clerk')\nawait agent.ask('My name is Mira.')",
        "import asyncio\n"
        "others = [await system.spawn() for _ in range(3)]\n"
        "print(len(await asyncio.gather(*[one.ask('Who are you?', 6) for one in others])))",
        "async for piece in agent.say('Copy this list: red, green'):\n    print(piece, end='')",
        "await agent.info()\nagent",
        "await system.ps()",
        "try:\n    await agent.ask(3)\nexcept aio.SyscallError as error:\n    print(error)",
        "await system.close()",
    )
    assert printed(outputs[2]) == "3\n"
    assert printed(outputs[3]).rstrip(".") == "red, green"
    (process,) = shown(outputs[4])
    assert "<td>clerk</td>" in process
    assert "of 2048</td>" in process
    (table,) = shown(outputs[5])
    assert table.startswith("<table>")
    assert "<td>clerk</td>" in table
    assert "<th>state</th>" in table
    assert "wanted text, found int 3" in printed(outputs[6])


def test_a_stream_shows_itself_while_it_comes_in_both_faces(cpu_system: System) -> None:
    outputs = run(
        cpu_system,
        "import llmasos\nfrom llmasos import aio\nsystem = llmasos.System.connect()\nagent = system.spawn()",
        "agent.say('Copy this list: red, green')",
        "agent",
        "system.models()",
        "there = await aio.System.connect()\nother = await there.spawn()\n"
        "display(other.pieces('Copy this list: pear, fig'))\n"
        "import asyncio\nwhile there.talking or not await other.tokens():\n    await asyncio.sleep(0.01)",
        "await asyncio.sleep(0.2)\nawait there.close()\nsystem.close()",
    )
    (blocking,) = shown(outputs[1])
    assert "red, green" in blocking
    assert outputs[1][0]["output_type"] == "display_data"
    assert "<td>tiny</td>" in shown(outputs[2])[0]
    assert "<td>tiny</td>" in shown(outputs[3])[0]
    assert "pear, fig" in shown(outputs[4])[0]


def test_a_question_waits_for_the_answer_that_the_notebook_shows(cpu_system: System) -> None:
    """As in "Run all": nobody but the notebook hears the first answer, so nobody else can wait for its end."""
    outputs = run(
        cpu_system,
        "from llmasos import aio\nsystem = await aio.System.connect()\nagent = await system.spawn()",
        "display(agent.say('Copy this list: red, green'))",
        "print(await agent.ask('Copy this list: pear, fig'))",
        "print(*[said['content'] for said in await agent.messages()], len(system.talking.shown), sep=' | ')\n"
        "await system.close()",
    )
    first, second = "Copy this list: red, green | red, green", "Copy this list: pear, fig | pear, fig"
    assert printed(outputs[3]).replace(". |", " |") == f"{first} | {second} | 0\n"


def test_what_people_and_models_write_is_text_in_a_table() -> None:
    row = ProcessInfo(1, 1, kind="llm", name="<script>alert(1)</script>", state="ready")  # type: ignore[arg-type]
    page = notebook.Table([row])._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert notebook.Table[ModelInfo]()._repr_html_() == "<i>nothing</i>"


def test_a_long_table_says_what_it_leaves_out() -> None:
    rows = [ModelInfo(f"model {i}", "") for i in range(notebook.SHOWN_ROWS + 3)]
    table = notebook.Table(rows)
    page = table._repr_html_()
    assert page.endswith("<i>and 3 more</i>")
    assert page.count("<tr>") == notebook.SHOWN_ROWS + 1
    assert list(table) == rows
    assert "<th>dtype</th>" not in page  # empty in all of them
