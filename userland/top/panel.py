"""The lines above the table: the system, its devices, the tiers of their memory, the models, and pressure.

Each line is made of parts that stand whole or not at all: a narrow terminal shows fewer of them, the most telling first.
What the height has no room for is counted in the first line; `d` shows it all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from llmasos.modelfiles.called import called
from llmasos.syscalls.policy_file import shown_policy
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import DeviceInfo, Kind, ModelInfo, State
from llmasos.userland.programs.figures import bar, duration, size
from llmasos.userland.programs.ps import exited
from llmasos.userland.top.columns import WIDE, speed
from llmasos.userland.top.model import Picture
from llmasos.userland.top.spark import spark

_GAP = "  "
_PRESSED = 0.1  # the share of time lost that is shown as a warning


@dataclass(frozen=True)
class Palette:
    """Styles of rich, by meaning."""

    good: str = "green"
    warn: str = "yellow"
    bad: str = "red"
    mark: str = "cyan"
    faint: str = "dim"


@dataclass(frozen=True)
class Part:
    """A piece of a line. Those of smaller `rank` stay longer."""

    text: str | Text
    rank: int = 0
    style: str = ""

    @property
    def drawn(self) -> Text:
        return Text(self.text, self.style) if isinstance(self.text, str) else self.text


def fit(parts: Sequence[Part], width: int) -> Text:
    """The parts that a line of `width` has room for, by rank, in their order. The first of them stands in any case."""
    parts = [part for part in parts if part.text]
    chosen: set[int] = set()
    left = width
    for at in sorted(range(len(parts)), key=lambda at: (parts[at].rank, at)):
        wanted = parts[at].drawn.cell_len + (len(_GAP) if chosen else 0)
        if wanted > left and chosen:
            break
        chosen.add(at)
        left -= wanted
    return Text(_GAP).join(part.drawn for at, part in enumerate(parts) if at in chosen)


def wrapped(parts: Sequence[Part], width: int) -> list[Text]:
    """All the parts, in as many lines as they need; none is broken unless it alone is longer than a line."""
    made: list[Text] = []
    for part in parts:
        if not part.text:
            continue
        if made and made[-1].cell_len + len(_GAP) + part.drawn.cell_len <= width:
            made[-1].append(_GAP).append_text(part.drawn)
        else:
            made.append(Text("  " if made else "").append_text(part.drawn))
    return made


def lines(picture: Picture, width: int, most: int, palette: Palette) -> list[Text]:
    """At most `most` lines of at most `width` columns."""
    below = _below(picture, width, palette)
    order = sorted(range(len(below)), key=lambda at: (below[at][0], at))
    kept = set(order[: max(0, most - 1)])
    hidden = len(below) - len(kept)
    system = _system(picture, width, hidden, palette)
    return [fit(system, width), *(fit(parts, width) for at, (_, parts) in enumerate(below) if at in kept)]


def whole(picture: Picture, width: int, palette: Palette) -> Text:
    """All of it, however many lines that takes."""
    every = [_system(picture, width, 0, palette), *(parts for _, parts in _below(picture, width, palette))]
    return Text("\n").join(line for parts in every for line in wrapped(parts, width))


def _below(picture: Picture, width: int, palette: Palette) -> list[tuple[int, list[Part]]]:
    """The lines below the first, with ranks: those of the greatest are left out first."""
    boot = picture.sample.boot
    names = max((len(name) for name in _names(picture)), default=0)
    below = [(1, _device(picture, device, names, width, palette)) for device in boot.devices]
    for device in boot.devices:
        below += [(3, parts) for parts in _tiers(picture, device, names, width, palette)]
    below += [(5, _model(picture, model, names, width, palette)) for model in picture.sample.models if model.frames]
    if pressure := _pressure(picture, names, width, palette):
        below.append((2, pressure))
    return below


def _names(picture: Picture) -> list[str]:
    devices = picture.sample.boot.devices
    tiers = [_tier(picture, device, tier.name) for device in devices for tier in device.tiers]
    return [*(device.name for device in devices), *tiers, "pressure"]


def _tier(picture: Picture, device: DeviceInfo, name: str) -> str:
    """A tier's name; where there are several devices, with whose it is."""
    return f"{device.name} {name}" if _several(picture) else name


def _several(picture: Picture) -> bool:
    return len(picture.sample.boot.devices) > 1


def _joint(device: DeviceInfo) -> str:
    return "+".join(tier.name for tier in device.tiers[1:])


def _system(picture: Picture, width: int, hidden: int, palette: Palette) -> list[Part]:
    sample = picture.sample
    agents = [row.info for row in picture.rows.values() if row.info.kind is Kind.LLM and not exited(row.info)]
    counts = [
        (sum(info.state is State.RUNNING for info in agents), "running"),
        (sum(info.state is State.READY for info in agents), "ready"),
        (sum(info.state is State.BLOCKED and bool(info.wait) and info.wait != "input" for info in agents), "blocked"),
        (sum(info.state is State.STOPPED for info in agents), "stopped"),
        (sum(info.state is State.ZOMBIE for info in agents), "ended"),
    ]
    told = ", ".join(f"{count} {word}" for count, word in counts if count)
    return [
        Part(f"llmasos {printable(sample.boot.version, one_line=True)}", 8, palette.faint),
        Part(f"up {duration(sample.at)}", 2),
        Part(f"{len(agents)} agent{'' if len(agents) == 1 else 's'}", 0, "bold"),
        Part(told, 3),
        Part(f"{speed(picture.computed) or '0'} tok/s", 1, palette.good),
        Part(_past(picture.past, width, max(picture.past, default=0.0)), 5, palette.good),
        Part(f"{speed(picture.decoded) or '0'} decoded", 4),
        Part(f"{hidden} line{'' if hidden == 1 else 's'} more: d" if hidden else "", 6, palette.faint),
    ]


def _bar(name: str, used: float, of: float, width: int, colour: str, behind: str = "") -> Text:
    """`cpu0  busy [████  ]  40%`."""
    drawn = bar(used / of if of > 0 else 0.0, 24 if width >= WIDE else 10)
    return Text.assemble(f"{name} [", (drawn, colour), f"]{behind}")


def _past(past: Sequence[float], width: int, most: float) -> str:
    return spark(past, min(len(past), 24 if width >= WIDE else 10), most)


def _device(picture: Picture, device: DeviceInfo, names: int, width: int, palette: Palette) -> list[Part]:
    past = picture.busy.get(device.name, ())
    busy = past[-1] if past else 0.0
    up = device.state == "up"
    return [
        Part(_bar(f"{device.name:<{names}}  busy", busy, 1.0, width, palette.good, f" {busy:4.0%}"), 0),
        Part(_past(past, width, 1.0), 4, palette.mark),
        Part(device.state, 1, palette.good if up else palette.warn if device.state == "starting" else palette.bad),
        Part(printable(device.error, one_line=True) if not up else "", 2, palette.bad),
        Part(f"{device.ready} ready" if up else "", 2, palette.warn if device.ready else ""),
        Part(shown_policy(device.policy) if up else "", 3),
        Part(
            f"{device.restarts} restart{'' if device.restarts == 1 else 's'}" if device.restarts else "", 5, palette.warn
        ),
    ]


def _tiers(picture: Picture, device: DeviceInfo, names: int, width: int, palette: Palette) -> list[list[Part]]:
    """The device's own memory, and the tiers below it, each by itself."""
    if not device.tiers:
        return []
    models = [model for model in picture.sample.models if model.device == device.name]
    mapped = sum((m.frames - m.frames_free - m.frames_cached) * m.block_bytes for m in models)
    kept = sum(m.frames_cached * m.block_bytes for m in models)
    weights = sum(m.resident_bytes for m in models)
    own, *lower = device.tiers
    full = device.kv_bytes > 0 and mapped / device.kv_bytes > 0.9
    made = [
        [
            Part(
                _bar(f"{_tier(picture, device, own.name):<{names}}  KV  ", mapped, device.kv_bytes, width, palette.mark),
                0,
            ),
            Part(f"{size(mapped)} of {size(device.kv_bytes)}", 1, palette.warn if full else ""),
            Part(f"weights {size(weights)}" + (f" of {size(device.weight_bytes)}" if device.weight_bytes else ""), 2),
            Part(f"{size(kept)} kept for prefixes" if kept else "", 3, palette.faint),
        ]
    ]
    if lower and all(len(m.tier_slots) == len(lower) for m in models if m.slots):
        for at, tier in enumerate(lower):
            there = [m for m in models if m.slots]
            places = sum(m.tier_slots[at] * m.block_bytes for m in there)
            taken = places - sum(m.tier_slots_free[at] * m.block_bytes for m in there)
            name = _tier(picture, device, tier.name)
            made.append(_lower(name, taken, places or tier.size, names, width, palette))
    elif lower:  # an older kernel counts them together
        places = sum(m.slots * m.block_bytes for m in models)
        taken = places - sum(m.slots_free * m.block_bytes for m in models)
        name = _tier(picture, device, _joint(device))
        made.append(_lower(name, taken, places or sum(tier.size for tier in lower), names, width, palette))
    return made


def _lower(name: str, taken: int, of: int, names: int, width: int, palette: Palette) -> list[Part]:
    bar = _bar(f"{name:<{names}}  KV  ", taken, of, width, palette.mark)
    return [Part(bar, 0), Part(f"{size(taken)} of {size(of)}", 1)]


def _model(picture: Picture, model: ModelInfo, names: int, width: int, palette: Palette) -> list[Part]:
    used = model.frames - model.frames_free - model.frames_cached
    return [
        Part(_bar(f"{'model':<{names}}  KV  ", used, model.frames, width, palette.mark), 0),
        Part(f"{used}/{model.frames} pages of {size(model.block_bytes)}", 1),
        Part(printable(called(model.name), one_line=True), 2, "bold"),
        Part(f"on {model.device}" if _several(picture) else "", 2),
        Part("" if model.state == "resident" else model.state, 3, palette.warn),
        Part(f"{model.processes} process{'' if model.processes == 1 else 'es'}", 4),
    ]


def _pressure(picture: Picture, names: int, width: int, palette: Palette) -> list[Part]:
    """The share of the last ten seconds in which some process waited, by what for."""
    group = picture.groups.get("/")
    if group is None or not group.info.pressure:
        return []
    parts = [Part(f"{'pressure':<{names}}", 0, palette.faint)]
    for at, (name, info) in enumerate(group.info.pressure.items(), 1):
        share = info.some[0] if info.some else 0.0
        full = info.full[0] if info.full else 0.0
        said = f"{name} {share:.0%}" + (f" (all {full:.0%})" if width >= WIDE and full >= 0.005 else "")
        parts.append(Part(said, at, palette.bad if full >= _PRESSED else palette.warn if share >= _PRESSED else ""))
    return parts
