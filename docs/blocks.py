"""Tables of the documents that come from the sources: what stands between `<!-- block: NAME -->` and `<!-- end -->`.

As seL4's manual, so that a page cannot disagree with the code: policies from their docstrings, options of devices and
keys of the configuration file from their records and the comments at their fields.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from docs import comments
from llmasos.drivers import cuda, options
from llmasos.drivers.cpu import options as cpu_options
from llmasos.drivers.sim import spec
from llmasos.drivers.sim.script import Answer, Script
from llmasos.kernel.edge import settings
from llmasos.kernel.events import DeviceConfig, KernelConfig, Partition
from llmasos.kernel.memory.evictions import EVICTIONS
from llmasos.kernel.memory.victims import VICTIMS
from llmasos.kernel.sched.policies import POLICIES
from llmasos.simulator import gantt, simulate
from llmasos.simulator.chart import BARS, MARKS
from llmasos.simulator.rows import STATES
from llmasos.syscalls import budgets
from llmasos.syscalls.budgets import Allowance
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import GroupSettings
from llmasos.syscalls.size import Size
from llmasos.syscalls.table import Decode, Spawn
from llmasos.userland.shell.words import GROUPS, SHELL_ONLY

_BLOCK = re.compile(r"(<!-- block: (?P<name>[\w.]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _first(cls: type[Any]) -> str:
    """The first paragraph of a docstring, in one line."""
    text = (inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " ")
    return re.sub(r"^`\w+`: ", "", text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _policies(table: Mapping[str, type[Any]]) -> str:
    rows = ["| name | |", "|---|---|"]
    for name, cls in table.items():
        text = _first(cls)
        rows.append(f"| `{name}` | {_cell(text[:1].upper() + text[1:])} |")
    return "\n".join(rows)


def _said(cls: type[Any], field: str) -> str:
    return comments.of(Path(inspect.getfile(cls)).resolve()).get((cls.__name__, field), "")


def _options(*records: type[Any]) -> str:
    """The options of a driver: those of `drivers/options.py`."""
    rows = ["| option | wanted | default | |", "|---|---|---|---|"]
    for record in records:
        for field in dataclasses.fields(record):
            form = options.forms(record).get(field.name)
            if form is None:
                continue
            default = "" if field.default in (dataclasses.MISSING, None, "") else f"`{_plain(field.default)}`"
            wanted = form.wanted.partition(" such as")[0]
            rows.append(f"| `{field.name}` | {wanted} | {default} | {_cell(_said(record, field.name))} |")
    return "\n".join(rows)


def _amount(budget: Allowance, amount: int) -> str:
    if not amount:
        return ""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if budget.bytes and amount % size == 0:
            return f"{amount // size} {unit}"
    return f"{amount:,}"


def _budgets() -> str:
    """What a program can make the kernel spend: syscalls/budgets.py."""
    rows = ["| budget | one program | OS process | owner | in all | errno | counts | at its end |"]
    rows.append("|" + "---|" * 8)
    for budget in budgets.TABLE:
        amounts = (budget.each, budget.process, budget.owner, budget.all)
        shown = " | ".join(_amount(budget, amount) for amount in amounts)
        errno = "" if budget.errno is Errno.OK else budget.errno.name
        one = f" ({budget.of})" if budget.each and budget.of != "program" else ""
        cells = shown.replace(" |", f"{one} |", 1) if one else shown
        rows.append(f"| {budget.name} | {cells} | {errno} | {_cell(budget.counts)} | {_cell(budget.then)} |")
    return "\n".join(rows)


def _shell_only() -> str:
    """The commands of the shell that are no verbs; `halt` is a verb of its own."""
    names = [name for _, group in GROUPS for name in group if name in SHELL_ONLY and name != "halt"]
    return textwrap.fill(", ".join(f"`{name}`" for name in names) + ".", 130)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def _keys(struct: type[msgspec.Struct], *others: type[Any]) -> str:
    """The keys of a table of the configuration file. What they mean, and defaults that are not set here, stand at the
    record itself or at those that it fills in."""
    rows = ["| key | type | default | |", "|---|---|---|---|"]
    for field in msgspec.structs.fields(struct):
        about = next(filter(None, (_said(one, field.name) for one in (struct, *others))), "")
        default = field.default
        if default in (msgspec.UNSET, msgspec.NODEFAULT):
            default = next((_default(one, field.name) for one in others if _default(one, field.name) is not None), "")
        shown = "" if default in ("", msgspec.NODEFAULT) else f"`{_plain(getattr(default, 'value', default))}`"
        rows.append(f"| `{field.name}` | {_cell(_type(field.type))} | {shown} | {_cell(about)} |")
    return "\n".join(rows)


def _default(cls: type[Any], name: str) -> Any:
    if not dataclasses.is_dataclass(cls):
        return None
    found = next((one.default for one in dataclasses.fields(cls) if one.name == name), None)
    return None if found is dataclasses.MISSING else found


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (Size, int | str):
        return "a size: bytes, or `512MiB`"
    if origin is Annotated:
        bounds = [f"{sign} {value:g}" for meta in arguments[1:] for sign, value in _bounds(meta)]
        return " ".join([_type(arguments[0]), *bounds])
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin is dict:
        return "a table"
    if origin is list:
        return "tables" if _is_table(arguments[0]) else "a list of " + _type(arguments[0])
    if _is_table(annotation):
        return "a table"
    if arguments:
        return " or ".join(_type(one) for one in arguments if one not in (msgspec.UnsetType, type(None)))
    if isinstance(annotation, enum.EnumType):
        members: list[enum.Enum] = list(annotation)
        return ", ".join(f"`{one.value}`" for one in members)
    known = {int: "integer", float: "number", str: "text", bool: "`true` or `false`"}
    return known.get(annotation, str(annotation.__name__))


def _is_table(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, msgspec.Struct)


def _bounds(meta: object) -> Iterable[tuple[str, float]]:
    if isinstance(meta, msgspec.Meta):
        for sign, value in (("≥", meta.ge), (">", meta.gt), ("≤", meta.le), ("<", meta.lt)):
            if value is not None:
                yield sign, value


def _bars() -> str:
    """Bars of a chart: signs, kinds, and what `ps` says of a process in the meantime."""
    rows = ["| sign | `kind` | `ps` says | the process |", "|---|---|---|---|"]
    for kind, (sign, _, what) in BARS.items():
        state = kind if kind in ("ready", "stopped") else f"blocked:{kind}" if kind in STATES else "running"
        rows.append(f"| `{sign}` | `{kind}` | `{state}` | {what.rpartition(': ')[2]} |")
    return "\n".join(rows)


def _marks() -> str:
    rows = ["| sign | `kind` | |", "|---|---|---|"]
    rows += [f"| `{sign}` | `{kind}` | {what} |" for kind, (sign, _, what) in MARKS.items()]
    return "\n".join(rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "policies": lambda: _policies(POLICIES),
    "victims": lambda: _policies(VICTIMS),
    "evictions": lambda: _policies(EVICTIONS),
    "options.cpu": lambda: _options(cpu_options.Options),
    "options.cuda": lambda: _options(cuda.Options),
    "options.sim": lambda: _options(spec.DeviceSpec),
    "options.sim.model": lambda: _options(spec.ModelSpec),
    "script": lambda: _keys(Script),
    "script.answer": lambda: _keys(Answer),
    "config": lambda: _keys(settings.File),
    "config.kernel": lambda: _keys(settings.Tuning, KernelConfig),
    "config.device": lambda: _keys(settings.Device, DeviceConfig),
    "config.audit": lambda: _keys(settings.Audit),
    "config.trust": lambda: _keys(settings.Trust),
    "config.privacy": lambda: _keys(settings.Privacy, KernelConfig),
    "config.journal": lambda: _keys(settings.Journal, KernelConfig),
    "budgets": _budgets,
    "config.net": lambda: _keys(settings.Net),
    "config.users": lambda: _keys(settings.Users),
    "config.partition": lambda: _keys(settings.PartitionFile, Partition),
    "shell.only": _shell_only,
    "chart.bars": _bars,
    "chart.marks": _marks,
    "config.seal": lambda: _keys(settings.Seal, KernelConfig),
    "config.groups": lambda: _keys(settings.GroupFile, GroupSettings),
}


def schedule() -> str:
    """The picture of docs/simulator.md: four processes on a device with too little memory for them."""
    sim = simulate(frames=12, max_runs=4, quantum=8, record=True)
    program = sim.program()
    names = enumerate(("ada", "bob", "eve", "joe"))
    pids = [program.call(Spawn("sim", [number, 2, 3] * 10, name=name)) for number, name in names]
    futures = [program.start(Decode(pid, 40)) for pid in pids]
    sim.run_until(lambda: all(future.done for future in futures))
    return gantt(sim).svg(width=900)


def fill(text: str) -> str:
    """A document with its blocks as the sources have them. Raises KeyError for a block that is not known."""
    return _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found['name']]()}\n{found[3]}", text)


def named(text: str) -> list[str]:
    """The blocks of a document."""
    return [found["name"] for found in _BLOCK.finditer(text)]
