"""What must hold after every event (design section 5). Tests call this; nothing in the kernel depends on it.

Each check names the rule it enforces. They recount from the process table, and share no bookkeeping with what they
check.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from llmasos.drivers.protocol import BLOCK_TOKENS
from llmasos.kernel.groups.group import Group
from llmasos.kernel.groups.pressure import Activity
from llmasos.kernel.journal.process_image import check_places
from llmasos.kernel.memory.page_table import blocks
from llmasos.kernel.objects.device import UP
from llmasos.kernel.objects.image import EVICTED, LOADING, RESIDENT
from llmasos.kernel.objects.process import LLMProcess, Program
from llmasos.kernel.state import System
from llmasos.syscalls.records import State, WaitFor


def check(system: System) -> None:
    check_frames(system)
    check_tables(system)
    check_records(system)
    check_states(system)
    check_run_queues(system)
    check_in_flight(system)
    check_weights(system)
    check_family(system)
    check_groups(system)
    check_requests(system)


def _llms(system: System) -> list[LLMProcess]:
    return [p for p in system.table if isinstance(p, LLMProcess)]


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise AssertionError(text)


def check_frames(system: System) -> None:
    """A frame is free, cached, or has refcount = number of mappings; pages are held only by the image's users."""
    for device in system.devices.values():
        for image in device.images.values():
            tables = [*(p.table for p in image.users.values()), *image.imports.values()]
            image.pool.check(table.frames for table in tables)
            for pid in image.imports:
                _require(
                    pid in image.users or system.table.llm(pid).transition is not None,
                    f"{image.name}: KV is read for process {pid}, which neither has it nor is coming",
                )
            image.swap.check(kept.slot for p in image.users.values() for kept in p.table.kept.values())
            for process in image.users.values():
                _require(
                    (process.pid in image.holders) == bool(process.table.frames),
                    f"pid {process.pid} has {len(process.table.frames)} pages; a holder: {process.pid in image.holders}",
                )
            for pid in image.holders:
                _require(pid in image.users, f"pid {pid} holds pages of {image.name} but does not use it")
    for process in _llms(system):
        if process.table.frames:
            _require(process.image is not None and process.pid in process.image.users, f"pid {process.pid}: stray pages")


def check_tables(system: System) -> None:
    """A table covers exactly the cached tokens and those of the step in flight; never more than the log."""
    for process in _llms(system):
        table = process.table
        covered = table.cached + process.running
        _require(covered <= len(process.log), f"pid {process.pid}: {covered} tokens cached of {len(process.log)}")
        _require(not process.guessing or process.running > 0, f"pid {process.pid} guesses, but is in no step")
        covered += process.guessing
        _require(
            len(table.frames) == blocks(covered), f"pid {process.pid}: {len(table.frames)} frames for {covered} tokens"
        )
        _require(len(set(table.frames)) == len(table.frames), f"pid {process.pid} maps a frame twice")
        _require(
            all(0 < kept.tokens <= len(process.log) - block * BLOCK_TOKENS for block, kept in table.kept.items()),
            f"pid {process.pid} keeps in lower tiers what its log does not have",
        )
        _require(
            process.swapped_in <= table.cached and not (process.swapped_in and not process.running),
            f"pid {process.pid}: {process.swapped_in} tokens are moved in by no step",
        )
        _require(table.sent <= len(table.frames), f"pid {process.pid}: more frames sent than there are")


def check_records(system: System) -> None:
    """Records are in order, each at a position that its log has or ends at, and no more than a process may have."""
    for process in _llms(system):
        records = process.records
        wrong = check_places(records.rows, len(process.log))
        _require(not wrong, f"pid {process.pid}: {wrong}")
        counted = sum(len(row.data) for row in records.rows)
        _require(records.bytes == counted, f"pid {process.pid}: {records.bytes} bytes of records, counted: {counted}")


def check_states(system: System) -> None:
    """Every state is the one its facts ask for."""
    for p in _llms(system):
        if p.state is State.ZOMBIE:
            held = p.table.frames or p.output or p.boundary or p.decoding is not None
            _require(not held, f"zombie {p.pid} holds on")
            continue
        _require(
            (p.state is State.RUNNING) == (p.running > 0), f"pid {p.pid}: {p.state} with {p.running} tokens in a step"
        )
        _require((p.state is State.READY) == (p.ticket > 0), f"pid {p.pid}: {p.state}, queued: {p.ticket > 0}")
        if p.running:
            continue
        _require((p.state is State.STOPPED) == p.stopped, f"pid {p.pid}: {p.state}, stopped: {p.stopped}")
        _require(p.dying is None, f"pid {p.pid} is dying but not in a step")
        _require(not p.boundary or p.saved is not None, f"pid {p.pid}: calls wait for a token boundary that has been")
        if p.state is State.BLOCKED and p.wait is WaitFor.INPUT:
            _require(p.todo == 0, f"pid {p.pid} waits for input but has {p.todo} tokens to compute")
        if p.state is State.BLOCKED and p.wait is WaitFor.DEVICE:
            _require(p.device.state != UP, f"pid {p.pid} waits for a device that is up")
        if p.state is State.BLOCKED and p.wait is WaitFor.WEIGHTS:
            _require(p.image is None or p.image.state != RESIDENT, f"pid {p.pid} waits for weights that are there")
        starved = p.image is not None and p.pid in p.image.starved
        limited = starved and p.over_limit is not None
        _require(
            (p.wait is WaitFor.PAGEIN) == (starved and not limited),
            f"pid {p.pid}: {p.state} {p.wait}, starved: {starved}",
        )
        _require(
            (p.wait is WaitFor.QUOTA) == (limited or p.throttled_by is not None),
            f"pid {p.pid}: {p.state} {p.wait}, limited: {limited}, throttled by {p.throttled_by}",
        )


def check_run_queues(system: System) -> None:
    """Every READY process is reachable by the scheduler, exactly once."""
    for device in system.devices.values():
        queued = [p.pid for p in device.queue]
        ready = [p.pid for p in _llms(system) if p.state is State.READY and p.device is device]
        _require(sorted(queued) == sorted(ready), f"{device.name}: queued {queued}, ready {ready}")
        _require(
            len(device.queue) == len(queued), f"{device.name}: the queue counts {len(device.queue)} of {len(queued)}"
        )
        _require(
            not device.swapped_out or bool(device.outs), f"{device.name}: something waits for frames to be moved out"
        )
        idle = device.state == UP and device.in_flight is None and not system.halting and not device.loads_alone
        starved = [p.pid for image in device.images.values() for p in image.starved.values() if not p.over_limit]
        _require(not (idle and (ready or starved)), f"{device.name} idles, but {ready} are ready, {starved} starved")


def check_in_flight(system: System) -> None:
    """A step in flight references only frames its processes map, and writes none that another maps too."""
    for device in system.devices.values():
        flight = device.in_flight
        running = {p.pid for p in _llms(system) if p.running and p.device is device}
        _require(running == {p.pid for p in flight.processes} if flight else not running, f"{device.name}: {running} run")
        for process in flight.processes if flight else []:
            image = process.image
            _require(image is not None and image.state == RESIDENT, f"pid {process.pid} runs without weights")
            assert image is not None
            first = process.table.cached // image.block_tokens
            for frame in process.table.frames[first:]:
                _require(image.pool.refs[frame] == 1, f"frame {frame} is written by {process.pid} with other mappings")


def check_weights(system: System) -> None:
    """Weights in memory, and on their way, are within their budget; who wants to run has them or waits for them; every
    page-in, eviction and loss is counted."""
    for device in system.devices.values():
        images = list(device.images.values())
        there = [i for i in images if i.state == RESIDENT or (i.state == LOADING and i.probed is not None)]
        weights, limit = sum(i.allotted for i in there), device.config.weight_bytes
        frames = sum(i.kv_bytes for i in images if i.held)
        _require(not limit or weights <= limit, f"{device.name}: {weights} bytes of weights in {limit}")
        tier = device.tier_size
        _require(not tier or weights + frames <= tier, f"{device.name}: {weights}+{frames} bytes in {tier}")
        for image in images:
            resident = image.state == RESIDENT
            counted = image.pageins - image.evictions - image.wiped
            _require(counted == resident, f"{image.name}: {counted} page-ins left of it, resident: {resident}")
            _require(
                (image.allotted > 0) == (image in there), f"{image.name} is {image.state} with {image.allotted} bytes"
            )
            _require(
                resident or not image.starved, f"{image.name}: {list(image.starved)} wait for frames without weights"
            )
            _require(image.held or not resident, f"{image.name} is in memory without frames")
            active = {p.pid for p in image.users.values() if p.image is image and _wants_to_run(p)}
            _require(image.active.keys() == active, f"{image.name}: {active} want to run, known: {list(image.active)}")
            asked = image.state == EVICTED and image.held and bool(active)
            _require(image.faulted or not asked, f"{image.name}: {active} want it, and that was no fault")
            for process in image.active.values():
                if image.state == EVICTED and device.state == UP:
                    _require(process.wait is WaitFor.WEIGHTS, f"pid {process.pid}: {process.state} without weights")
        wanted = [i for i in images if i.state == EVICTED and (i.active or i.loaded)]
        claimed = any(i.state != RESIDENT if i.pinned else i.state == LOADING for i in images)
        claimed = claimed or any(i.retry_at > system.now for i in wanted)  # its page-in has failed just now
        if device.state == UP and not system.halting and len(wanted) == 1 and not claimed:
            fits = (not limit or weights + wanted[0].size <= limit) and (
                not tier or weights + wanted[0].size + sum(i.kv_bytes for i in images) <= tier
            )
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
    """Parents and children name each other; the parent of an LLM process is a living program or init."""
    for process in system.table:
        for pid in process.children:
            child = system.table.find(pid)
            _require(child is not None and child.owner == process.pid, f"{process.pid}: child {pid} does not agree")
        ended = {pid for pid in process.children if (child := system.table.find(pid)) is not None and child.is_zombie()}
        _require(process.zombies.keys() == ended, f"{process.pid}: of its children {ended} have ended")
        parent = system.table.find(process.owner)
        if process.owner:
            _require(
                parent is not None and process.pid in parent.children,
                f"{process.pid}: parent {process.owner} does not agree",
            )
        if process.state is State.ZOMBIE:
            _require(isinstance(parent, Program), f"zombie {process.pid} can be reaped by nobody")


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
            for payer in filter(None, image.pool.payers):
                kv.update(dict.fromkeys(payer.chain, image.frame_bytes))
    for process in system.table:
        pids.update(process.group.chain)
        if not isinstance(process, LLMProcess):
            continue
        _require(process.table.group is process.group, f"pid {process.pid}: another group pays for its pages")
        busy.update((group, process.activity) for group in process.group.chain)
        if process.image is not None and not process.is_zombie():
            held = len(process.table.kept) * process.image.frame_bytes
            swap.update(dict.fromkeys(process.group.chain, held))
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
        _require(found == counted, f"{group.path} is charged {found} of kv, swap, pids, weights; counted: {counted}")
        _require(group.load == loads[group], f"{group.path} has loads {group.load}; counted: {loads[group]}")
        for activity in list(Activity)[1:]:
            _require(
                group.pressure.counts[activity] == busy[group, activity],
                f"{group.path}: {group.pressure.counts[activity]} do {activity.name}; counted: {busy[group, activity]}",
            )
        for pid in group.line:
            _require(system.table.llm(pid).throttled_by is group, f"{pid} is in the line of {group.path}")


def check_requests(system: System) -> None:
    """Every call that waits is parked, unanswered, and in the line of its channel; nothing is left to be reconciled."""
    _require(not system.cycle, f"reconciling has come to no end: {system.cycle}")
    _require(not (system.woken or system.stale or system.orphans or system.pumped), "marks are left")
    for program in system.programs.values():
        for seq, request in program.parked.items():
            _require(
                request.seq == seq and not request.answered, f"call {seq} of {program.pid} is parked after its answer"
            )
            _require(
                request.channel is not None and request in request.channel,
                f"call {seq} of {program.pid} waits in no line",
            )
    for process in _llms(system):
        waiting = [*process.output, *process.boundary, *process.decoded]
        if process.transition is not None:
            waiting.append(process.transition)
        if process.decoding is not None and process.decoding.request is not None:
            waiting.append(process.decoding.request)
        for request in waiting:
            _require(
                request.program.parked.get(request.seq) is request, f"a call waits on {process.pid} but is not parked"
            )
