# SPDX-License-Identifier: Apache-2.0
"""Threads on one stream: both directions at once, slow readers, closing under those who wait, a peer gone dumb."""

from __future__ import annotations

import ctypes
import os
import queue
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xxhash

from remusdb.core.wire import FrameType
from remusdb.errors import PeerUnreachable, RemusError
from remusdb.transport.listener import Listener
from remusdb.transport.stream import FrameStream
from remusdb.transport.tls import client_context, connect, server_context

MIB = 1024 * 1024
Pair = tuple[FrameStream, FrameStream]  # primary, agent


def files(certs: Path, name: str) -> tuple[Path, Path, Path]:
    return certs / name / "ca.pem", certs / name / "cert.pem", certs / name / "key.pem"


@pytest.fixture
def pair(certs: Path) -> Iterator[Pair]:
    over = threading.Event()
    accepted: queue.Queue[FrameStream] = queue.Queue()

    def session(stream: FrameStream) -> None:
        accepted.put(stream)
        over.wait()

    listener = Listener("127.0.0.1", 0, server_context(*files(certs, "beta")))
    listener.start(session)
    client = connect("127.0.0.1", listener.port, client_context(*files(certs, "alpha")), "beta", 5)
    yield client, accepted.get(timeout=5)
    client.close()
    over.set()
    listener.close()


def content(sender: int, number: int) -> bytes:
    """What frame `number` of `sender` holds; both sides can tell. Sizes from nothing to a few MiB."""
    chance = random.Random(sender * 100_003 + number)
    size = chance.choice([0, 30, 4_000, 16_384, 16_385, 70_000, 300_000, 2 * MIB])
    return chance.randbytes(min(size, 4096)) * (size // 4096 + 1)


def blocked(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """`work` in a thread, and what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except RemusError as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, raised


def send_forever(stream: FrameStream) -> Callable[[], None]:
    def work() -> None:
        while True:
            stream.send(FrameType.PAGES, 1, 1, bytes(4 * MIB))

    return work


def test_both_directions_at_once_from_many_threads(pair: Pair) -> None:
    """Three senders a side and a receiver a side; every frame arrives whole, and each sender's in order."""
    count = 60
    errors: list[str] = []

    def send(stream: FrameStream, sender: int) -> None:
        for number in range(0, count, 2):
            frames = [(FrameType.PAGES, sender, n, content(sender, n)) for n in (number, number + 1)]
            stream.send_many(frames)

    def receive(stream: FrameStream, senders: list[int]) -> None:
        expected = dict.fromkeys(senders, 0)
        last = 0
        for index in range(count * len(senders)):
            frame = stream.receive(30)
            assert frame is not None
            if frame.epoch != expected[frame.term]:
                errors.append(f"frame {frame.epoch} of sender {frame.term}, expected {expected[frame.term]}")
            if index % 2 and frame.term != last:
                errors.append("a frame came between the two of one send_many")
            if frame.payload != content(frame.term, frame.epoch):
                errors.append(f"frame {frame.epoch} of sender {frame.term} is garbled")
            expected[frame.term], last = frame.epoch + 1, frame.term

    def thread(work: Callable[..., None], *args: object) -> threading.Thread:
        return threading.Thread(target=work, args=args, daemon=True)

    threads = []
    for stream, sends, hears in ((pair[0], [1, 2, 3], [4, 5, 6]), (pair[1], [4, 5, 6], [1, 2, 3])):
        threads += [thread(send, stream, sender) for sender in sends] + [thread(receive, stream, hears)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert not errors and not any(each.is_alive() for each in threads)


def test_a_blocked_receive_does_not_hold_up_a_send(pair: Pair) -> None:
    thread, raised = blocked(lambda: pair[0].receive(None))
    time.sleep(0.05)
    started = time.monotonic()
    pair[0].send(FrameType.HEARTBEAT, 1, 0)
    assert pair[1].receive(5) is not None
    assert time.monotonic() - started < 1
    pair[1].send(FrameType.ACK, 1, 1)
    thread.join(5)
    assert not thread.is_alive() and not raised


def test_a_blocked_send_does_not_hold_up_a_receive(pair: Pair) -> None:
    """The agent is slow to read and goes on acknowledging: the acks get through."""
    thread, raised = blocked(send_forever(pair[0]))
    time.sleep(0.3)  # the socket buffers are full now
    for epoch in range(20):
        pair[1].send(FrameType.ACK, 1, epoch)
        frame = pair[0].receive(5)
        assert frame is not None and frame.epoch == epoch
    assert thread.is_alive() and not raised
    pair[0].close()
    thread.join(5)


def test_a_slow_reader_slows_the_sender_and_loses_nothing(pair: Pair) -> None:
    sent: list[int] = []
    frames = [random.Random(number).randbytes(MIB) for number in range(40)]

    def work() -> None:
        for number, data in enumerate(frames):
            pair[0].send(FrameType.WRITES, 1, number, data)
            sent.append(number)

    thread, raised = blocked(work)
    stalled = -1
    while stalled != len(sent):  # until it waits
        stalled = len(sent)
        time.sleep(0.3)
    assert stalled < len(frames)  # nothing piles up but in the sockets' buffers
    for data in frames:
        time.sleep(0.005)
        frame = pair[1].receive(10)
        assert frame is not None
        assert xxhash.xxh3_64_digest(frame.payload) == xxhash.xxh3_64_digest(data)
    thread.join(5)
    assert not raised and len(sent) == len(frames)


@pytest.mark.parametrize("closer", [0, 1], ids=["own side", "other side"])
def test_close_frees_everybody_who_waits(pair: Pair, closer: int) -> None:
    waiting = [
        blocked(lambda: pair[0].receive(None)),
        blocked(send_forever(pair[0])),
        blocked(send_forever(pair[0])),
    ]
    time.sleep(0.2)
    started = time.monotonic()
    pair[closer].close()
    for thread, raised in waiting:
        thread.join(5)
        assert not thread.is_alive()
        assert isinstance(raised[0], PeerUnreachable)
    assert time.monotonic() - started < 1
    pair[closer].close()  # again is no error
    with pytest.raises(PeerUnreachable):
        pair[0].send(FrameType.HEARTBEAT, 1, 0)
    with pytest.raises(PeerUnreachable):
        pair[0].receive(1)


def test_last_words_reach_a_peer_that_is_still_sending(pair: Pair) -> None:
    """BYE and REFUSE are followed by a close; unread input would reset the connection and take them along."""

    def refuse() -> None:
        pair[1].send(FrameType.REFUSE, 2, 0, b"took over")
        pair[1].close(5)

    agent_thread, _ = blocked(refuse)
    sender, raised = blocked(send_forever(pair[0]))
    frame = pair[0].receive(5)
    assert frame is not None and (frame.type, frame.payload) == (FrameType.REFUSE, b"took over")
    with pytest.raises(PeerUnreachable, match="closed the connection"):
        pair[0].receive(5)
    pair[0].close()
    for thread in (agent_thread, sender):
        thread.join(5)
        assert not thread.is_alive()
    assert raised


def test_what_was_said_before_a_reset_can_still_be_read(pair: Pair) -> None:
    """A failed send must not hide the answer that explains it."""
    pair[1].send(FrameType.RENOUNCE, 1, 0, b"disk full")
    time.sleep(0.1)
    pair[1].close()

    def send() -> None:
        for _ in range(100):
            pair[0].send(FrameType.PAGES, 1, 1, bytes(MIB))

    with pytest.raises(PeerUnreachable):
        send()
    frame = pair[0].receive(5)
    assert frame is not None and frame.payload == b"disk full"


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=not check)


def in_namespace(name: str, work: Callable[[], Listener]) -> Listener:
    """Run `work` in a thread that lives in a network namespace; its sockets stay there."""
    made: list[Listener] = []

    def run() -> None:
        with open(f"/run/netns/{name}") as space:
            if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), 0x40000000):  # CLONE_NEWNET
                raise OSError(ctypes.get_errno(), "setns")
        made.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return made[0]


@pytest.fixture
def cable(certs: Path) -> Iterator[tuple[str, Listener]]:
    """A listener at 203.0.113.2, at the other end of a veth of this name. Needs root."""
    near, space = f"rdbt{os.getpid() % 1000000}", f"rdbt-{os.getpid()}"
    ip("netns", "add", space)
    try:
        ip("link", "add", near, "type", "veth", "peer", "name", "far", "netns", space)
        for words in (f"address add 203.0.113.1/24 dev {near}", f"link set {near} up"):
            ip(*words.split())
        for words in ("address add 203.0.113.2/24 dev far", "link set far up"):
            ip("-netns", space, *words.split())
        listener = in_namespace(space, lambda: Listener("203.0.113.2", 0, server_context(*files(certs, "beta"))))
        yield near, listener
        listener.close()
    finally:
        ip("link", "delete", near, check=False)
        ip("netns", "delete", space, check=False)


def test_a_peer_that_is_gone_without_a_word(certs: Path, cable: tuple[str, Listener]) -> None:
    """The link is cut under a busy session: senders wait, `last_heard` stands still, `close` frees them at once."""
    near, listener = cable
    context, over = client_context(*files(certs, "alpha")), threading.Event()
    listener.start(lambda agent: read_until(agent, over))
    client = connect("203.0.113.2", listener.port, context, "beta", 5)
    thread, raised = blocked(send_forever(client))
    time.sleep(0.2)
    ip("link", "set", near, "down")
    time.sleep(0.3)
    heard = client.last_heard
    assert client.receive(0.2) is None and client.last_heard == heard and thread.is_alive()
    started = time.monotonic()
    client.close()
    thread.join(5)
    assert time.monotonic() - started < 1
    assert not thread.is_alive() and isinstance(raised[0], PeerUnreachable)
    with pytest.raises(PeerUnreachable):
        connect("203.0.113.2", listener.port, context, "beta", 0.3)
    assert time.monotonic() - started < 2
    over.set()


def read_until(stream: FrameStream, over: threading.Event) -> None:
    while not over.is_set():
        stream.receive(0.1)
