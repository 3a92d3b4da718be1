"""The door of a kernel: who says nothing goes, who cannot be taken is told so, and nobody holds up the others."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trio
import zmq

from llmasos.kernel.edge import capacity, connections, door, listening, peers, turns
from llmasos.syscalls import budgets, wire, zeromq, zmtp
from llmasos.syscalls.errno import Errno, SyscallError
from tests import leftovers
from tests.booted import PATIENCE
from tests.doorway import Doorway, apart, doorway, reached, until
from tests.zmtp_client import GREETING, Raw, frame, ready


def test_messages_of_zeromqs_own_sockets_come_and_go(tmp_path: Path) -> None:
    async def main() -> None:
        async with doorway(tmp_path) as way:
            dealer = zeromq.raw_dealer(b"", None, 1 << 30)
            try:
                dealer.connect(f"ipc://{way.path}")
                bodies = [bytes([size % 251]) * size for size in (0, 1, 255, 256, 5000, 70_000, 3 << 20)]
                for body in bodies:
                    dealer.send(body)
                assert [await apart(dealer.recv) for _ in bodies] == bodies
                assert (way.payers.everybody.received, len(way.door)) == (0, 1)
            finally:
                dealer.close()
            await until(lambda: way.gone)
            assert (way.gone, len(way.door), way.payers.everybody.connections) == ([1], 0, 0)

    trio.run(main)


def test_a_connection_that_says_nothing_does_not_keep_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "SILENT_SECONDS", 0.1)

    async def main() -> None:
        async with doorway(tmp_path) as way:
            silent = await apart(lambda: Raw(way.path, greet=False))
            assert await apart(silent.ends)
            silent.close()
            stalled = await apart(lambda: Raw(way.path))
            stalled.send(frame(b"first"))
            assert await apart(stalled.message) == b"first"
            stalled.send(frame(bytes(100_000))[:50_000])  # and no more
            assert await apart(stalled.ends)
            stalled.close()
            await until(lambda: not len(way.door))
            assert way.payers.everybody.received == 0

    trio.run(main)


def test_who_has_spoken_while_the_kernel_stood_still_is_not_taken_for_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "SILENT_SECONDS", 0.1)

    async def main() -> None:
        way = Doorway(tmp_path)
        way.door.listen(way.path)
        one = await apart(lambda: Raw(way.path, greet=False))
        way.door.round()  # it is let in
        assert len(way.door) == 1
        one.send(GREETING + ready() + frame(b"here"))
        await trio.sleep(0.2)
        way.door._sweep()
        assert (len(way.door), way.came) == (1, [b"here"])
        way.door.close()
        one.close()

    trio.run(main)


def test_a_message_of_endless_parts_costs_no_memory_and_its_sender_the_connection(tmp_path: Path) -> None:
    async def main() -> None:
        async with doorway(tmp_path) as way:
            with await apart(lambda: Raw(way.path)) as one:
                most = []

                def send() -> None:
                    try:
                        for _ in range(1000):
                            one.send(frame(bytes(1 << 20), more=True))
                            most.append(way.payers.everybody.received)
                    except OSError:
                        pass

                await apart(send)
                await until(lambda: not len(way.door))
                assert len(most) < 40, "it is cut off"
                assert max(most) <= zmtp.CHUNK
                assert "a message is one frame" in way.notes[0]

    trio.run(main)


def test_requests_that_do_not_come_whole_are_bounded_by_process_and_in_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = replace(budgets.RECEIVED, each=1 << 20, process=3 << 20, owner=0, all=1 << 30)

    async def main() -> None:
        async with doorway(tmp_path, received=received) as way:
            with ExitStack() as stack:
                some = [stack.enter_context(await apart(lambda: Raw(way.path))) for _ in range(4)]
                whole = frame(bytes(1 << 20))
                for one in some[:3]:
                    one.send(whole[:100])
                await until(lambda: way.payers.everybody.received == 3 << 20)
                await apart(lambda: some[3].send(whole))
                told = (await apart(some[3].message)).decode()
                assert told.startswith(f"received bytes of OS process {os.getpid()}: 3,145,728 of at most 3,145,728")
                some[3].send(frame(b"short"))
                assert await apart(some[3].message) == b"short", "what needs no room is taken"
                await apart(lambda: some[0].send(whole[100:]))
                assert len(await apart(some[0].message)) == 1 << 20
                await apart(lambda: some[3].send(whole))
                assert len(await apart(some[3].message)) == 1 << 20, "there is room again"
            budget = next(one for one in way.door.budgets() if one.name == received.name)
            assert budget.refused == 1

    trio.run(main)


def test_who_does_not_read_waits_and_loses_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with doorway(tmp_path) as way:
            with await apart(lambda: Raw(way.path)) as one:
                bodies = [bytes([number]) * 100_000 for number in range(60)]
                sent = trio.Event()

                async def send() -> None:
                    await apart(lambda: [one.send(frame(body)) for body in bodies])
                    sent.set()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send)
                    await until(lambda: way.door.waiting > connections.HOLD_ANSWERS)
                    await trio.sleep(0.05)
                    assert way.door.waiting < connections.HOLD_ANSWERS + 200_000
                    assert not sent.is_set(), "its own requests wait with it"
                    for body in bodies:
                        assert await apart(one.message) == body
                assert way.notes == []

    trio.run(main)


def test_who_has_very_many_calls_without_an_answer_waits_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_OWED", 10)

    async def main() -> None:
        async with doorway(tmp_path) as way:
            with await apart(lambda: Raw(way.path)) as one:
                one.send(frame(b"first"))
                assert await apart(one.message) == b"first"
                (peer,) = way.connections
                peer.owed = 11  # answers that wait for the disk
                one.send(frame(b"second") + frame(b"third"))
                await until(lambda: peer in way.connections.held)
                assert len(way.came) == 1
                peer.owed = 10
                way.door.send(peer, b"an answer")
                assert [await apart(one.message) for _ in range(3)] == [b"an answer", b"second", b"third"]

    trio.run(main)


def test_of_those_who_do_not_read_the_one_with_most_is_cut_off(tmp_path: Path) -> None:
    sends = replace(budgets.ANSWERS, each=0, process=0, owner=0, all=3 << 20)

    async def main() -> None:
        async with doorway(tmp_path, sends=sends) as way:
            with await apart(lambda: Raw(way.path)) as deaf, await apart(lambda: Raw(way.path)) as other:
                for one in (deaf, other):
                    one.send(frame(b"here"))
                    assert await apart(one.message) == b"here"
                first, second = list(way.connections)
                answer = bytes(700_000)
                assert all(way.door.send(first, answer) for _ in range(4))
                assert all(way.door.send(second, answer) for _ in range(2)), "the deaf one has gone for it"
                assert await apart(other.message) == answer
                assert len(way.door) == 1
                assert f"OS process {os.getpid()} is cut off: waiting answers of all programs" in way.notes[0]

    trio.run(main)


def test_lines_of_the_log_that_one_process_causes_are_few_and_the_rest_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "NOTES_SECONDS", 1e9)

    async def main() -> None:
        async with doorway(tmp_path) as way:
            with await apart(lambda: Raw(way.path)):
                for number in range(budgets.NOTES.process + 5):
                    with await apart(lambda: Raw(way.path)) as one:
                        one.send(b"\x08\x00")
                        assert await apart(one.ends)
                    await until(partial(reached, way, number + 1))
                assert len(way.notes) == budgets.NOTES.process
                monkeypatch.setattr(peers, "NOTES_SECONDS", 0.0)
                with await apart(lambda: Raw(way.path)) as one:
                    one.send(b"\x08\x00")
                    assert await apart(one.ends)
                await until(lambda: len(way.notes) > budgets.NOTES.process)
                assert "; 5 such lines before this one were left out" in way.notes[-1]

    trio.run(main)


def test_who_uses_the_kernels_time_up_pauses_while_others_call(tmp_path: Path) -> None:
    """The others are of another OS process: two doors' accounts stand for them."""

    async def main() -> None:
        async with doorway(tmp_path) as way:
            with await apart(lambda: Raw(way.path)) as one:
                one.send(frame(b"here"))
                assert await apart(one.message) == b"here"
                account = next(iter(way.payers.processes.values()))
                account.debt = 300.0  # as after minutes of calls
                one.send(frame(b"alone"))
                assert await apart(one.message) == b"alone"
                assert not way.connections.turns.paused, "nobody else calls"
                assert account.debt < 2 * turns.BURST, "and then nobody else pays for it"
                account.debt = 0.3
                other = peers.Account("another")
                way.connections.turns.before = other
                other.seen = account.settled + 1e9  # calls all the time
                one.send(frame(b"waits") * 50)
                await until(lambda: way.connections.turns.paused)
                with await apart(lambda: Raw(way.path, greet=False)) as newcomer:
                    assert await apart(lambda: newcomer.take(64)), "the door is open meanwhile"
                for _ in range(50):
                    assert await apart(one.message) == b"waits"
                assert not way.connections.turns.paused

    trio.run(main)


def test_a_full_house_says_why_and_takes_people_again(tmp_path: Path) -> None:
    place = f"ipc://{tmp_path}/sock"

    def refused() -> wire.Reply | None:
        """What the next newcomer is told; None if it is taken."""
        dealer = zeromq.raw_dealer(b"", None, 1 << 20)
        try:
            dealer.connect(place)
            dealer.send(b"")
            return wire.decode_reply(dealer.recv()) if dealer.poll(int(PATIENCE * 1000)) and way_full() else None
        finally:
            dealer.close()

    full = [True]

    def way_full() -> bool:
        return full[0]

    async def main() -> None:
        async with doorway(tmp_path) as way:
            places, way.door.capacity.most = way.door.capacity.most, 0
            for _ in range(3):
                told = await apart(refused)
                assert told is not None
                assert (told.seq, told.errno) == (0, Errno.EAGAIN)
                assert "programs are connected" in wire.reason(told)
            assert (len(way.door), way.door.refused) == (0, 3)
            way.door.capacity.most, full[0] = places, False
            assert await apart(refused) is None
            assert way.door.refused == 3

    trio.run(main)


def test_where_no_descriptor_is_left_newcomers_are_cut_off_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with doorway(tmp_path) as way:
            with await apart(lambda: Raw(way.path)) as one:
                soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (max(leftovers.opened()) + 2, hard))
                filler: list[int] = []
                try:
                    while not way.door.refused:  # what earlier tests have left may close meanwhile, and make room
                        await crowd_in(way, filler)
                    one.send(frame(b"on"))
                    assert await apart(one.message) == b"on"
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                    for fd in filler:
                        os.close(fd)

    trio.run(main)


async def crowd_in(way: Doorway, filler: list[int]) -> None:
    """A program connects where no descriptor is left, and goes if there was one after all."""
    there = way.payers.everybody.connections
    with socket.socket(socket.AF_UNIX) as newcomer:
        with suppress(OSError):
            while True:
                filler.append(os.dup(0))
        newcomer.connect(os.fspath(way.path))
        await until(lambda: way.door.refused or way.payers.everybody.connections > there)
    await until(lambda: way.payers.everybody.connections == there)


@pytest.mark.parametrize("what", ["register", "modify"])
def test_a_connection_that_the_system_watches_no_more_is_cut_off_and_the_others_go_on(tmp_path: Path, what: str) -> None:
    """fs.epoll.max_user_watches is one number for all programs of a user."""

    async def main() -> None:
        async with doorway(tmp_path) as way:
            with await apart(lambda: Raw(way.path)) as one, socket.socket(socket.AF_UNIX) as other:
                selector, no_room = way.connections._selector, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                failing: Any = mock.Mock(side_effect=no_room)
                if what == "register":
                    with mock.patch.object(selector, "register", failing):
                        other.connect(os.fspath(way.path))
                        await until(lambda: way.gone)
                else:
                    other.connect(os.fspath(way.path))
                    await until(lambda: len(way.door) == 2)
                    peer = max(way.connections, key=lambda one: one.number)
                    with mock.patch.object(selector, "_selector", mock.Mock(wraps=selector._selector, modify=failing)):  # type: ignore[attr-defined]
                        way.connections.hold(peer)
                assert (way.gone, len(way.door)) == ([2], 1)
                assert os.strerror(errno.ENOSPC) in way.notes[0]
                one.send(frame(b"on"))
                assert await apart(one.message) == b"on"

    trio.run(main)


def test_only_those_whom_it_admits_are_heard_at_a_drivers_door(tmp_path: Path) -> None:
    admitted: set[int] = set()

    async def main() -> None:
        async with doorway(tmp_path, admits=admitted.__contains__) as way:
            stranger = await apart(lambda: Raw(way.path, greet=False))
            with pytest.raises(EOFError):
                await apart(lambda: stranger.take(1))
            stranger.close()
            assert (len(way.door), way.door.refused) == (0, 1)
            admitted.add(os.getpid())
            with await apart(lambda: Raw(way.path)) as child:
                child.send(frame(b"hello"))
                assert await apart(child.message) == b"hello"

    trio.run(main)


def test_a_door_listens_again_under_a_name_that_was_removed(tmp_path: Path) -> None:
    async def main() -> None:
        async with doorway(tmp_path) as way:
            with await apart(lambda: Raw(way.path)) as one:
                way.path.unlink()
                way.door.listen(way.path)
                with await apart(lambda: Raw(way.path)) as other:
                    for program in (one, other):
                        program.send(frame(b"both"))
                        assert await apart(program.message) == b"both"
                assert not listening.hidden(way.path).exists()

    trio.run(main)


@pytest.mark.parametrize(
    ("limits", "found"), [((100, 200), None), ((256, 1 << 20), listening.ENOUGH), ((1024, 1024), 1024)]
)
def test_the_limit_of_descriptors_is_raised_as_far_as_it_may_be(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], found: int | None
) -> None:
    now = list(limits)
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(now))
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: now.__setitem__(slice(None), wanted))
    if found is not None:
        assert listening.raise_descriptor_limit() == found
        return
    with pytest.raises(SyscallError, match="needs 256 descriptors at least, and may have 200"):
        listening.raise_descriptor_limit()


def test_the_last_places_are_for_processes_that_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    who = [7]
    monkeypatch.setattr(zeromq, "credentials", lambda fd: zeromq.Credentials(who[0], os.getuid()))
    monkeypatch.setattr(zeromq, "pidfd", lambda fd, found: -1)
    monkeypatch.setattr(capacity, "in_sandbox", lambda peer: False)  # there are no such processes

    async def main() -> None:
        async with doorway(tmp_path, 256) as way:
            one = way.door
            with ExitStack() as stack:

                async def connect(pid: int) -> bool:
                    """Whether it is refused."""
                    who[0], before, refused = pid, len(one), one.refused
                    found = stack.enter_context(socket.socket(socket.AF_UNIX))
                    found.connect(os.fspath(way.path))
                    await until(lambda: len(one) > before or one.refused > refused)
                    return one.refused > refused

                while not await connect(7):
                    pass
                assert len(one) == one.capacity.most - capacity.NEWCOMERS - 1  # its process takes a descriptor too
                assert [await connect(pid) for pid in (8, 8, 8)] == [False, False, True]

    trio.run(main)


def test_a_user_of_a_kernel_of_several_has_a_part_of_the_places_and_the_last_ones_are_for_operators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many processes he has, and whatever other users do together."""
    who = [0, 0]  # OS process and user
    monkeypatch.setattr(capacity, "in_sandbox", lambda peer: False)  # there are no such processes
    monkeypatch.setattr(zeromq, "credentials", lambda fd: zeromq.Credentials(*who))
    monkeypatch.setattr(zeromq, "pidfd", lambda fd, credentials: -1)

    async def main() -> None:
        async with doorway(tmp_path, 256, operators=frozenset({0})) as way:
            one = way.door
            with ExitStack() as stack:

                async def connect(uid: int) -> bool:
                    """Whether it is refused, of a new process of that user."""
                    who[0], who[1], before, refused = who[0] + 1, uid, len(one), one.refused
                    found = stack.enter_context(socket.socket(socket.AF_UNIX))
                    found.connect(os.fspath(way.path))
                    await until(lambda: len(one) > before or one.refused > refused)
                    return one.refused > refused

                part = one.capacity.most // capacity.USERS
                assert [await connect(1001) for _ in range(part + 2)] == [False] * part + [True] * 2
                assert not await connect(1002)
                for uid in range(1003, 1020):
                    while not await connect(uid) and len(one) < one.capacity.most:
                        pass
                taken = len(one)
                assert await connect(1030)
                found = [await connect(0) for _ in range(capacity.OPERATORS // 2)]
                assert found == [False] * len(found)
                assert len(one) == taken + len(found)

    trio.run(main)


def test_a_socket_of_another_kind_is_answered_like_any(tmp_path: Path) -> None:
    """A REQ puts an empty part before its message."""

    async def main() -> None:
        async with doorway(tmp_path) as way:
            req: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
            try:
                req.connect(f"ipc://{way.path}")
                req.send(b"hello")
                await until(lambda: way.came)
                assert way.came == [zmtp.Refused(Errno.EINVAL, "a message is one frame, 2 came", b"")]
            finally:
                req.close(0)

    trio.run(main)


def test_a_message_handled_in_parts_lets_others_be_heard_between_them_and_keeps_its_connections_order(
    tmp_path: Path,
) -> None:
    happened: list[str] = []

    class Slow(Doorway):
        def back(self, peer: peers.Peer, message: zmtp.Frame | zmtp.Refused) -> Iterator[None] | None:
            assert not isinstance(message, zmtp.Refused)
            if len(message) < 100:
                happened.append(bytes(message).decode())
                return None
            return self.parts(peer, len(message))

        def parts(self, peer: peers.Peer, size: int) -> Iterator[None]:
            for part in range(3):
                happened.append(f"part {part}")
                peer.count()
                assert self.payers.everybody.received >= size, "its bytes are charged as long as they are needed"
                yield
            happened.append("whole")

    way = Slow(tmp_path)
    way.door.listen(way.path)
    with Raw(way.path, greet=False) as one, Raw(way.path, greet=False) as other:
        other.send(GREETING + ready())
        one.send(GREETING + ready() + frame(bytes(50_000)) + frame(b"after it"))
        while "part 0" not in happened:
            way.door.round()
        other.send(frame(b"another's"))
        while "after it" not in happened:
            way.door.round()
    assert happened.index("another's") < happened.index("whole") < happened.index("after it")
    way.door.close()
    assert way.payers.everybody.received == 0


def test_an_error_of_the_operating_systems_in_what_a_message_does_is_not_taken_for_its_connections_end(
    tmp_path: Path,
) -> None:
    class Broken(Doorway):
        def back(self, peer: peers.Peer, message: zmtp.Frame | zmtp.Refused) -> Iterator[None] | None:
            raise OSError("the disk")

    way = Broken(tmp_path)
    way.door.listen(way.path)
    with Raw(way.path, greet=False) as one:
        one.send(GREETING + ready() + frame(b"here"))
        with pytest.raises(OSError, match="the disk"):
            rounds_without_end(way)
    way.door.close()


def rounds_without_end(way: Doorway) -> None:
    while True:
        way.door.round()
