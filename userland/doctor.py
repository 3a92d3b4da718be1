"""doctor: what this machine and this installation can and cannot do, and why, as a table or as JSON.

Every finding is made here and now: packages from their metadata, the machine from the drivers' own hardware layer (run as
a program, because userland does not import drivers), the kernel by asking it. A finding is `ok`, `note` (it works, with a
remark) or `missing` (it is needed and absent: exit status 1).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmasos.light import HEAVY
from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.table import BootInfoCall, Models
from llmasos.syscalls.zeromq import MAX_SOCKET_PATH
from llmasos.userland.programs.figures import duration, size
from llmasos.userland.programs.screen import Column, Screen, Table

OK, NOTE, MISSING = "ok", "note", "missing"
PYTHON = (3, 11)
HAL_SECONDS = 120.0
SPARED = "not installed; models that the native decoder holds run without it"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_STYLES = {OK: "", NOTE: "yellow", MISSING: "bold red"}


@dataclass(frozen=True)
class Finding:
    """One finding: its section, its subject, its status, the facts, and the remedy."""

    area: str
    what: str
    status: str
    found: str
    advice: str = ""


def main(where: Path, *, as_json: bool) -> int:
    """Look at everything and print it; returns 1 if something needed is missing."""
    machine = _machine()
    native = bool(machine.get("native", {}).get("isa"))
    findings = [
        *python(),
        *packages(native=native),
        *machine_findings(machine),
        *model(),
        *directory(where),
        *kernel(where),
    ]
    if as_json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings], "machine": machine}, indent=2))
    else:
        _print(Screen(), findings)
    return 1 if any(finding.status == MISSING for finding in findings) else 0


def _print(screen: Screen, findings: list[Finding]) -> None:
    table = Table((Column("AREA", style="bold"), Column("WHAT"), Column("STATUS"), Column("FOUND", elastic=True)))
    area = ""
    for finding in findings:
        table.add(
            finding.area if finding.area != area else "",
            finding.what,
            finding.status,
            finding.found,
            style=_STYLES[finding.status],
        )
        area = finding.area
    screen.table(table)
    advice = [finding for finding in findings if finding.advice]
    if advice:
        screen.line()
    for finding in advice:
        screen.line(f"{finding.what}: {finding.advice}", _STYLES[finding.status])
    screen.line()
    missing = [finding.what for finding in findings if finding.status == MISSING]
    if missing:
        screen.line(f"missing: {', '.join(missing)}", _STYLES[MISSING])
    else:
        screen.line("everything that is needed is here", "green")


# --- the installation -----------------------------------------------------------------------------------------------


def python() -> Iterator[Finding]:
    """The interpreter."""
    version = sys.version.split()[0]
    if sys.version_info >= PYTHON:
        yield Finding("python", "version", OK, f"{version} ({sys.executable})")
    else:
        wanted = ".".join(map(str, PYTHON))
        yield Finding("python", "version", MISSING, version, f"LLMasOS needs Python {wanted} or newer")


def packages(*, native: bool) -> Iterator[Finding]:
    """The requirements of the installed package, and whether each is there in a fitting version. With the native decoder,
    what a light installation leaves out is not needed."""
    try:
        required = importlib.metadata.requires("llmasos") or []
        yield Finding("packages", "llmasos", OK, importlib.metadata.version("llmasos"))
    except importlib.metadata.PackageNotFoundError:
        advice = "run `make run`, or `pip install -e .` in the checkout; without it the other packages cannot be checked"
        yield Finding("packages", "llmasos", MISSING, "not installed as a package", advice)
        return
    from packaging.requirements import Requirement

    for text in required:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            spared = native and wanted.name in HEAVY
            found = SPARED if spared else "not installed"
            status = NOTE if spared else MISSING
            yield Finding("packages", wanted.name, status, found, f"pip install '{wanted}'")
            continue
        if wanted.specifier.contains(version, prereleases=True):
            yield Finding("packages", wanted.name, OK, version)
        else:
            advice = f"pip install '{wanted}'"
            yield Finding("packages", wanted.name, MISSING, f"{version}, wanted {wanted.specifier}", advice)


def model() -> Iterator[Finding]:
    """The embedded model, and the directories of models that the environment names."""
    spec = importlib.util.find_spec("llmasos.models")
    places = [Path(place).resolve() / "tiny" for place in spec.submodule_search_locations or ()] if spec else []
    found = next((place for place in places if (place / "config.json").is_file()), None)
    if found is None:
        yield Finding("models", "tiny", MISSING, "not there", "make it: python -m llmasos.models.tiny.train")
    else:
        lacking = [name for name in MODEL_FILES if not (found / name).is_file()]
        weight = sum(file.stat().st_size for file in found.glob("*.safetensors"))
        if lacking:
            advice = "make it again: python -m llmasos.models.tiny.train"
            yield Finding("models", "tiny", MISSING, f"{found} lacks {', '.join(lacking)}", advice)
        else:
            yield Finding("models", "tiny", OK, f"{size(weight)} in {found}")
    for place in filter(None, os.environ.get("LLMASOS_MODELS", "").split(":")):
        if not Path(place).is_dir():
            yield Finding("models", "LLMASOS_MODELS", NOTE, f"{place} is no directory", "name directories of models")
            continue
        names = sorted(child.name for child in Path(place).iterdir() if (child / "config.json").is_file())
        yield Finding("models", "LLMASOS_MODELS", OK, f"{place}: {', '.join(names) or 'no models in it'}")


# --- the machine ----------------------------------------------------------------------------------------------------


def _machine() -> dict[str, Any]:
    """The report of the hardware layer, or {"error": why there is none}."""
    try:
        ran = subprocess.run(
            [*runtime.module("llmasos.drivers.hal"), "--json"],
            env=runtime.environment(),
            capture_output=True,
            text=True,
            timeout=HAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"the hardware layer has not answered within {HAL_SECONDS:.0f} s"}
    if ran.returncode != 0:
        lines = ran.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"the hardware layer ended with status {ran.returncode}"}
    report: dict[str, Any] = json.loads(ran.stdout)
    return report


def machine_findings(machine: dict[str, Any]) -> Iterator[Finding]:
    """The report of the hardware layer, and its consequences: which dtypes run how. Its keys are those of `python -m
    llmasos.drivers.hal --json`."""
    if "error" in machine:
        advice = "run `python -m llmasos.drivers.hal` to see the whole error"
        yield Finding("machine", "hardware", MISSING, machine["error"], advice)
        return
    cpu, memory, torch = machine["cpu"], machine["memory"], machine["torch"]
    yield Finding("machine", "system", OK, f"{machine['system']} on {cpu['architecture']}")
    yield Finding("machine", "cpu", OK, f"{cpu['model']}: {cpu['cores']} cores, {cpu['threads']} threads")
    yield Finding("machine", "instructions", OK, " ".join(cpu["isa"]) or "none that matter here")
    caches = ", ".join(f"{name} {size(count)}" for name, count in cpu["caches"].items())
    yield Finding("machine", "caches", OK, caches or "unknown")
    yield Finding("machine", "memory", OK, f"{size(memory['available'])} of {size(memory['total'])} free")
    if "No module named 'torch'" in torch["error"] and machine["native"]["isa"]:
        yield Finding("machine", "torch", NOTE, SPARED)
    elif torch["error"]:
        yield Finding("machine", "torch", MISSING, torch["error"], "install it: pip install 'torch>=2.9,<2.14'")
    else:
        built = f"CUDA {torch['cuda']}" if torch["cuda"] else "CPU only"
        found = f"{torch['version']} ({built}), {torch['cpu_capability']}, {torch['threads']} threads"
        yield Finding("machine", "torch", OK, found)
    for gpu in machine["gpus"]:
        found = f"{gpu['name']}, {size(gpu['memory'])}, capability {gpu['capability']}"
        yield Finding("machine", f"gpu {gpu['index']}", OK, found)
    if not machine["gpus"]:
        blind = "there is no torch to use one" if torch["error"] else "this torch is built without CUDA"
        why = "torch sees none" if torch["cuda"] else blind
        yield Finding("machine", "gpu", NOTE, f"{why}; the cpu driver computes")
    yield from dtypes(cpu, machine["native"], torch=not torch["error"])


def dtypes(cpu: dict[str, Any], native: dict[str, Any], *, torch: bool) -> Iterator[Finding]:
    """The number formats that the CPU driver offers, and why. `torch`: it is installed."""
    yield Finding("dtypes", "fp32", OK, "always" if cpu["bf16"] else "always; the default here")
    if cpu["bf16"]:
        yield Finding("dtypes", "bf16", OK, "the default here: the CPU multiplies it in hardware")
    else:
        yield Finding("dtypes", "bf16", NOTE, "in half the memory; the CPU multiplies it as fp32")
    if isa := native["isa"]:
        saturates = "; refused for others: without VNNI or AMX torch's int8 products saturate"
        others = (", else by torch" if cpu["int8"] else saturates) if torch else ""
        found = f"by the native decoder ({isa}) for models like llama{others}"
        yield Finding("dtypes", "int8", OK, found)
        yield Finding("dtypes", "int4", OK, f"by the native decoder ({isa}) for models like llama")
        if kept := native["installed"]:
            found = f"{size(native['installed_bytes'])} in {kept}; what is deleted there is made again"
            yield Finding("dtypes", "installed models", OK, found)
        else:
            yield Finding("dtypes", "installed models", NOTE, "none are kept: LLMASOS_CACHE is empty")
        return
    if cpu["int8"]:
        yield Finding("dtypes", "int8", OK, "by torch: the CPU has exact int8 products (VNNI or AMX)")
    else:
        yield Finding("dtypes", "int8", NOTE, "refused: without VNNI or AMX torch's int8 products saturate")
    advice = "install a C compiler, then LLMasOS again (make clean, make)"
    yield Finding("dtypes", "int4", NOTE, f"refused: no native decoder, {native['error']}", advice)


# --- the kernel -----------------------------------------------------------------------------------------------------


def directory(where: Path) -> Iterator[Finding]:
    """The runtime directory."""
    path = str(where.absolute() / runtime.DRIVERS)
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        advice = f"a socket's path may have {MAX_SOCKET_PATH} bytes: choose a shorter one (--runtime or LLMASOS_RUNTIME)"
        yield Finding("kernel", "runtime directory", MISSING, str(where), advice)
    elif not where.exists():
        yield Finding("kernel", "runtime directory", OK, f"{where} (made at boot)")
    else:
        status = where.stat()
        if runtime.is_system(where):
            yield Finding("kernel", "runtime directory", OK, f"{where}, of the machine's kernel")
        elif status.st_uid != os.getuid():
            advice = "choose one of your own with --runtime or LLMASOS_RUNTIME"
            yield Finding("kernel", "runtime directory", MISSING, f"{where} belongs to user {status.st_uid}", advice)
        elif status.st_mode & 0o077:
            advice = f"others may look inside; chmod 700 {where}"
            yield Finding("kernel", "runtime directory", NOTE, f"{where} has mode {status.st_mode & 0o777:o}", advice)
        else:
            yield Finding("kernel", "runtime directory", OK, str(where))


def kernel(where: Path) -> Iterator[Finding]:
    """The kernel of this runtime directory, its devices and models in memory, and other kernels of this user."""
    if runtime.holder(where) is None:
        yield Finding("kernel", "running here", NOTE, f"no kernel runs in {where}", "`llmasos boot` boots one")
    else:
        yield from _running(where)
    for pid, place in other_kernels(where):
        yield Finding("kernel", "running elsewhere", OK, f"process {pid}, in {place}")


def _running(where: Path) -> Iterator[Finding]:
    try:
        with blocking.connect(where, name="doctor", timeout=5.0, reconnect=0.0) as connection:
            boot, models = connection(BootInfoCall()), connection(Models())
    except SyscallError as error:
        yield Finding("kernel", "running here", MISSING, str(error), "end that process and boot again")
        return
    found = f"process {boot.os_pid}, up {duration(boot.uptime)}, version {boot.version}"
    yield Finding("kernel", "running here", OK, found)
    for device in boot.devices:
        what = f"device {device.name}"
        if device.state == "down":
            yield Finding("kernel", what, MISSING, device.error, "see `llmasos dmesg`")
            continue
        can = "; ".join([", ".join(device.dtypes), ", ".join(device.features)])
        found = f"{device.kind}, {device.state}: {device.description}; {can}"
        yield Finding("kernel", what, OK if device.state == "up" else NOTE, found)
    for info in models:
        if info.state in ("resident", "streamed"):
            found = f"{info.architecture}, {info.dtype} on {info.device}, {size(info.weight_bytes)}"
            yield Finding("kernel", f"model {info.name}", OK, f"{found}, {info.frames} KV pages")


def other_kernels(where: Path) -> Iterator[tuple[int, str]]:
    """Kernels of this user in other runtime directories: their process ids and directories."""
    import psutil

    for process in psutil.process_iter(["cmdline", "uids"]):
        words, uids = process.info["cmdline"] or [], process.info["uids"]
        if "llmasos.kernel.edge.boot" not in words or uids is None or uids.real != os.getuid():
            continue
        place = words[words.index("--runtime") + 1] if "--runtime" in words[:-1] else str(runtime.default())
        if Path(place).absolute() != where.absolute():
            yield process.pid, place
