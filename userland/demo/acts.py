"""The acts of the tour, in order. Each takes the stage and the company, shows one thing, and checks it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import DeviceInfo, Kind, ModelInfo, State
from llmasos.syscalls.table import BootInfoCall, Decode, Models
from llmasos.userland.demo import shares
from llmasos.userland.demo.crew import DTYPE, ROLES, WAIT_SECONDS, Agent, enlist, until_done, watch
from llmasos.userland.demo.stage import Stage
from llmasos.userland.programs import log, ps
from llmasos.userland.programs.figures import size
from llmasos.userland.sdk.system import Process, System

ATTEMPTS = 200  # at stopping a story in its middle: where other work has the CPU, most come after its end
STILL_SECONDS = 0.7  # time to watch that a stopped process does not move
WINDOW_TOKENS = 640  # decoded together in one measurement of rates
LONG = 1600  # tokens: more than a worker decodes before it is interrupted
NICE = 10


@dataclass
class Company:
    """The participants: the system, the three agents, and all processes to end afterwards."""

    system: System
    agents: list[Agent] = field(default_factory=list)
    extras: list[Process] = field(default_factory=list)

    def twin(self, agent: Agent, *, same_seed: bool = True) -> Agent:
        """A fork of an agent."""
        (process,) = agent.process.fork(same_seed=same_seed)
        self.extras.append(process)
        return Agent(process, agent.role)

    def device(self) -> DeviceInfo:
        """The device of the agents."""
        name = self.agents[0].process.info().device
        return next(device for device in self.system(BootInfoCall()).devices if device.name == name)

    def model(self) -> ModelInfo:
        """The agents' model, as it is in memory."""
        name = self.agents[0].process.info().model
        rows = self.system(Models())
        return next(row for row in rows if row.name == name and row.state == "resident" and row.dtype == DTYPE)

    def frames(self) -> int:
        """The number of KV frames that processes map."""
        model = self.model()
        return model.frames - model.frames_free - model.frames_cached


def boot(stage: Stage, company: Company) -> None:
    stage.act("A kernel, its driver, and a model")
    stage.tell("""The kernel decides; a driver, which is a process of its own, computes. The kernel has no tensors, the
        driver makes no decisions. This is the kernel's log:""")
    info = company.system.load(company.system.kernel.boot.default_model, DTYPE)
    log.show(stage.screen, log.read(company.system.kernel))
    stage.claim(
        info.state == "resident",
        f"{info.name} is in memory: {info.parameters / 1e6:.1f}M parameters, {size(info.weight_bytes)}, "
        f"{info.frames} pages of KV",
    )


def three_at_once(stage: Stage, company: Company) -> None:
    stage.act("Three agents at once")
    stage.tell("Each is an LLM process with a context of its own. Each is told a fact; then all three speak at once.")
    for role in ROLES:
        stage.typed(f"spawn {role.name} {role.told}")
        agent = enlist(company.system, role)
        company.agents.append(agent)
        stage.say(role.name, agent.process.ask(role.told, 40).strip())
    steps, decoded = company.device().steps, company.system.stats().tokens_decoded
    for agent in company.agents:
        agent.process.stop()  # so that the first has not finished its story before the last is asked for one
    for agent in company.agents:
        stage.typed(f"say {agent.role.name} {agent.role.story} &")
        agent.begin(agent.role.story)
    for agent in company.agents:
        agent.process.cont()
    watch(stage, company.agents)
    steps = company.device().steps - steps
    decoded = company.system.stats().tokens_decoded - decoded
    stage.claim(
        steps < 0.8 * decoded,
        f"{decoded} tokens in {steps} steps of the device: the agents shared its steps",
        f"{decoded} tokens took {steps} steps",
    )
    for agent in company.agents:
        agent.recall(stage)


def table(stage: Stage, company: Company) -> None:
    stage.act("The process table")
    stage.tell("Agents are processes. So are programs and drivers that are attached to the kernel; this tour is one.")
    stage.typed("ps")
    rows = ps.processes(company.system.kernel)
    stage.screen.table(ps.LISTING.table(rows))
    pids = {row.pid: row for row in rows}
    stage.claim(
        all(pids[agent.pid].kind is Kind.LLM and pids[agent.pid].state is State.BLOCKED for agent in company.agents),
        "the three agents are there, and wait for input",
    )


def stop_and_continue(stage: Stage, company: Company) -> None:
    stage.act("A stop and a continue")
    bob = company.agents[1]
    stage.tell("""A process can be stopped in the middle of a word, at a token boundary. A twin (a fork) is asked for the
        same story and left alone, for comparison.""")
    stage.typed("stop bob")
    twin = _stop_in_mid_story(company, bob)
    before = bob.process.info().usage.decoded
    twin.begin(bob.role.story)
    until_done([twin])
    time.sleep(STILL_SECONDS)
    info = bob.process.info()
    stage.say("bob", f"{bob.words()} ...")
    stage.claim(
        info.state is State.STOPPED and info.usage.decoded == before,
        f"bob stands still at {before} decoded tokens, while its twin has told the whole story",
        f"{info.state}, {before} tokens before and {info.usage.decoded} after",
    )
    stage.typed("cont bob")
    bob.process.cont()
    watch(stage, [bob])
    after = bob.process.info().usage.decoded
    stage.claim(after > before, f"bob went on, to {after} tokens", f"{after} tokens")
    stage.claim(bob.answer() == twin.answer(), "its story is, token for token, the one its twin told without a stop")
    bob.recall(stage)


def _stop_in_mid_story(company: Company, agent: Agent) -> Agent:
    """Have an agent begin its story, and stop it before the end; returns its twin, which has not begun. Raises ETIME."""
    for _ in range(ATTEMPTS):
        twin = company.twin(agent)
        agent.begin(agent.role.story)
        agent.process.stop()
        _until_state(agent, State.STOPPED)
        if agent.process.info().decoding:
            return twin
        agent.process.cont()  # the whole story took less time than saying stop
    raise SyscallError(Errno.ETIME, f"{agent.role.name} was not stopped in mid-story in {ATTEMPTS} attempts")


def fork(stage: Stage, company: Company) -> None:
    stage.act("A fork that shares pages")
    alice = company.agents[0]
    frames = company.frames()
    stage.tell("A fork copies a process, but not its memory: pages are shared until one of the two writes to them.")
    stage.typed("fork alice 2")
    children = alice.process.fork(2)
    company.extras += children
    for child in children:
        info = child.info()
        stage.claim(
            info.pages > 0 and info.shared_pages == info.pages,
            f"process {child.pid} has {info.pages} pages, {info.shared_pages} of them shared",
        )
    stage.claim(company.frames() == frames, f"{frames} frames of KV before the fork, and as many after it")
    first, second = (Agent(child, alice.role) for child in children)
    stage.tell("Now the first child is told something that the other two do not hear.")
    stage.say("you", "My favourite food is pizza.")
    stage.say("child 1", first.process.ask("My favourite food is pizza.", 40).strip())
    info = first.process.info()
    stage.claim(
        0 < info.shared_pages < info.pages,
        f"child 1 has written: {info.shared_pages} of its {info.pages} pages are still shared",
        f"{info.shared_pages} of {info.pages}",
    )
    for name, agent in (("child 1", first), ("child 2", second)):
        agent.recall(stage, name)
        stage.say("you", "What is my favourite food?")
        said = agent.process.ask("What is my favourite food?", 40).strip()
        stage.say(name, said)
        knows = "pizza" in said.lower()
        if agent is first:
            stage.claim(knows, "child 1 knows what it was told after the fork", f"it said {said!r}")
        else:
            stage.claim(not knows, "child 2 was not told, and does not know", f"it said {said!r}")


def priority(stage: Stage, company: Company) -> None:
    stage.act("A priority, measured")
    system = company.system
    stage.tell("""Two workers decode without end, and the device is told to run one process a step, so that they compete.
        Each bar is a worker's share of the tokens decoded in a stretch of time.""")
    device = company.device()
    first, second = (company.twin(company.agents[2]) for _ in range(2))
    names = {first.pid: f"worker {first.pid}", second.pid: f"worker {second.pid}"}
    stage.typed("policy fair --max-runs 1")
    system.sched("fair", max_runs=1, device=device.name)
    try:
        for worker in (first, second):
            system(Decode(worker.pid, LONG, wait=False))
        equal = shares.measure(system.kernel, list(names), WINDOW_TOKENS)
        shares.draw(stage.screen, equal, names)
        stage.claim(
            0.4 < equal.share(first.pid) < 0.6,
            "at the same nice value they share alike",
            f"{equal.share(first.pid):.0%}",
        )
        stage.typed(f"nice {second.pid} {NICE}")
        second.process.nice(NICE)
        unequal = shares.measure(system.kernel, list(names), WINDOW_TOKENS)
        shares.draw(stage.screen, unequal, names)
        share = unequal.share(first.pid)
        stage.claim(share > 0.75, f"after nice {NICE} the other one gets {share:.0%}", f"{share:.0%}")
    finally:
        system.sched(device.policy, max_runs=device.max_runs, device=device.name)
        for worker in (first, second):
            worker.process.end()


def crash(stage: Stage, company: Company) -> None:
    stage.act("A driver killed with SIGKILL")
    agents = company.agents
    stage.tell("""The driver holds the weights and every page. It is killed while all three speak. The kernel starts it
        again, and the agents go on from their token logs. Twins tell the same stories afterwards, undisturbed.""")
    twins = [company.twin(agent) for agent in agents]
    before = company.device()
    for agent in agents:
        agent.process.stop()
    for agent in agents:
        agent.begin(agent.role.story)
    for agent in agents:
        agent.process.cont()
    deadline, decoded = time.monotonic() + WAIT_SECONDS, dict.fromkeys((agent.pid for agent in agents), 0)
    while not all(decoded.values()) and time.monotonic() < deadline:
        time.sleep(0.005)
        decoded = {agent.pid: agent.process.info().length - agent.heard for agent in agents}
    os.kill(before.os_pid, signal.SIGKILL)
    stage.screen.line(f"$ kill -9 {before.os_pid}", "bold red")
    said = ", ".join(f"{agent.role.name} {decoded[agent.pid]}" for agent in agents)
    stage.screen.line(f"  tokens of the story told by then: {said}")
    deadline = time.monotonic() + WAIT_SECONDS
    while company.device().restarts == before.restarts and time.monotonic() < deadline:
        time.sleep(0.01)
    watch(stage, agents)
    after = company.device()
    stage.claim(
        after.restarts == before.restarts + 1 and after.os_pid != before.os_pid,
        f"the driver was process {before.os_pid} and is now {after.os_pid}, restarted {after.restarts} time(s)",
        f"{after.restarts} restarts, process {after.os_pid}",
    )
    for twin in twins:
        twin.begin(twin.role.story)
    until_done(twins)
    stage.claim(
        all(agent.answer() == twin.answer() for agent, twin in zip(agents, twins, strict=True)),
        "each story is, token for token, what its twin tells without a crash",
    )
    for agent in agents:
        agent.recall(stage)


def prefix(stage: Stage, company: Company) -> None:
    stage.act("A prefix computed once")
    alice = company.agents[0]
    log_ids = alice.process.tokens()
    stage.tell(f"""A new process is spawned, not forked, with the {len(log_ids)} tokens of alice's log. Pages are known
        by what is in them, so what has been computed once is found again.""")
    newcomer = company.system.spawn(prompt=log_ids, name="dora", dtype=DTYPE)
    company.extras.append(newcomer)
    dora = Agent(newcomer, alice.role)
    said = newcomer.ask(alice.role.asked, 40).strip()
    stage.say("dora", said)
    used = newcomer.info().usage
    stage.claim(
        used.reused >= 16,
        f"of its tokens {used.reused} were found, {used.computed} had to be computed",
        f"{used.reused} found, {used.computed} computed",
    )
    stage.claim(dora.role.proof.lower() in said.lower(), "and dora knows what alice was told", f"it said {said!r}")


def farewell(stage: Stage, company: Company) -> None:
    stage.act("Good order")
    mine = {agent.pid for agent in company.agents} | {process.pid for process in company.extras}
    for agent in company.agents:
        agent.process.end()
    for process in company.extras:
        process.end()
    left = [row.pid for row in ps.processes(company.system.kernel) if row.pid in mine]
    stage.claim(not left, f"all {len(mine)} processes of the tour have ended and been waited for", f"left: {left}")


def _until_state(agent: Agent, state: State) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while (info := agent.process.info()).state is not state:
        if time.monotonic() > deadline:
            raise SyscallError(Errno.ETIME, f"{agent.role.name} is {info.state}, not {state}")
        time.sleep(0.005)


ACTS = (boot, three_at_once, table, stop_and_continue, fork, priority, crash, prefix, farewell)
