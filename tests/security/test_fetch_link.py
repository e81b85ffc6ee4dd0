"""Object server and fetcher do not trust each other: each is here held to its promises by one that keeps none."""

from __future__ import annotations

import mmap
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

import cext
from cext.errors import CorruptError
from cext.fetch import SPAN, Fetcher
from tests.support import origin as faults
from tests.support.far import Remote, linked, slots
from tests.support.objects import ObjectSet, make_objects
from tests.support.origin import serving as origin_serving
from tests.support.serving import serving
from tests.support.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.usefixtures("real_machine")

WANT, ANSWER = struct.Struct("<IIQ32sQQIIIIII"), struct.Struct("<IIQII160s")
HELLO, ASK, RAISE, CANCEL, TRY, DONE = range(1, 7)
SLOTS = cext.SLOTS_SIZE // SPAN
CONTENT = random.Random(8).randbytes(2 * SPAN + 5)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> ObjectSet:
    return make_objects(tmp_path_factory.mktemp("link") / "objects", {"file": CONTENT})


def answer(kind: int, code: int, ticket: int, source: int = 1, cause: bytes = b"") -> bytes:
    return ANSWER.pack(kind, code, ticket, source, 1, cause)


class Liar:
    """A fetcher that answers every want at once, with bytes of its own choice."""

    def __init__(self, sock: socket.socket, memory: mmap.mmap, kind: str) -> None:
        self.wants = 0
        self._sock = sock
        self._memory = memory
        self._kind = kind
        self._dice = random.Random(kind)

    def run(self) -> None:
        with suppress(BrokenPipeError):  # the test is over
            self._sock.send(answer(HELLO, 1, 0))
            while packet := self._sock.recv(1 << 16):
                kind, slot, ticket, *_ = WANT.unpack(packet)
                if kind == ASK:
                    self.wants += 1
                    self._lie(slot, ticket)

    def _lie(self, slot: int, ticket: int) -> None:
        if self._kind == "garbage":
            self._memory[slot * SPAN : (slot + 1) * SPAN] = self._dice.randbytes(SPAN)
        if self._kind == "scribbler":  # into every slot, all the time
            for _ in range(4):
                at = self._dice.randrange(len(self._memory) - 4096)
                self._memory[at : at + 4096] = self._dice.randbytes(4096)
        if self._kind == "packets":
            for _ in range(20):
                self._sock.send(self._dice.randbytes(self._dice.choice([1, 24, ANSWER.size, ANSWER.size, 4000])))
                fields = (self._dice.randrange(9), self._dice.randrange(9), self._dice.choice([0, ticket, 1 << 63]))
                self._sock.send(answer(*fields, source=self._dice.getrandbits(32), cause=self._dice.randbytes(160)))
        time.sleep(0.005)
        self._sock.send(answer(DONE, 0, ticket))


@contextmanager
def lying(kind: str, server: cext.ObjectServer, memory: int) -> Iterator[Liar]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, mmap.mmap(memory, cext.SLOTS_SIZE) as mapping:
        assert server.link(theirs.fileno())
        theirs.close()
        liar = Liar(ours, mapping, kind)
        thread = threading.Thread(target=liar.run)
        thread.start()
        try:
            yield liar
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("kind", ["zeros", "garbage", "scribbler", "packets"])
def test_a_fetcher_that_lies_makes_reads_wait_and_never_read_wrong(objects: ObjectSet, kind: str) -> None:
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(2))
        origin = stack.enter_context(origin_serving())
        origin.add_directory(objects.packs)
        memory = stack.enter_context(slots())
        served = stack.enter_context(serving(memory=memory))
        with lying(kind, served.server, memory) as liar:
            Remote(served, stack.enter_context(Fetcher()), memory).add(objects)
            waits = pool.submit(served.read, objects, "file")
            enough = 1 if kind == "packets" else 4  # of another version, it may say, and is asked no more
            eventually(lambda: liar.wants >= enough)
            assert not waits.done()
        with linked(served.server, memory, origin):
            assert waits.result(PATIENCE_S) == CONTENT
        assert served.count("errors") == 0
        if kind in ("zeros", "garbage"):
            assert served.count("rejected") >= 1


def test_a_new_fetcher_is_told_to_leave_what_the_one_before_it_was_asked_for(objects: ObjectSet) -> None:
    """It finds those wants on the socket: were they to last, as with an origin that is away, so would their slots."""
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        origin = stack.enter_context(origin_serving())
        origin.add_directory(objects.packs)
        memory = stack.enter_context(slots())
        served = stack.enter_context(serving(memory=memory))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            ours.settimeout(PATIENCE_S)
            assert served.server.link(theirs.fileno())
            theirs.close()
            Remote(served, stack.enter_context(Fetcher()), memory).add(objects)
            ours.send(answer(HELLO, 1, 0))
            waits = pool.submit(served.read, objects, "file")
            kind, slot, old, *_ = WANT.unpack(ours.recv(1 << 16))
            assert kind == ASK
            ours.send(answer(HELLO, 1, 0))
            told: list[tuple[int, int, int]] = []
            while (ASK, slot) not in [(kind, at) for kind, at, _ in told]:
                kind, at, ticket, *_ = WANT.unpack(ours.recv(1 << 16))
                told.append((kind, at, ticket))
            assert (CANCEL, slot, old) in told
        with linked(served.server, memory, origin):
            assert waits.result(PATIENCE_S) == CONTENT


def test_memory_that_could_shrink_under_the_server_is_refused(tmp_path: Path) -> None:
    plain = os.memfd_create("plain", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(plain, cext.SLOTS_SIZE)
        with pytest.raises(CorruptError, match="sealed"), serving(memory=plain):
            pass
        with Fetcher() as fetcher, pytest.raises(CorruptError, match="sealed"):
            fetcher.serve(plain, plain)
    finally:
        os.close(plain)


def test_a_server_that_asks_nonsense_is_refused_and_the_fetcher_goes_on() -> None:
    dice = random.Random(2)
    with origin_serving(CONTENT) as origin, slots() as memory, Fetcher() as fetcher, ThreadPoolExecutor(1) as pool:
        digest = bytes.fromhex(next(iter(origin.blobs)))
        fetcher.set_source(1, origin.url)
        fetcher.set_origin(1, [1])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs, mmap.mmap(memory, cext.SLOTS_SIZE) as mapping:
            serves = pool.submit(fetcher.serve, theirs.fileno(), memory)
            ours.settimeout(PATIENCE_S)
            assert ANSWER.unpack(ours.recv(1 << 16))[:2] == (HELLO, 1)

            def ask(slot: int, ticket: int, size: int, offset: int, length: int) -> None:
                ours.send(WANT.pack(ASK, slot, ticket, digest, size, offset, length, 1, 0, 0, 0, 0))

            def told(ticket: int) -> int:
                while True:
                    kind, code, of, *_ = ANSWER.unpack(ours.recv(1 << 16))
                    if (kind, of) == (DONE, ticket):
                        return int(code)

            size = len(CONTENT)
            wrong = [
                (SLOTS, size, 0, 10),  # no such slot
                (1 << 31, size, 0, 10),
                (0, size, 0, 0),  # nothing
                (0, size, 0, SPAN + 1),  # more than a slot
                (0, size, size, 1),  # past the end
                (0, size, (1 << 64) - 1, 10),
                (0, 5, 0, 10),
            ]
            for ticket, (slot, total, offset, length) in enumerate(wrong, 1):
                ask(slot, ticket, total, offset, length)
                assert told(ticket) != 0, (slot, total, offset, length)
            for _ in range(200):
                ours.send(dice.randbytes(dice.choice([1, 40, WANT.size - 1, WANT.size + 1])))
                ours.send(WANT.pack(dice.choice([RAISE, CANCEL, 9]), 0, dice.getrandbits(64), digest, *[0] * 8))
            ask(3, 100, size, SPAN, SPAN)
            ask(3, 101, size, 0, SPAN)  # the slot is in use
            assert told(101) != 0
            assert told(100) == 0
            assert mapping[3 * SPAN : 4 * SPAN] == CONTENT[SPAN : 2 * SPAN]
            ours.shutdown(socket.SHUT_RDWR)
            serves.result(PATIENCE_S)


def test_a_server_that_does_not_read_holds_up_nobody_else() -> None:
    gate = threading.Event()
    with origin_serving(CONTENT) as origin, slots() as memory, Fetcher() as fetcher, ThreadPoolExecutor(1) as pool:
        digest = bytes.fromhex(next(iter(origin.blobs)))
        origin.fail("held", faults.held(gate), times=1)
        fetcher.set_source(1, origin.url)
        fetcher.set_origin(1, [1])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            serves = pool.submit(fetcher.serve, theirs.fileno(), memory)
            refused = WANT.pack(ASK, SLOTS, 7, digest, len(CONTENT), 0, 10, 1, 0, 0, 0, 0)
            ours.send(WANT.pack(ASK, 0, 1, digest, len(CONTENT), 0, SPAN, 1, 0, 0, 0, 0))
            sent, waited = 0, 0
            while waited < 20:  # until the fetcher takes no more, because it has answers that it cannot send
                try:
                    sent += ours.send(refused, socket.MSG_DONTWAIT) == len(refused)
                    waited = 0
                except BlockingIOError:
                    waited += 1
                    time.sleep(0.01)
            gate.set()  # now the range is there, and its answer has no room either
            data, *_ = fetcher.read(1, digest, len(CONTENT), SPAN, SPAN, timeout=PATIENCE_S)
            assert data == CONTENT[SPAN : 2 * SPAN]
            assert fetcher.ping(PATIENCE_S)
            ours.settimeout(PATIENCE_S)
            told = [ANSWER.unpack(ours.recv(1 << 16)) for _ in range(sent + 2)]  # with the hello
            assert [one[:3] for one in told if one[2] == 1] == [(DONE, 0, 1)]
            assert sum(one[0] == DONE and one[2] == 7 for one in told) == sent
            ours.shutdown(socket.SHUT_RDWR)
            serves.result(PATIENCE_S)
