"""What must hold of the kernel after every event (docs/design.md). The simulation asks after each; the kernel never does.

Structs check themselves (their `check()`); here stands what takes several of them to see. Each check names the rule that
it enforces, recounts from the process table, and shares no bookkeeping with what it checks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Protocol

from llmasos.kernel import settle
from llmasos.kernel.groups.group import Group
from llmasos.kernel.groups.pressure import Activity
from llmasos.kernel.memory.prefix import COMMON
from llmasos.kernel.objects.device import UP, Device
from llmasos.kernel.objects.image import EVICTED, LOADING, RESIDENT
from llmasos.kernel.objects.process import LLMProcess, Program, activity_of
from llmasos.kernel.pieces import Settling, held
from llmasos.kernel.state import System
from llmasos.syscalls.records import State, WaitFor


class _Checked(Protocol):
    def check(self) -> None: ...


def check(system: System) -> None:
    """Raise AssertionError naming the rule that does not hold."""
    check_structs(system)
    check_mappings(system)
    check_waits(system)
    check_states(system)
    check_run_queues(system)
    check_in_flight(system)
    check_realtime(system)
    check_frames(system)
    check_weights(system)
    check_family(system)
    check_groups(system)
    check_requests(system)
    check_spending(system)
    check_grants(system)


def unsettled(system: System) -> set[int]:
    """Pids of the processes that are settled in the events to come."""
    return {one.pid for work in system.pieces if isinstance(work, Settling) for one in work.left}


def _llms(system: System) -> list[LLMProcess]:
    return [p for p in system.table if isinstance(p, LLMProcess)]


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise AssertionError(text)


def check_structs(system: System) -> None:
    """Each struct holds by itself."""
    system.table.check()
    structs: list[tuple[str, Iterable[tuple[object, _Checked]]]] = [
        ("process", ((process.pid, process) for process in _llms(system) if process.pid not in unsettled(system))),
        ("program", ((program.pid, program) for program in (*system.programs.values(), *system.away.values()))),
        ("device", system.devices.items()),
        ("image", ((image.name, image) for device in system.devices.values() for image in device.images.values())),
    ]
    for kind, named in structs:
        for name, one in named:
            try:
                one.check()
            except AssertionError as error:
                raise AssertionError(f"{kind} {name}: {error}") from None


def check_grants(system: System) -> None:
    """Grants are on what is there, in the hands of those who are there, and give just what they say."""
    system.grants.check()
    given: dict[int, dict[object, int]] = defaultdict(dict)
    _require(not system.grants.ended, "groups that have ended are left")
    for grant in system.grants:
        thing = grant.thing
        there = not thing.ended if isinstance(thing, Group) else system.table.find(thing.pid) is thing
        _require(there, f"grant {grant.number} is on what has gone")
        _require(not grant.until or grant.until > system.wall, f"grant {grant.number} has had its time")
        if grant.holder is not None:
            _require(system.table.find(grant.holder.pid) is grant.holder, f"grant {grant.number} is in nobody's hands")
            rights = given[grant.holder.pid]
            key = thing if isinstance(thing, Group) else thing.pid
            rights[key] = rights.get(key, 0) | grant.rights
    for process in system.table:
        if isinstance(process, Program):
            held: dict[object, int] = dict(process.granted.items())
            held.update(process.granted_groups.items())
            _require(held == given[process.pid], f"program {process.pid} has {held}")
            sandbox = system.sandboxes.get(process.sandbox)
            _require(sandbox is None or process.pid in sandbox.programs, f"program {process.pid} is in no sandbox")
            _require(process.confined or not process.sandbox, f"program {process.pid} is in a sandbox, and not confined")
    for sandbox in system.sandboxes:
        starter = sandbox.starter
        _require(system.table.find(starter.pid) is starter, f"sandbox {sandbox.number} is nobody's")
        for pid, one in sandbox.programs.items():
            _require(system.table.find(pid) is one, f"program {pid} of sandbox {sandbox.number} has gone")


def check_mappings(system: System) -> None:
    """Pages are held by a model's users only; KV is read for a process that has the model or is on its way to it."""
    for device in system.devices.values():
        for image in device.images.values():
            for pid in image.imports:
                coming = pid in image.users or system.table.llm(pid).transition is not None
                _require(coming, f"{image.name}: KV is read for process {pid}, which neither has it nor is coming")


def check_waits(system: System) -> None:
    """Nobody waits for what is there."""
    coming = unsettled(system)
    for p in _llms(system):
        if p.running or p.state is not State.BLOCKED or p.pid in coming:
            continue
        if p.wait is WaitFor.DEVICE:
            _require(p.device.state != UP, f"pid {p.pid} waits for a device that is up")
        if p.wait is WaitFor.WEIGHTS:
            _require(p.image is None or p.image.state != RESIDENT, f"pid {p.pid} waits for weights that are there")


def check_states(system: System) -> None:
    """Each row shows what the facts ask for, so that settling it once more would change nothing: a program waits for a
    child while a call of its does, an LLM process that is in no step is in the state that its facts give."""
    coming = unsettled(system)
    for process in system.table:
        if process.pid in coming:
            continue
        if isinstance(process, Program) and process.grace is None and not process.is_zombie():
            shown = process.wait is WaitFor.CHILD
            _require(shown == bool(process.ended), f"pid {process.pid} is shown as waiting for {process.wait.value}")
        elif isinstance(process, LLMProcess) and not process.running and not process.is_zombie():
            shown_as, due = (process.state, process.wait), settle._state(process)
            _require(shown_as == due, f"pid {process.pid} is {shown_as}, and should be {due}")


def check_run_queues(system: System) -> None:
    """Every READY process is reachable by the scheduler, exactly once."""
    for device in system.devices.values():
        queued = [p.pid for queue in device.queues for p in queue]
        ready = [p.pid for p in _llms(system) if p.state is State.READY and p.device is device]
        _require(sorted(queued) == sorted(ready), f"{device.name}: queued {queued}, ready {ready}")
        counted = sum(map(len, device.queues))
        _require(counted == len(queued), f"{device.name}: the queue counts {counted} of {len(queued)}")
        idle = device.state == UP and device.in_flight is None and not system.halting and not device.loads_alone
        starved = [p.pid for image in device.images.values() for p in image.starved.values() if not p.over_limit]
        idle = idle and len(device.queues) == 1 and not held(system)  # else they wait for their turns
        _require(not (idle and (ready or starved)), f"{device.name} idles, but {ready} are ready, {starved} starved")


def check_in_flight(system: System) -> None:
    """The processes of the step in flight are those that run."""
    for device in system.devices.values():
        flight = device.in_flight
        running = {p.pid for p in _llms(system) if p.running and p.device is device}
        _require(running == {p.pid for p in flight.processes} if flight else not running, f"{device.name}: {running} run")


def check_realtime(system: System) -> None:
    """A REALTIME process that wanted the device before the step began, and had some of its budget left, is in the step,
    unless others of its class filled it: as it was planned, whatever has been set or cut since. One place may be given to
    a process that has waited too long; a prompt for which there were no tokens keeps its place from others."""
    for device in system.devices.values():
        reserved = {p.pid for p in _llms(system) if p.reserve is not None and not p.is_zombie()}
        coming = {p.pid for p in _llms(system) if p.transition is not None}
        _require(device.reserves.keys() <= reserved | coming, f"{device.name} keeps {list(device.reserves)}")
        flight = device.in_flight
        if flight is None or not flight.processes or any(p.crashes for p in flight.processes):
            continue
        weaker = [p.pid for p in flight.processes if p.ranked]
        for p in device.queue:
            held = p.reserve
            if held is None or not held.open or max(p.since, held.since) >= flight.began or p.crashes or p.preempted:
                continue
            places = len(flight.processes) + len(flight.passed)
            full = places >= flight.max_runs or flight.tokens >= flight.step_tokens
            fair = (full and len(weaker) <= 1) or p in flight.passed
            _require(fair, f"REALTIME process {p.pid} was left behind for {weaker}")


def check_frames(system: System) -> None:
    """A frame that a process maps has nothing of another owner, but what both share."""
    for device in system.devices.values():
        for image in device.images.values():
            for user in image.users.values():
                for frame in user.table.frames:
                    owner = image.pool.owners[frame]
                    _require(
                        owner == user.table.owner or user.table.salt == COMMON,
                        f"{image.name}: process {user.pid} maps frame {frame}, which has KV of another owner",
                    )
            _require(not image.pool.wipes, f"{image.name}: {image.pool.wipes} are yet to be wiped")


def check_weights(system: System) -> None:
    """A process that wants to run has weights or waits for them; none waits for weights for which there is room."""
    if unsettled(system):
        return
    for device in system.devices.values():
        for image in device.images.values():
            active = {p.pid for p in image.users.values() if p.image is image and _wants_to_run(p)}
            _require(image.active.keys() == active, f"{image.name}: {active} want to run, known: {list(image.active)}")
            asked = image.state == EVICTED and image.held and bool(active)
            _require(image.faulted or not asked, f"{image.name}: {active} want it, and that was no fault")
            for process in image.active.values():
                if image.state == EVICTED and device.state == UP:
                    _require(process.wait is WaitFor.WEIGHTS, f"pid {process.pid}: {process.state} without weights")
        if device.state == UP and not system.halting:
            _check_room(system, device)


def _check_room(system: System, device: Device) -> None:
    images = list(device.images.values())
    wanted = [i for i in images if i.state == EVICTED and (i.active or i.loaded)]
    claimed = any(i.state != RESIDENT if i.pinned else i.state == LOADING for i in images)
    failed = any(i.retry_at > system.now for i in wanted)  # its page-in has failed just now
    if len(wanted) != 1 or claimed or failed:
        return
    weights = sum(i.allotted for i in images) + wanted[0].size
    limit, tier = device.config.weight_bytes, device.tier_size
    fits = (not limit or weights <= limit) and (not tier or weights + sum(i.kv_bytes for i in images) <= tier)
    _require(not fits, f"{device.name}: there is room for {wanted[0].name}, which is wanted")


def _wants_to_run(process: LLMProcess) -> bool:
    """Would it run, had it weights and frames? Not while it is being restored."""
    image = process.image
    if process.running or image is None or process.device.state != UP or process.stopped:
        return process.running > 0
    if process.pid in image.starved:
        return process.over_limit is None
    return process.todo > 0 and process.throttled_by is None


def check_family(system: System) -> None:
    """Parents and children name each other; the parent of an LLM process is a living program or init. What is connected
    has a row, and a program that has one is connected, away, or ending."""
    for program in system.programs.values():
        _require(system.table.find(program.pid) is program, f"{program.pid} is connected, and has no row")
    for process in system.table:
        children = system.table.children(process.pid)
        for pid in children:
            child = system.table.find(pid)
            _require(child is not None and child.parent == process.pid, f"{process.pid}: child {pid} does not agree")
        ended = {pid for pid in children if (child := system.table.find(pid)) is not None and child.is_zombie()}
        _require(system.table.zombies(process.pid).keys() == ended, f"{process.pid}: of its children {ended} have ended")
        parent = system.table.find(process.parent)
        if process.parent:
            _require(
                parent is not None and process.pid in system.table.children(process.parent),
                f"{process.pid}: parent {process.parent} does not agree",
            )
        if isinstance(process, Program) and process.grace is None and not process.leaving:
            _require(system.programs.get(process.peer) is process, f"program {process.pid} is nowhere")
        if process.state is State.ZOMBIE:
            detached = isinstance(process, LLMProcess) and process.traits.detached
            _require(isinstance(parent, Program) or detached, f"zombie {process.pid} can be reaped by nobody")


def check_groups(system: System) -> None:
    """Each group is charged for what a recount of its processes, frames and places gives; limits that hold at once are
    exceeded only by what was there when they were set."""
    kv: Counter[Group] = Counter()
    swap: Counter[Group] = Counter()
    pids: Counter[Group] = Counter()
    loads: defaultdict[Group, dict[str, int]] = defaultdict(dict)
    maps: defaultdict[Group, set[int]] = defaultdict(set)
    busy: Counter[tuple[Group, Activity]] = Counter()
    sizes: dict[int, int] = {}
    for device in system.devices.values():
        for image in device.images.values():
            sizes[image.id] = image.weight_bytes
            for user in image.users.values():
                for group in user.group.chain:
                    maps[group].add(image.id)
            for payer, frames in Counter(filter(None, image.pool.payers)).items():
                for group in payer.chain:
                    kv[group] += frames * image.frame_bytes
    for process in system.table:
        chain = process.group.chain
        for group in chain:
            pids[group] += 1
        if not isinstance(process, LLMProcess):
            continue
        activity = activity_of(process.state, process.wait)
        for group in chain:
            busy[group, activity] += 1
        if process.image is not None and not process.is_zombie() and process.table.kept:
            held = len(process.table.kept) * process.image.frame_bytes
            for group in chain:
                swap[group] += held
        if process.state in (State.READY, State.RUNNING):
            load = loads[process.group]
            load[process.device.name] = load.get(process.device.name, 0) + process.weight
    listed = list(system.groups)
    inside = Counter(above for group in listed for above in group.chain[1:])
    for group in reversed(listed):
        for device_name in loads[group]:
            if group.parent is not None:
                above = loads[group.parent]
                above[device_name] = above.get(device_name, 0) + group.weight
    for group in listed:
        _require(group.inside == inside[group], f"{group.path} miscounts its groups")
        weights = sum(sizes[image] for image in maps[group])
        found = (group.kv, group.swap, group.pids, group.weights)
        counted = (kv[group], swap[group], pids[group], weights)
        if found != counted or group.load != loads[group]:  # the sentence is costly, and this is asked after each event
            raise AssertionError(
                f"{group.path} is charged {found} of kv, swap, pids, weights and has loads {group.load}; "
                f"counted: {counted}, {loads[group]}"
            )
        for activity in list(Activity)[1:]:
            found_busy, counted_busy = group.pressure.counts[activity], busy[group, activity]
            if found_busy != counted_busy:
                raise AssertionError(f"{group.path}: {found_busy} do {activity.name}; counted: {counted_busy}")
        for pid in group.line:
            _require(system.table.llm(pid).throttled_by is group, f"{pid} is in the line of {group.path}")


def check_requests(system: System) -> None:
    """Nothing is left to be reconciled; every call that waits on a process is parked."""
    _require(not system.cycle, f"reconciling has come to no end: {system.cycle}")
    _require(not (system.woken or system.stale or system.orphans or system.pumped), "marks are left")
    for process in _llms(system):
        waiting = [*(process.reading or ()), *(process.pausing or ())]
        if process.transition is not None:
            waiting.append(process.transition)
        if process.decoding is not None and process.decoding.request is not None:
            waiting.append(process.decoding.request)
        for request in waiting:
            _require(
                request.program.parked.get(request.seq) is request, f"a call waits on {process.pid} but is not parked"
            )


def check_spending(system: System) -> None:
    """What the budgets say is spent is what the calls of programs that wait, and the logs, come to."""
    programs = {process for process in system.table if isinstance(process, Program)}
    parked = [request for program in programs for request in program.parked.values()]
    counted = len(parked), sum(request.size for request in parked)
    told = system.spending.all.calls, system.spending.all.bytes
    _require(counted == told, f"calls that wait, and their bytes: {counted}, charged: {told}")
    kept = sum(process.kept for process in system.table)
    _require(kept == system.groups.root.logs, f"logs and rows: {kept} bytes, charged: {system.groups.root.logs}")
    for process in _llms(system):
        off = process.size - process.kept
        _require(0 <= off < 1024, f"the log of process {process.pid} has {off} bytes more than its group pays for")
