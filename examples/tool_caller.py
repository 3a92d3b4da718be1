"""A tool caller: the model asks for a tool in JSON, the program runs it and tells the model the result.

A system call of another kind: the model asks, and a program that has the rights acts, after it has checked every
argument. It trusts the model as little as a kernel trusts its callers: it refuses a malformed call with a reason, cuts it
from the context (truncate), and asks once more.
"""

from __future__ import annotations

import ast
import datetime
import json
import operator
import sys
import zoneinfo
from collections.abc import Callable

import llmasos

REQUESTS = (
    "What time is it in Oslo?",
    "Calculate 6 * 7.",
    "Remind me to feed the cat in 5 minutes.",
    "What is the weather in Rome?",
    "Hello!",
)
BINARY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def time(city: str) -> str:
    zones = [z for z in zoneinfo.available_timezones() if z.split("/")[-1] == city.replace(" ", "_")]
    if not zones:
        raise ValueError(f"no time zone is named after {city}")
    return f"{datetime.datetime.now(zoneinfo.ZoneInfo(min(zones))):%H:%M} in {city}"


def calculate(expression: str) -> str:
    def value(node: ast.expr) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return node.value
        if isinstance(node, ast.BinOp) and (operation := BINARY.get(type(node.op))):
            return float(operation(value(node.left), value(node.right)))
        raise ValueError(f"{expression!r} is not plain arithmetic")

    return f"{value(ast.parse(expression, mode='eval').body):.10g}"


def remind(text: str, minutes: int) -> str:
    return f"at {datetime.datetime.now() + datetime.timedelta(minutes=minutes):%H:%M}: {text}"


TOOLS: dict[str, Callable[..., str]] = {"time": time, "calculate": calculate, "remind": remind}


def act(said: str) -> tuple[str, str]:
    """Name and result of the tool that was called. Raises ValueError, with a sentence, for anything but a proper call."""
    match json.loads(said):  # its JSONDecodeError is a ValueError
        case {"tool": str(tool), "arguments": dict(arguments)} if tool in TOOLS:
            try:
                return tool, TOOLS[tool](**arguments)
            except (TypeError, AttributeError, ArithmeticError, SyntaxError) as error:
                raise ValueError(f"{tool} does not take {arguments}: {error}") from error
        case {"tool": tool, "arguments": dict()}:
            raise ValueError(f"no tool {tool!r} here; there are {', '.join(TOOLS)}")
    raise ValueError('not of the form {"tool": ..., "arguments": {...}}')


def serve(agent: llmasos.Process, request: str) -> tuple[str, str] | None:
    """Ask once, and once more if need be; returns the name of the tool that was called and its result."""
    for wording in (request, f"Tiny, {request[0].lower()}{request[1:]}"):
        before = agent.info().length
        said = agent.ask(wording)
        print(f"> {wording}\n  {said}")
        if not said.startswith("{"):
            return None  # it just talks
        try:
            tool, result = act(said)
        except ValueError as error:
            print(f"  refused: {error}")
            agent.truncate(before)  # as if it had never been asked
        else:
            print(f"  {tool}: {result}")
            return tool, result
    return None


def main() -> int:
    requests = sys.argv[1:] or REQUESTS
    with llmasos.System.connect(boot=True, name="tool_caller") as system:
        agent = system.spawn(name="clerk")
        done = [call for request in requests if (call := serve(agent, request))]
        for result in [result for tool, result in done if tool == "calculate"]:
            agent.ask(f"My lucky number is {result}.")  # from now on the model can use the result
            print(f"> What is my lucky number?\n  {agent.ask('What is my lucky number?')}")
    print(f"{len(done)} of {len(requests)} requests led to a tool")
    return 0 if done else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except llmasos.SyscallError as error:
        sys.exit(f"tool_caller: {error}")
