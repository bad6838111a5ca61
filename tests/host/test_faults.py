# SPDX-License-Identifier: Apache-2.0
"""Each fault does what its name says, between two nodes of a lab, and nothing is left of it afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tools.faults import LinkFault, find, kill, stop
from tools.lab import Host, Lab
from tools.lab.links import socket_in
from tools.matrix.watch import Speakers

ECHO = """
import socket, sys, threading
def serve(listener):
    while True:
        conn, _ = listener.accept()
        threading.Thread(target=pump, args=(conn,), daemon=True).start()
def pump(conn):
    try:
        while data := conn.recv(65536):
            conn.sendall(data)
    except OSError:
        pass
def answer(sock):
    while True:
        sock.sendto(*sock.recvfrom(64))
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("0.0.0.0", 7001))
threading.Thread(target=answer, args=(datagrams,), daemon=True).start()
for port in (7001, 7002):
    threading.Thread(target=serve, args=(socket.create_server(("0.0.0.0", port)),), daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def echo(lab: Lab) -> Iterator[None]:
    """Host `b` echoes on ports 7001 and 7002."""
    process = lab.host("b").popen([sys.executable, "-c", ECHO], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def fault(lab: Lab, echo: None) -> Iterator[LinkFault]:
    """Of the cable of `a`. After the test `a` and `b` hear each other as before."""
    with LinkFault(lab.host("a")) as made:
        yield made
    assert ping(lab, 3)[0] == 0


def ping(lab: Lab, count: int, interval_s: float = 0.02) -> tuple[float, float]:
    """Datagrams from `a` that `b` echoes: the share that did not come back, and the mean round trip in ms."""
    sent_at: dict[int, float] = {}
    took_ms: dict[int, float] = {}

    def receive(until: float) -> None:
        while len(took_ms) < count and (left := until - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                number = int(sock.recv(64))
            except TimeoutError:
                return
            took_ms.setdefault(number, (time.monotonic() - sent_at[number]) * 1000)

    with socket_in(lab.host("a").netns) as sock:
        sock.connect((lab.host("b").ip4, 7001))
        for number in range(count):
            sent_at[number] = time.monotonic()
            sock.send(b"%d" % number)
            receive(sent_at[number] + interval_s)
        receive(time.monotonic() + 1.0)
    return 1 - len(took_ms) / count, sum(took_ms.values()) / max(len(took_ms), 1)


def datagrams(source: Host, target: Host, count: int = 20) -> int:
    """How many of `count` datagrams arrive: one way, no answer is needed."""
    neighbours(source, target)
    with socket_in(target.netns) as receiver, socket_in(source.netns) as sender:
        receiver.bind((target.ip4, 7003))
        receiver.settimeout(0.3)
        for number in range(count):
            sender.sendto(bytes([number]), (target.ip4, 7003))
        got = 0
        with contextlib.suppress(TimeoutError):
            while got < count:
                receiver.recv(16)
                got += 1
    return got


def neighbours(*hosts: Host) -> None:
    """Each knows the other's address for good: a one way cut would stop ARP both ways."""
    for here in hosts:
        for there in hosts:
            if here is not there:
                entry = ["ip", "neigh", "replace", there.ip4, "lladdr", there.mac, "dev", "br0", "nud", "permanent"]
                here.run(entry)


@contextlib.contextmanager
def connection(lab: Lab, port: int) -> Iterator[socket.socket]:
    """From `a` to the echo on `b`."""
    with socket_in(lab.host("a").netns, kind=socket.SOCK_STREAM) as made:
        made.settimeout(30.0)
        made.connect((lab.host("b").ip4, port))
        yield made


def echoed(sock: socket.socket, data: bytes) -> bool:
    """Whether all of it comes back the same; sent beside the reading, or both sides would wait."""
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(sock.sendall, data)
        got = bytearray()
        while len(got) < len(data) and (part := sock.recv(65536)):
            got += part
        sending.result()
    return bytes(got) == data


def test_a_cut_is_cut_both_ways_and_whole_again(lab: Lab, fault: LinkFault) -> None:
    a, b = lab.host("a"), lab.host("b")
    fault.cut()
    assert datagrams(a, b) == 0 and datagrams(b, a) == 0
    assert a.run(["cat", "/sys/class/net/eth0/carrier"]).stdout == "1\n"
    fault.heal()
    assert datagrams(a, b) == 20 and datagrams(b, a) == 20


@pytest.mark.parametrize("outgoing", [True, False])
def test_one_way_is_cut_and_the_other_is_not(lab: Lab, fault: LinkFault, outgoing: bool) -> None:
    a, b = lab.host("a"), lab.host("b")
    fault.cut(outgoing=outgoing, incoming=not outgoing)
    assert datagrams(a, b) == (0 if outgoing else 20)
    assert datagrams(b, a) == (20 if outgoing else 0)


def test_one_percent_is_lost_each_way(lab: Lab, fault: LinkFault) -> None:
    """A ping crosses twice: some 2 % of 3000 do not come back."""
    fault.lose(0.01)
    lost, _ = ping(lab, 3000, 0.001)
    assert 0.006 < lost < 0.06


def test_a_connection_survives_the_loss(lab: Lab, fault: LinkFault) -> None:
    fault.lose(0.01)
    with connection(lab, 7001) as sock:
        assert echoed(sock, os.urandom(1 << 20))


def test_frames_come_200_ms_later_in_order(lab: Lab, fault: LinkFault) -> None:
    with connection(lab, 7001) as sock:
        assert echoed(sock, b"before")
        fault.arm_delay(0.2)
        assert ping(lab, 5)[1] < 50
        fault.delay()
        lost, mean_ms = ping(lab, 20)
        assert lost == 0 and 199 < mean_ms < 260
        began = time.monotonic()
        assert echoed(sock, os.urandom(4 << 20)), "large frames do not pass whole"
        assert time.monotonic() - began < 25
    fault.heal()
    assert ping(lab, 5)[1] < 50


def test_a_blink_ends_by_itself(lab: Lab, fault: LinkFault) -> None:
    with connection(lab, 7001) as sock:
        assert echoed(sock, b"before")
        began = time.monotonic()
        fault.blink(0.3)
        assert echoed(sock, b"through the cut")
        assert 0.25 < time.monotonic() - began < 3


def test_a_reset_breaks_that_connection_and_no_other(lab: Lab, fault: LinkFault) -> None:
    with connection(lab, 7001) as struck, connection(lab, 7002) as spared:
        assert echoed(struck, b"x") and echoed(spared, b"x")
        assert fault.reset(7001) == 1
        with pytest.raises(ConnectionError):
            echoed(struck, b"x")
        assert echoed(spared, os.urandom(1 << 20))


def test_a_process_stands_still_and_goes_on(lab: Lab) -> None:
    counter = lab.host("a").popen(
        [sys.executable, "-c", "import time\nwhile True: print(1, flush=True); time.sleep(0.02)"],
        stdout=subprocess.PIPE,
    )
    assert counter.stdout is not None
    try:
        counter.stdout.readline()
        (pid,) = find(lab.host("a"), "print(1, flush=True)")
        began = time.monotonic()
        stopped = stop([pid], 0.5)
        os.set_blocking(counter.stdout.fileno(), False)
        time.sleep(0.1)
        while counter.stdout.read(4096):
            pass
        time.sleep(0.2)
        assert not counter.stdout.read(1), "it runs on"
        stopped.wait()
        time.sleep(0.2)
        assert counter.stdout.read(1) and time.monotonic() - began > 0.5
        kill([pid])
        assert counter.wait(5) == -9
    finally:
        counter.kill()
        counter.wait()
        counter.stdout.close()


def test_a_host_boots_again_after_a_power_failure(lab: Lab) -> None:
    """Links of its own and /run are gone, its address is back, libvirt answers."""
    b = lab.host("b")
    neighbours(lab.host("a"), b)
    b.start_libvirt()
    b.run(["ip", "link", "add", "rg0", "type", "veth", "peer", "name", "ri0"])
    b.path("/run/stale").write_text("x")
    b.kill()
    b.boot()
    names = re.findall(r"^\d+: ([^:@]+)", b.run(["ip", "-o", "link"]).stdout, re.MULTILINE)
    assert sorted(names) == ["br0", "eth0", "lo"]
    assert not b.path("/run/stale").exists()
    assert b.run(["virsh", "list", "--all", "--name"]).stdout.strip() == ""
    assert datagrams(lab.host("a"), b) == 20


def test_two_speakers_are_seen(lab: Lab) -> None:
    """One that moves is no complaint; one that speaks again after the other began is, also with its cable cut."""
    mac = "52:54:00:77:00:99"
    speakers = Speakers(lab, mac)
    try:
        with LinkFault(lab.host("a")) as fault:
            fault.cut()
            for name in ("a", "a", "b", "b"):
                _speak(lab.host(name), mac)
            time.sleep(0.3)
            assert [frame.host for frame in speakers.frames()] == ["a", "a", "b", "b"]
            assert speakers.complaints(moves=1) == [] and speakers.complaints(moves=0) != []
            lab.host("a").cut_link()
            lab.host("a").restore_link()
            # The kernel tells itself of a carrier at its leisure, up to a second later: what is sent before is lost.
            deadline = time.monotonic() + 20
            while not (found := speakers.complaints(moves=1)) and time.monotonic() < deadline:
                _speak(lab.host("a"), mac)
                time.sleep(0.1)
            assert "two speakers: a sent" in found[0]
    finally:
        speakers.close()


def _speak(host: Host, mac: str) -> None:
    frame = b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) + b"\x88\xb5" + bytes(46)
    with socket_in(host.netns, socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind(("eth0", 0))
        sock.send(frame)
