# SPDX-License-Identifier: Apache-2.0
"""After a takeover the connections that were inside a transaction are broken, on both ends, and no others.

The guest and the client are two kernels of their own (namespaces), so what answers is Linux's TCP, not ours.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from remusdb.core.reset import Target
from remusdb.core.segments import ACK, End, Segment, build, read
from remusdb.deadline import Deadline, poll_until
from remusdb.net.resets import Resets
from remusdb.net.tc import Tc
from tests.host.netlab import enter, index_of, own_namespace, sh

GUEST_MAC, CLIENT_MAC = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")
ADDRESSES = {4: ("10.9.0.1", "10.9.0.2"), 6: ("fd00:9::1", "fd00:9::2")}
PATIENCE_S = 20.0
PSH = 0x08  # set by Linux on what ends a write: here, on all data


class Kernel:
    """A namespace with one interface at the bridge."""

    def __init__(self, port: str, mac: bytes, version: int, address: str) -> None:
        self.process = subprocess.Popen(["unshare", "-n", "sleep", "1000"])
        self.address = address
        own = os.stat("/proc/thread-self/ns/net").st_ino
        while os.stat(f"/proc/{self.process.pid}/ns/net").st_ino == own:
            time.sleep(0.01)
        sh(f"ip link add {port} type veth peer name eth0 netns {self.process.pid}")
        sh(f"ip link set {port} master br0 up")
        inside = f"nsenter -t {self.process.pid} -n"
        sh(f"{inside} sysctl -qw net.ipv6.conf.eth0.accept_dad=0")
        sh(f"{inside} ip link set lo up")
        sh(f"{inside} ip link set eth0 address {mac.hex(':')} up")
        sh(f"{inside} ip addr add {address}/{24 if version == 4 else 64} dev eth0")

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """What this thread opens meanwhile is this kernel's."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/proc/{self.process.pid}/ns/net", os.O_RDONLY)
        enter(there)
        try:
            yield
        finally:
            enter(before)
            os.close(before)
            os.close(there)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Connection:
    """Both ends, and what the guest's last segment said, as the primary's gate saw it."""

    server: socket.socket
    client: socket.socket
    seen: Segment

    @property
    def target(self) -> Target:
        guest = End(GUEST_MAC, self.seen.source, self.seen.source_port)
        client = End(CLIENT_MAC, self.seen.target, self.seen.target_port)
        return Target(guest, client, None, self.seen.seq, self.seen.ack)


class Net:
    """Two kernels at a bridge, and a server in one of them."""

    def __init__(self, version: int) -> None:
        sh("ip link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0 && ip link set br0 up")
        self.guest = Kernel("vnet0", GUEST_MAC, version, ADDRESSES[version][0])
        self.client = Kernel("lan0", CLIENT_MAC, version, ADDRESSES[version][1])
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with self.guest.inside():
            self.listener = socket.socket(family)
            self.listener.bind((self.guest.address, 5432))
            self.listener.listen()
        self._family = family

    def connect(self) -> Connection:
        """A connection with a question and an answer behind it, and the guest's acknowledgement of one more."""
        with self.client.inside():
            client = socket.socket(self._family)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3) as tap:
            tap.bind(("vnet0", 3))
            tap.settimeout(PATIENCE_S)
            client.settimeout(PATIENCE_S)
            client.connect((self.guest.address, 5432))
            server, _ = self.listener.accept()
            server.settimeout(PATIENCE_S)
            client.sendall(b"question")
            assert server.recv(100) == b"question"
            server.sendall(b"answer")
            assert client.recv(100) == b"answer"
            client.sendall(b"more")
            assert server.recv(100) == b"more"
            mine, answered = client.getsockname()[1], False
            while True:
                seen = read(tap.recv(2000))
                if seen is None or seen.target_port != mine:
                    continue
                if answered and not seen.flags & PSH:
                    return Connection(server, client, seen)
                answered = answered or bool(seen.flags & PSH)

    def close(self) -> None:
        self.listener.close()
        self.guest.close()
        self.client.close()


@pytest.fixture(params=[4, 6])
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    with own_namespace():
        made = Net(request.param)
        try:
            yield made
        finally:
            made.close()


def talks(connection: Connection) -> bool:
    """Whether both directions work."""
    connection.client.sendall(b"are you there")
    if not connection.server.recv(100):
        return False
    connection.server.sendall(b"yes")
    return connection.client.recv(100).endswith(b"yes")


def break_them(targets: list[Target]) -> None:
    """As a takeover does: nobody waits for it. It ends with the namespace, at the latest."""
    threading.Thread(target=Resets("vnet0", targets).run, daemon=True).start()


def reset_seen(end: socket.socket) -> bool:
    """Whether this end learns that the connection is broken, without saying anything."""
    try:
        return end.recv(100) == b"never"
    except ConnectionResetError:
        return True


def read_on(end: socket.socket) -> None:
    """What is there already, and then the next thing."""
    while end.recv(10000):
        pass


def test_one_of_two_connections_is_broken_on_both_ends(net: Net) -> None:
    broken, other = net.connect(), net.connect()
    break_them([broken.target])
    assert reset_seen(broken.server)
    assert reset_seen(broken.client)
    assert talks(other)
    with Tc() as tc:
        index = index_of("vnet0")
        assert poll_until(lambda: not tc.ingress_filters(index), Deadline.after(PATIENCE_S), 0.01)


def test_a_client_that_has_bytes_which_the_survivor_never_sent_learns_it_and_hears_nothing_else(net: Net) -> None:
    connection = net.connect()
    target = connection.target
    early = build(target.guest, target.client, None, target.sent, target.acked, ACK | PSH, b"early bytes")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as old_primary:
        old_primary.bind(("br0", 0))
        old_primary.send(early)
        assert connection.client.recv(100) == b"early bytes"
        old_primary.send(early)  # which has the client acknowledge it now, if it has not yet: its window has moved on
    time.sleep(0.1)
    break_them([target])
    assert reset_seen(connection.client)


def test_a_guest_that_expects_more_than_it_had_acknowledged_is_asked_what(net: Net) -> None:
    connection = net.connect()
    target = connection.target
    connection.client.sendall(b"a request that came after the cut was seen" * 30)
    assert connection.server.recv(10)
    break_them([target])
    with pytest.raises(ConnectionResetError):
        read_on(connection.server)
    assert reset_seen(connection.client)


def test_nothing_of_the_connection_leaves_before_the_guest_gave_it_up(net: Net) -> None:
    connection, other = net.connect(), net.connect()
    resets = Resets("vnet0", [connection.target])  # nobody runs it: an agent that died just then
    connection.server.sendall(b"different bytes")
    assert talks(other)
    connection.client.settimeout(0.5)
    with pytest.raises(TimeoutError):
        connection.client.recv(100)
    connection.client.settimeout(PATIENCE_S)
    threading.Thread(target=resets.run, daemon=True).start()
    assert reset_seen(connection.client)
