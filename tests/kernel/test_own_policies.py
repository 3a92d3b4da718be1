"""Policies of a user's own in the simulated kernel: they decide, are checked, and are named when they do wrong."""

from __future__ import annotations

import inspect
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from llmasos.kernel.edge.guards import PolicyFault, Untimed
from llmasos.kernel.edge.policies import Modules
from llmasos.policies import Evictions, Image, LLMProcess, Policy, Victims
from llmasos.simulator import Prog, Simulation, simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import State
from llmasos.syscalls.table import BootInfoCall, Decode, Getinfo, Sched, Spawn


class Latest(Policy):
    """The youngest process goes first."""

    def key(self, process: LLMProcess) -> int:
        return -process.pid


class Divides(Policy):
    def key(self, process: LLMProcess) -> int:
        return 1 // (process.pid - process.pid)


class Says(Policy):
    answer: Any = "first"

    def key(self, process: LLMProcess) -> Any:
        return self.answer


class Nan(Says):
    answer = float("nan")


class Nothing(Says):
    answer = None


class Huge(Says):
    answer = 10**10_000  # more than can be shown, or be a float


class Loops(Policy):
    def key(self, process: LLMProcess) -> int:
        while True:
            pass


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class Mutters(Policy):
    def key(self, process: LLMProcess) -> int:
        raise Mute


class Halves(Says):
    answer = 0.5


class Exits(Policy):
    def woke(self, process: LLMProcess) -> None:
        raise SystemExit


class Stranger(Victims):
    def choose(self, sleepers: Iterable[LLMProcess], now: int) -> Any:
        return "pid 3"


class Nobody(Victims):
    def choose(self, sleepers: Iterable[LLMProcess], now: int) -> None:
        return None


class Youngest(Victims):
    def choose(self, sleepers: Iterable[LLMProcess], now: int) -> LLMProcess | None:
        return max(sleepers, key=lambda process: process.pid, default=None)


class Priceless(Evictions):
    def worth(self, image: Image, now: int) -> Any:
        return "gold"


def errors(sim: Simulation) -> list[str]:
    return [line.text for line in sim.log if line.level == "error"]


def three(sim: Simulation) -> tuple[Prog, list[int]]:
    program = sim.program()
    return program, [program.call(Spawn("sim", [pid, 1, 2])) for pid in range(3)]


def order(sim: Simulation, program: Prog, pids: list[int], count: int = 20) -> list[int]:
    """In which order processes run that begin together, one at a time."""
    begun = len(sim.steps)
    futures = [program.start(Decode(pid, count)) for pid in pids]
    sim.run_until(lambda: all(future.done for future in futures))
    ran = [run.ctx for step in list(sim.steps)[begun:] for run in step.runs]
    assert all(len(future.value.tokens) == count for future in futures)
    return list(dict.fromkeys(ran[1:]))  # the first call finds an idle device


def test_a_class_decides_who_runs() -> None:
    sim = simulate(max_runs=1, policy=Latest)
    program, pids = three(sim)
    assert order(sim, program, pids) == sorted(pids, reverse=True)
    assert program.call(Sched()).policy == ":Latest"
    assert ":Latest" in program.call(BootInfoCall()).policies


def test_a_file_decides_who_runs_and_is_known_by_its_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from llmasos.policies import Policy\nclass Mine(Policy):\n    def key(self, p): return -p.pid\n")
    sim = simulate(max_runs=1)
    program, pids = three(sim)
    first = program.call(Sched(policy=f"{file}:Mine")).policy
    assert first.startswith("mine.py:Mine@")
    assert order(sim, program, pids) == sorted(pids, reverse=True)
    file.write_text(file.read_text() + "\n# another text\n")
    second = program.call(Sched(policy=f"{file}:Mine")).policy
    assert second.startswith("mine.py:Mine@")
    assert second != first
    file.unlink()
    assert program.call(Sched(policy=first)).policy == first, "the kernel has its text"
    with pytest.raises(SyscallError) as caught:
        program.call(Sched(policy="mine.py:Mine@0123456789abcdef"))
    assert caught.value.errno is Errno.ENOENT


@pytest.mark.parametrize(
    ("policy", "fault"),
    [
        (Divides, r"policy :Divides: `key` raised ZeroDivisionError"),
        (Says, r"policy :Says: `key` returned 'first', and a number of less than 64 bits was wanted"),
        (Huge, r"policy :Huge: `key` returned a int, and a number of less than 64 bits was wanted"),
        (Loops, r"policy :Loops: `key` does not come back"),
        (Mutters, r"policy :Mutters: `key` raised Mute \(test_own_policies.py, line \d+\)$"),
        (Nan, r"policy :Nan: `key` returned nan"),
        (Nothing, r"policy :Nothing: `key` returned None"),
        (Exits, r"policy :Exits: `woke` raised SystemExit"),
    ],
)
def test_a_faulty_policy_ends_the_simulation_by_name(policy: type[Policy], fault: str) -> None:
    sim = simulate(policy=policy)
    program = sim.program()
    with pytest.raises(PolicyFault, match=fault) as caught:
        program.call(Decode(program.call(Spawn("sim", [1, 2, 3])), 4))
    first = inspect.getsourcelines(policy)[1]
    lines = range(first, first + len(inspect.getsource(policy).splitlines()))
    if policy in (Divides, Mutters, Loops, Exits):
        assert int(str(caught.value).rpartition("line ")[2].rstrip(")")) in lines, "where it is in its own file"
    if policy is Divides:
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("policy", [Divides, Says, Huge, Loops, Mutters, Nan, Nothing, Exits])
def test_or_is_taken_out_by_name_and_the_last_good_one_goes_on(policy: type[Policy]) -> None:
    sim = simulate(max_runs=1, forgiving=True)
    bad, good = sim.policies.add(policy), sim.policies.add(Latest)
    program, pids = three(sim)
    program.call(Sched(policy="round_robin"))
    program.call(Sched(policy=good))
    program.call(Sched(policy=bad))
    order(sim, program, pids)
    assert program.call(Sched()).policy == good
    assert len(errors(sim)) == 1
    assert f"scheduling policy {bad} is taken out: " in errors(sim)[0]
    assert sim.continuation([0, 1, 2], 20) == program.call(Decode(program.call(Spawn("sim", [0, 1, 2])), 20)).tokens


@pytest.mark.parametrize("forgiving", [False, True])
def test_ctrl_c_ends_a_simulation_and_is_no_fault_of_a_policy(forgiving: bool) -> None:
    class Asked(Policy):
        def key(self, process: LLMProcess) -> int:
            if process.account.decoded == 5:
                signal.raise_signal(signal.SIGINT)
            return 0

    sim = simulate(policy=Asked, forgiving=forgiving)
    program = sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3]))
    with pytest.raises(KeyboardInterrupt):
        program.call(Decode(pid, 20))
    assert errors(sim) == []


def test_a_fraction_is_a_number() -> None:
    sim = simulate(policy=Halves)
    program, pids = three(sim)
    assert sorted(order(sim, program, pids)) == pids


class Favourite(Policy):
    """Starves everybody but one."""

    def key(self, process: LLMProcess) -> int:
        return process.pid


def test_one_that_starves_is_taken_out_and_names_whom() -> None:
    sim = simulate(max_runs=1, forgiving=True, frames=600, options={"context": "9000"}, policy=Favourite)
    program = sim.program()
    one, two = (program.call(Spawn("sim", [pid, 1, 2])) for pid in range(2))
    endless = program.start(Decode(one, 8000))
    other = program.start(Decode(two, 5))
    sim.run_until(lambda: other.done or endless.done)
    assert other.done
    assert not endless.done
    assert [f"leaves process {two} ready and unplanned" in text for text in errors(sim)] == [True]
    assert program.call(Sched()).policy == "fair"


@pytest.mark.parametrize(
    ("processes", "tokens", "aging"),
    [(20, 500, 2.0), (20, 1000, 2.0), (2, 2500, 2.0), (2, 1900, 2.0), (20, 500, 0.5), (20, 105, 2.0), (5, 480, 2.0)],
)
def test_one_starves_from_the_moment_on_that_the_page_says(processes: int, tokens: int, aging: float) -> None:
    """docs/policies.md: ageing, and a round in which each that waits gets a quantum. The first processes run to their end
    one after the other here, so each waits for those before it."""
    quantum = 8
    sim = simulate(
        1500,
        policy=Favourite,
        max_runs=1,
        quantum=quantum,
        aging_seconds=aging,
        checked=False,
        options={"context": "9000"},
    )
    program = sim.program()
    pids = [program.call(Spawn("sim", [pid, 1, 2])) for pid in range(processes)]
    began = sim.now
    futures = [program.start(Decode(pid, tokens)) for pid in pids]
    step = 0.001  # of this device, very nearly
    faults, taken = "", 0.0
    try:
        sim.run_until(lambda: all(future.done for future in futures))
    except PolicyFault as error:
        faults, taken = str(error), sim.now - began
    # Told without the guard: process n begins to run when those before it have all their tokens.
    due = [aging + step * quantum * (1 + waiting) for waiting in (processes - 1 - moment for moment in range(processes))]
    starves = any(tokens * step * (n + 1) > due[n] + 0.01 for n in range(processes - 1))
    assert bool(faults) == starves, faults
    if starves:
        finished = int(taken // (tokens * step))
        assert due[finished] <= taken <= due[finished] + aging / 10
        assert "ready and unplanned" in faults


def test_a_policy_is_not_blamed_for_what_one_before_it_has_left() -> None:
    class Turns(Policy):
        def ran(self, process: LLMProcess, tokens: int) -> None:
            process.policy_state = self.stamp()

    sim = simulate(1500, max_runs=1, quantum=8, checked=False, policy="fcfs", options={"context": "9000"}, forgiving=True)
    program = sim.program()
    one, two = (program.call(Spawn("sim", [pid, 1, 2])) for pid in range(2))
    sim.run_idle()
    first, second = program.start(Decode(one, 6000)), program.start(Decode(two, 1000))
    sim.run_for(5.0)
    assert program.call(Getinfo(two)).usage.decoded == 0, "who comes first runs to its end"
    name = program.call(Sched(policy=sim.policies.add(Turns))).policy
    sim.run_until(lambda: first.done and second.done)
    assert errors(sim) == []
    assert program.call(Sched()).policy == name


def test_one_that_is_fair_is_not_taken_for_one_that_starves_when_places_are_few() -> None:
    class Turns(Policy):
        """Round robin, token by token."""

        def ran(self, process: LLMProcess, tokens: int) -> None:
            process.policy_state = self.stamp()

    sim = simulate(max_runs=1, frames=2000, options={"context": "9000"}, policy=Turns, aging_seconds=0.05, checked=False)
    program = sim.program()
    pids = [program.call(Spawn("sim", [pid, 1])) for pid in range(40)]
    futures = [program.start(Decode(pid, 100)) for pid in pids]
    sim.run_until(lambda: all(future.done for future in futures))
    assert max(future.at for future in futures) > 1.0
    assert errors(sim) == []


# --- victims and evictions ------------------------------------------------------------------------------------------


def pages_of(program: Prog, pids: list[int]) -> list[int]:
    return [program.call(Getinfo(pid)).pages for pid in pids]


def short(sim: Simulation) -> tuple[Prog, list[int]]:
    """Sleepers that hold all frames but a few, and one more process that needs some."""
    program = sim.program()
    pids = [program.call(Spawn("sim", [pid] * 40)) for pid in range(4)]
    for pid in pids:
        program.call(Decode(pid, 1))
    return program, pids


def test_a_policy_for_victims_chooses_who_loses_pages() -> None:
    sim = simulate(frames=13, victims=Youngest)
    program, pids = short(sim)
    before = pages_of(program, pids)
    program.call(Decode(program.call(Spawn("sim", [9] * 40)), 1))
    after = pages_of(program, pids)
    assert [old != new for old, new in zip(before, after, strict=True)] == [False, False, False, True]


@pytest.mark.parametrize(("victims", "fault"), [(Stranger, "'pid 3'"), (Nobody, "None")])
def test_one_that_chooses_wrongly_is_taken_out(victims: type[Victims], fault: str) -> None:
    sim = simulate(frames=13, victims=victims, forgiving=True)
    program, _ = short(sim)
    last = program.call(Spawn("sim", [9] * 40))
    assert len(program.call(Decode(last, 30)).tokens) == 30
    assert program.call(Getinfo(last)).state is State.BLOCKED
    found = program.call(Sched())
    assert found.victims == "cost"
    assert len(errors(sim)) == 1
    assert f"policy for victims :{victims.__name__} is taken out: `choose` returned {fault}" in errors(sim)[0]


def test_policies_for_victims_and_evictions_are_changed_on_a_live_kernel() -> None:
    sim = simulate(frames=13, forgiving=True)
    program, pids = short(sim)
    found = program.call(Sched(victims=sim.policies.add(Youngest), evictions="cost"))
    assert (found.victims, found.evictions) == (":Youngest", "cost")
    program.call(Decode(program.call(Spawn("sim", [9] * 40)), 1))
    assert pages_of(program, pids)[3] == 0
    with pytest.raises(SyscallError, match="no policy 'none' for victims"):
        program.call(Sched(victims="none"))
    with pytest.raises(SyscallError, match="no policy 'none' for the eviction"):
        program.call(Sched(policy="fcfs", evictions="none"))
    assert program.call(Sched()).policy == "fair", "all or nothing"


def test_one_for_evictions_that_is_worth_nothing_is_taken_out() -> None:
    sim = simulate(forgiving=True, evictions=Priceless, weight_bytes=5_000_000)
    program = sim.program()
    for name in ("sim:1m", "sim:1.1m", "sim:1.2m", "sim:1.3m"):
        pid = program.call(Spawn(name, [1, 2]))
        program.call(Decode(pid, 1))
    assert program.call(Sched()).evictions == "lru"
    assert len(errors(sim)) == 1
    assert "policy for evictions :Priceless is taken out: `worth` returned 'gold'" in errors(sim)[0]


# --- what is refused when it is loaded ------------------------------------------------------------------------------

WRONG = {
    "class Mine(Policy): pass; x = (": "is no Python",
    "1 / 0": "the module raises ZeroDivisionError: division by zero (mine.py, line 2) when it is loaded",
    "class Other(Policy): pass": "Mine is not there; wanted is a subclass of Policy; of that kind there are: Other",
    "class Mine: pass": "Mine is there, but is no subclass of Policy",
    "class Mine(Policy):\n    def key(self): return 1": "`key` takes other arguments",
    "class Mine(Policy):\n    async def key(self, process): return 1": "`key` is no plain method",
    "class Mine(Policy):\n    def ran(self, process): pass": "wanted is ran(self, process: 'LLMProcess', tokens: 'int')",
    "class Mine(Policy):\n    def __init__(self, quantum): raise OSError('no')": "Mine(32) raised OSError: no (mine.py",
    "class Mine(Policy):\n    key = 3": "`key` is no plain method",
    "class Mine(Policy):\n    def Key(self, process): return 1": "nothing calls `Key`; did you mean `key`?",
    "class Mine(Policy):\n    def wokee(self, process): pass": "nothing calls `wokee`; did you mean `woke`?",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_policy_is_refused_when_it_is_loaded(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"from llmasos.policies import Policy\n{text}\n")
    program = simulate().program()
    with pytest.raises(SyscallError) as caught:
        program.call(Sched(policy=f"{file}:Mine"))
    assert caught.value.errno is Errno.EINVAL
    assert caught.value.reason.startswith("policy mine.py:Mine@")
    assert WRONG[text] in caught.value.reason
    assert program.call(Sched()).policy == "fair"


def test_a_policy_may_have_methods_and_helpers_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    methods = [
        "def key(self, process): return self._keys(process)",
        "def _keys(self, process): return 1",
        "def cost(self): pass",
    ]
    file.write_text("\n    ".join(["from llmasos.policies import Policy\nclass Mine(Policy):", *methods]))
    assert simulate(policy=f"{file}:Mine").program().call(Sched()).policy.startswith("mine.py:Mine@")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine.py", "a policy of your own is named FILE.py:CLASS, found 'mine.py'; its classes are: One, Two"),
        ("mine.py:", "found 'mine.py:'; its classes are: One, Two"),
        ("mine.txt:One", "a policy of your own is named FILE.py:CLASS, found 'mine.txt:One'"),
        ("./nowhere.py", "a policy of your own is named FILE.py:CLASS, found './nowhere.py'"),
        ("roundrobin", "no scheduling policy 'roundrobin' (is 'round_robin' meant?); there are: fair, "),
        ("mine", "no scheduling policy 'mine'; there are: fair, "),
    ],
)
def test_a_name_that_is_none_is_refused_with_what_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    (tmp_path / "mine.py").write_text(
        "from llmasos.policies import Policy\nclass One(Policy): pass\nclass Two(Policy): pass\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SyscallError) as caught:
        simulate(policy=name)
    assert caught.value.errno is Errno.EINVAL
    assert said in caught.value.reason


def test_files_that_are_not_the_users_own_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    program = simulate().program()

    def refused(name: str) -> Errno:
        with pytest.raises(SyscallError) as caught:
            program.call(Sched(policy=name))
        return caught.value.errno

    assert refused(f"{file}:Mine") is Errno.ENOENT
    assert refused("mine.py:Mine") is Errno.EINVAL  # whose directory?
    file.write_text("from llmasos.policies import Policy\nclass Mine(Policy): pass\n")
    file.chmod(0o666)
    assert refused(f"{file}:Mine") is Errno.EPERM
    (tmp_path / "folder.py").mkdir()
    assert refused(f"{tmp_path}/folder.py:Mine") in (Errno.EINVAL, Errno.ENOENT)
    file.chmod(0o644)
    assert program.call(Sched(policy=f"{file}:Mine")).policy.startswith("mine.py:Mine@")


def test_a_class_of_another_kind_is_refused_with_what_is_wanted() -> None:
    with pytest.raises(SyscallError, match=r"Youngest is no Policy, which `policy` wants"):
        simulate(policy=Youngest)
    with pytest.raises(SyscallError, match=r"Latest is no Victims, which `victims` wants"):
        simulate(victims=Latest)


def test_only_a_class_of_ones_own_can_be_given() -> None:
    sim = simulate()
    for cls in (Policy, Simulation):
        with pytest.raises(SyscallError, match="subclass one of these"):
            sim.policies.add(cls)


# --- what the next kernel has ---------------------------------------------------------------------------------------


def test_the_next_kernel_has_the_text(tmp_path: Path) -> None:
    file, kept = tmp_path / "mine.py", tmp_path / "policies"
    file.write_text("from llmasos.policies import Policy\nclass Mine(Policy): pass\n")
    name = Modules(kept, Untimed()).scheduling(f"{file}:Mine", 32).name
    file.unlink()
    assert Modules(kept, Untimed()).scheduling(name, 32).name == name
    (text,) = kept.glob("*.py")
    text.write_text("from llmasos.policies import Policy\nclass Mine(Policy): 'changed'\n")
    with pytest.raises(SyscallError) as caught:
        Modules(kept, Untimed()).scheduling(name, 32)
    assert caught.value.errno is Errno.EIO
    again = Modules(kept, Untimed())
    again.forget()
    assert not kept.exists()


def test_the_journal_has_the_name_and_a_kernel_without_the_text_goes_on_without_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from llmasos.policies import Policy\nclass Mine(Policy): pass\n")
    sim = simulate(policy=f"{file}:Mine", victims=Youngest)
    name = sim.kernel.devices["sim0"].queue.policy.name
    sim.kill()
    sim.boot_again()
    device = sim.kernel.devices["sim0"]
    assert (device.queue.policy.name, device.config.victims) == (name, ":Youngest")
    assert sim.saved is not None
    assert sim.saved.devices["sim0"].policy == name
    sim.kill()
    sim.file.devices[0].policy = "fcfs"
    sim.policies = type(sim.policies)()
    sim.policies.add(Youngest)
    sim.boot_again()
    assert sim.kernel.devices["sim0"].queue.policy.name == "fcfs"
    assert any(line.level == "warning" and "goes on as configured" in line.text for line in sim.log)
