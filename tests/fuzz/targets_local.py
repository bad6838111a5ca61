# SPDX-License-Identifier: Apache-2.0
"""Targets: what etcd, the kernel, QEMU, clients of the control sockets and files on this host's disk say."""

from __future__ import annotations

import base64
import functools
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from remusdb import safexml
from remusdb.allow.judge import judge as judge_xml
from remusdb.arbiter.answers import Changed, Found, Status
from remusdb.arbiter.arbiter import Arbiter
from remusdb.arbiter.health import judge
from remusdb.config import Arbiter as Config
from remusdb.config import Protection, Tls, load_agent, load_host
from remusdb.control import client
from remusdb.control.api import (
    AgentStatus,
    AgentVms,
    Evacuate,
    Evacuated,
    Fence,
    HostStatus,
    HostVms,
    Moved,
    Protect,
    Rehearse,
)
from remusdb.control.codec import Done, Failed, Progress
from remusdb.control.codec import Request as ControlRequest
from remusdb.control.lines import LineChannel, encoded
from remusdb.control.server import ControlServer
from remusdb.control.status import StandbyStatus, VmStatus
from remusdb.core.ownership import take_over
from remusdb.disk.mirror import unsynced
from remusdb.errors import ArbiterUnreachable, RemusError
from remusdb.history import Event, read
from remusdb.names import VmName, file_stem, name_of, require_name
from remusdb.net.addresses import own_address
from remusdb.net.forwarding import dropping
from remusdb.net.gatewire import Op, Reply, Request
from remusdb.net.gatewire import Status as GateStatus
from remusdb.net.linknews import parse_news
from remusdb.net.netlink import Netlink, attribute, text
from remusdb.net.tc import _TCMSG
from remusdb.preflight import needs
from remusdb.printable import printable
from remusdb.state import StateStore
from remusdb.tomlstruct import read_toml
from remusdb.transport.certs import _load_authority, make_ca_and_hosts
from remusdb.vm.endwatch import reason_in
from remusdb.vm.inventory import inventory
from remusdb.vm.monitor import field_of, objects_in, reply_in, returned
from remusdb.vm.process import is_qemu_of, socket_of
from remusdb.vm.ramblocks import parse_ramblocks
from remusdb.worker.spec import COMMANDS, End, Move, PeerAddress, ProtectionSpec, Start, Stop, Told, read_report
from remusdb_agents.backup.standby.qemu_log import complaints
from remusdb_agents.backup.standby.xml import standby_xml
from tests.fuzz.samples import DOMAIN
from tests.fuzz.target import Target


@functools.cache
def folder() -> Path:
    """In memory where there is such a file system."""
    shm = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="remusdb-fuzz-", dir=shm if shm.is_dir() else None))


# --- etcd ---

HEADER = b'{"cluster_id":"7","member_id":"1","revision":"41","raft_term":"2"}'
RECORD = b'{"owner":"alpha","term":7,"previous":""}'
KEY = base64.b64encode(b"/remusdb/db1")


def found(record: bytes) -> bytes:
    pair = b'{"key":"%s","mod_revision":"40","version":"1","value":"%s"}' % (KEY, base64.b64encode(record))
    return b'{"header":%s,"kvs":[%s],"count":"1"}' % (HEADER, pair)


class Wire:
    """A connection on which these bytes come, piece by piece, and then its end."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def recv_into(self, buffer: Any) -> int:
        size = min(len(buffer), len(self._data))
        buffer[:size] = self._data[:size]
        self._data = self._data[size:]
        return size

    def recv(self, most: int) -> bytes:
        taken, self._data = self._data[:most], self._data[most:]
        return bytes(taken)

    def sendall(self, _data: bytes) -> None:
        return

    send = sendall

    def settimeout(self, _seconds: float | None) -> None:
        return

    def shutdown(self, _how: int) -> None:
        return

    def close(self) -> None:
        return


def wire(data: bytes) -> Any:
    """It, in a socket's place."""
    return Wire(data)


def arbiter(data: bytes) -> Arbiter:
    """One whose etcd says this, whatever it is asked."""
    made = Arbiter(Config(endpoints=["http://127.0.0.1:1"]))
    cast(Any, made._etcd)._connect = lambda _endpoint, _deadline: wire(data)
    return made


def http(data: bytes) -> None:
    at = arbiter(data)
    at.claim("db1", take_over("beta", "alpha", 7))  # a verdict, whatever comes
    at._etcd.ask("/v3/kv/range", {}, Found)


def http_samples() -> list[bytes]:
    body = found(RECORD)
    plain = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return [plain, chunked]


def etcd(data: bytes) -> None:
    """An answer's body; each kind of question is asked, none may fail in another way than by not being answered."""
    at = arbiter(b"HTTP/1.1 200 OK\r\n\r\n" + data)
    found: dict[str, Any] = {}
    kinds: tuple[Any, ...] = (Found, Changed, Status)
    for kind in kinds:
        try:
            found["x"] = at._etcd.ask("/v3/x", {}, kind)
        except ArbiterUnreachable as exc:
            found["x"] = str(exc)
    at.health()
    judge({"x": at._etcd.ask("/v3/x", {}, Status)}, "no space", "etcdctl")


def record(data: bytes) -> None:
    arbiter(b"HTTP/1.1 200 OK\r\n\r\n" + found(data)).read("db1")


def failure(data: bytes) -> None:
    at = arbiter(b"HTTP/1.1 503 Service Unavailable\r\n\r\n" + data)
    at.health()
    at.claim("db1", take_over("beta", "alpha", 7))


# --- control sockets ---


def lines(data: bytes) -> None:
    channel = LineChannel(wire(data), max_line_bytes=1 << 12)
    while not channel.broken:
        try:
            if channel.receive() is None:
                return
        except RemusError:
            continue


def request(data: bytes) -> None:
    kinds: list[Any] = [HostStatus, Protect, Fence, Rehearse, Evacuate]
    server = ControlServer("/run/remusdb/host.sock", dict.fromkeys(kinds, lambda asked, _progress: asked))
    channel = LineChannel(wire(data))
    while (line := channel.line()) is not None:
        msgspec.json.encode(server._answer(line, lambda _told: None, trusted=True))


def order(data: bytes) -> None:
    """What a daemon says to a worker, and a worker to its daemon."""
    for kind in (COMMANDS.read, read_report):
        try:
            kind(data)
        except RemusError:
            continue


def reply(data: bytes) -> None:
    every: list[ControlRequest[Any]] = [HostStatus(), AgentStatus(), Evacuate()]
    for asked in every:
        try:
            client._answer(LineChannel(wire(data)), asked, None, Path("/run/remusdb/host.sock"))
        except RemusError:
            continue


def requests() -> list[bytes]:
    asked = [HostStatus(vm="db1"), Fence(vm=VmName("db1"), owner="beta", term=7), Evacuate(if_host_stops=True),
             Rehearse(vm=VmName("db1"), seconds=5, tcp_port=22)]  # fmt: skip
    return [encoded(one) + b"\n" for one in asked]


def replies() -> list[bytes]:
    told = [Progress(step="memory", done=1, total=2, unit="MiB"), Failed(id="E-PEER", message="no route", hint="wait"),
            Done.by(HostVms(vms=[VmStatus(vm="db1", state="held", reason="why", troubles=["arbiter"])])),
            Done.by(AgentVms(vms=[StandbyStatus(vm="db1", quarantined_disks={"vda": "/kept/vda.raw"})])),
            Done.by(Evacuated(moved=[Moved(vm="db1", to="beta", term=3, took_ms=80.5)]))]  # fmt: skip
    return [encoded(one) + b"\n" for one in told]


def orders() -> list[bytes]:
    here = Path("/run/remusdb")
    peer = PeerAddress("beta", "192.0.2.2", 7473)
    what = ProtectionSpec("db1", "alpha", "qemu:///system", here, here, here, peer, Tls(), Protection())
    told = [Start(spec=what), End(peer_is_dead=True, spec=what), Move(), Stop(), Told(status=VmStatus(vm="db1")),
            Done.by(VmStatus(vm="db1"), "start")]  # fmt: skip
    return [encoded(one) for one in told]


# --- files ---


def in_file(name: str, then: Callable[[Path], object]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        path = folder() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        then(path)

    return run


def config(path: Path) -> None:
    for load in (read_toml, load_host, load_agent):
        try:
            load(path)
        except RemusError:
            continue


def saved(path: Path) -> None:
    store = StateStore(path.parent.parent)
    store.names()
    store.load("db1")
    store.load("x" * 300)


def histories(path: Path) -> None:
    read(path.parent.parent, "db1")


EVENT = Event(
    vm="db1", at_ns=1_790_000_000_000_000_000, host="alpha", by="host", event="held", was="protected", now="held",
    reason="because", term=7, epoch=3, heard_ms_ago=4.5, peer="beta", details={"a": 1, "b": "c"},
)  # fmt: skip
AGENT = b'[agent]\nname = "beta"\n[failover]\nsilence_ms = 500\n[disks.db1]\nvdb = "/dev/vg0/db1"\n'
HOST = b'[host]\nname = "a"\n[peers.b]\naddress = "192.0.2.2"\n[vms.x]\nepoch_ms = 200\n[arbiter]\nendpoints = ["x"]\n'


def states() -> list[bytes]:
    store = StateStore(folder() / "made")
    store.update("db1", role="protected", term=7, owner="alpha", peer="beta", gates=[{"kind": "tap", "tap": "vnet3"}])
    return [(folder() / "made" / "vms" / "db1.json").read_bytes()]


@functools.cache
def authority() -> tuple[bytes, bytes]:
    make_ca_and_hosts(folder() / "tls", {"alpha": ["192.0.2.1"]})
    return (folder() / "tls/ca/ca.pem").read_bytes(), (folder() / "tls/ca/ca.key").read_bytes()


def certificates(data: bytes) -> None:
    """A CA's certificate as DER, with its own key."""
    _certificate, key = authority()
    where = folder() / "fuzzed"
    where.mkdir(exist_ok=True)
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(data) + b"-----END CERTIFICATE-----\n"
    (where / "ca.pem").write_bytes(pem)
    (where / "ca.key").write_bytes(key)
    _load_authority(where / "ca.pem", where / "ca.key")


def certificate_samples() -> list[bytes]:
    body = authority()[0].split(b"-----")[2]
    return [base64.b64decode(body)]


# --- the kernel, the gate's process and QEMU ---


def gate(data: bytes) -> None:
    for kind in (Request, Reply):
        try:
            kind.unpack(data).pack()
        except RemusError:
            continue


def asked(data: bytes) -> None:
    netlink = Netlink.__new__(Netlink)
    # The kernel's answer ends with an acknowledgement; here the bytes end instead.
    netlink._socket = cast(Any, SimpleNamespace(send=len, recv=once(data)))
    netlink._sequence = itertools.count(1)
    netlink.ask("listing", 38, 0x300, b"", _TCMSG)


def once(data: bytes) -> Callable[[int], bytes]:
    """What is received, and then an acknowledgement."""
    parts = [data, netlink_message(2, bytes(20))]
    return lambda _most: parts.pop(0)


def netlink_message(kind: int, payload: bytes) -> bytes:
    return (16 + len(payload)).to_bytes(4, "little") + kind.to_bytes(2, "little") + b"\0\0\1\0\0\0\0\0\0\0" + payload


def links() -> list[bytes]:
    body = bytes(16) + text(3, "vnet3") + attribute(18, text(1, "tun")) + attribute(10, b"\7\0\0\0")
    return [netlink_message(16, body), netlink_message(17, body) + netlink_message(16, body)]


def qemu(data: bytes) -> None:
    """The same reply to each question."""
    value = returned("x", reply_in("x", data))
    for use in (
        lambda: field_of("query-status", value, "status", str),
        lambda: unsynced(objects_in("query-block-jobs", value), ["vda"]),
        lambda: [field_of("qom-list", one, "name", str) for one in objects_in("qom-list", value)],
        lambda: parse_ramblocks(value),
        lambda: reason_in(data.decode(errors="replace")),
    ):
        try:
            use()
        except RemusError:
            continue


QEMU = [
    b'{"return": {"status": "running", "running": true}}',
    b'{"return": [{"device": "copy-vda-libvirt-1", "ready": true, "actively-synced": true, "name": "x"}]}',
    b'{"reason": "guest-shutdown", "return": "x"}',
]
ROW = "  pc.ram  4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000 0x00007f3c4be00000  rw\n"


def command_line(data: bytes) -> None:
    is_qemu_of("db1", data)
    socket_of("remusdb-qmp", data)


def names(data: bytes) -> None:
    name = require_name(data.decode(errors="replace"))
    if name_of(file_stem(name)) not in (None, name):
        raise AssertionError("a file's name is that of two VMs")
    once_shown = printable(name, 20)
    if printable(once_shown, 20) != once_shown or len(once_shown.encode()) > 20:
        raise AssertionError("what was made printable is not")


def domain(data: bytes) -> None:
    tree = safexml.parse(data.decode(errors="replace"))
    judge_xml(tree)
    inventory(tree)
    for look in (needs.paths, needs.listens, needs.own_taps, needs.cpu_pins, needs.nodes, needs.memory_bytes):
        look(tree)
    needs.huge_page_bytes(tree, 2048)
    standby_xml(data.decode(errors="replace"), {"vda": Path("/x/vda.raw")}, {"br0": "br1"}, Path("/x.sock"))


def frame() -> list[bytes]:
    own, arp = bytes.fromhex("525400000001"), bytes.fromhex("0806000108000604")
    return [b"\xff" * 6 + own + arp + b"\0\1" + own + bytes([192, 0, 2, 1]) + bytes(10)]


def kept(data: bytes) -> None:
    dropping(data.decode(errors="replace"), ("ip", "bridge"))


CHAIN = b'{"family": "ip", "table": "t", "name": "c", "hook": "forward", "policy": "drop"}'
CHAINS = b'{"nftables": [{"metainfo": {}}, {"chain": %s}]}' % CHAIN

TARGETS = {
    "etcd-http": Target(http, http_samples),
    "etcd-answer": Target(etcd, lambda: [b'{"header":%s,"leader":"1"}' % HEADER], "json"),
    "etcd-record": Target(record, lambda: [RECORD], "json"),
    "etcd-failure": Target(failure, lambda: [b'{"code":14,"message":"no leader"}'], "json"),
    "lines": Target(lines, lambda: [b'{"op": "status"}\n', b'{"a": [1]}\nx\n{"b": null}\n']),
    "request": Target(request, requests, "json"),
    "reply": Target(reply, replies, "json"),
    "order": Target(order, orders, "json"),
    "config": Target(in_file("host.toml", config), lambda: [HOST, AGENT]),
    "state": Target(in_file("vms/db1.json", saved), states, "json"),
    "history": Target(in_file("history/db1.jsonl", histories), lambda: [msgspec.json.encode(EVENT) + b"\n"], "json"),
    "certificate": Target(certificates, certificate_samples),
    "gate": Target(gate, lambda: [Request(Op.MARK, 1, 2).pack(), Reply(GateStatus.DONE, 1, 2, 3, 4, 5).pack()]),
    "link-news": Target(parse_news, links),
    "netlink": Target(asked, lambda: [*links(), netlink_message(3, bytes(4))]),
    "address": Target(own_address, frame),
    "chains": Target(kept, lambda: [CHAINS], "json"),
    "qemu": Target(qemu, lambda: list(QEMU), "json"),
    "ramblock": Target(lambda data: parse_ramblocks(data.decode(errors="replace")), lambda: [ROW.encode()]),
    "command-line": Target(
        command_line, lambda: [b"qemu\0-name\0guest=db1,debug=on\0-chardev\0socket,id=remusdb-qmp,path=/x,,y.sock\0"]
    ),
    "qemu-log": Target(
        lambda data: complaints(data.decode(errors="replace")),
        lambda: [b"2026-11-27T09:24:00Z qemu: no\nx\n"],
    ),
    "name": Target(names, lambda: [b"db1", "Datenbank \N{LATIN SMALL LETTER A WITH DIAERESIS}".encode()]),
    "domain": Target(domain, lambda: [DOMAIN.encode()]),
}
