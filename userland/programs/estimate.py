"""models --estimate: the memory that a model would take, and the models that would have to make room for it."""

from __future__ import annotations

from llmasos.modelfiles.called import called
from llmasos.syscalls.blocking import Client
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import EstimateInfo, Going
from llmasos.syscalls.table import Estimate
from llmasos.userland.programs.figures import number, size
from llmasos.userland.sdk import script
from llmasos.userland.sdk.options import located


def ask(kernel: Client, model: str, *, dtype: str = "", device: str = "", context: int = 0) -> EstimateInfo:
    """Ask the kernel. Raises ENOENT, ENOEXEC, EIO, ENOTSUP as loading does."""
    return kernel(Estimate(script.run(kernel, located(model)), device, dtype, context))


def pairs(info: EstimateInfo) -> list[tuple[str, str]]:
    """The estimate, as names and values."""
    of = f"{info.context:,} tokens" + (", all of its window" if info.context == info.window else "")
    return [
        ("model", f"{called(info.name)} ({info.architecture}, {number(info.parameters)} parameters), {info.state}"),
        ("device", f"{info.device}, in {info.dtype}"),
        ("weights", size(info.weight_bytes) + _streamed(info)),
        ("KV", f"{size(info.kv_bytes_1000)} for 1,000 tokens, {size(info.context_bytes)} for a context of {of}"),
        ("the whole", f"{size(info.total_bytes)}"),
        ("set aside", f"{size(info.pool_bytes)} of KV for all its contexts together: {info.pool_tokens:,} tokens"),
        ("memory for weights", _free(info.weight_free, info.weight_limit)),
        ("memory for KV", _free(info.kv_free, info.kv_limit)),
        ("would have to go", "; ".join(map(_going, info.going)) or "nobody"),
        ("so", info.refused or _verdict(info)),
    ]  # fmt: skip


def _streamed(info: EstimateInfo) -> str:
    if info.refused or info.resident_bytes >= info.weight_bytes:
        return ""
    return f", of which {size(info.resident_bytes)} stay in memory and the rest is streamed in each step"


def _free(free: int, limit: int) -> str:
    return f"{size(free)} of {size(limit)} free" if limit else "not known"


def _going(one: Going) -> str:
    kv = f" and {size(one.kv_bytes)} of KV" if one.kv_bytes else ""
    users = (
        f", {one.processes} process{'' if one.processes == 1 else 'es'}"
        + (" that want to run: it goes when its turn is over" if one.active else " asleep")
        if one.processes
        else ", unused"
    )
    return f"{printable(called(one.name), one_line=True)} in {one.dtype} ({size(one.weight_bytes)} of weights{kv}{users})"


def _verdict(info: EstimateInfo) -> str:
    if info.state in ("resident", "streamed"):
        return "it is in memory"
    return "it can be loaded" + (" once these have gone" if info.going else "")
