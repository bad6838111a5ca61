# SPDX-License-Identifier: Apache-2.0
"""The write log with a real nbdkit: what an NBD client was answered is in the log, in order, and counted."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remusdb.core.writes import RECORD, Kind, iter_records
from remusdb.disk.writelog import WriteLog
from remusdb.errors import DiskError
from tests.waiting import eventually

SIZE = 64 << 20
READ, WRITE, FLUSH, TRIM, ZEROES = 0, 1, 3, 4, 6
FUA, NO_HOLE = 1, 2
EIO_ON_THE_WIRE = 5
Seen = tuple[Kind, int, int, bytes]


class NbdClient:
    """A client of the NBD protocol, as little as the tests need: fixed newstyle, no structured replies."""

    def __init__(self, path: Path, timeout_s: float = 20) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        self._socket.connect(str(path))
        magic, option_magic, flags = struct.unpack(">8s8sH", self._get(18))
        assert (magic, option_magic) == (b"NBDMAGIC", b"IHAVEOPT")
        assert flags & 1
        # client flags; then NBD_OPT_EXPORT_NAME with the empty name
        self._socket.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, 0))
        self.size, self.flags = struct.unpack(">QH", self._get(10))

    def ask(
        self, command: int, offset: int, data: bytes = b"", length: int = 0, flags: int = 0, cookie: int = 0
    ) -> None:
        """Send a request without waiting for its answer."""
        length = len(data) or length
        self._socket.sendall(struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length) + data)

    def answer(self) -> tuple[int, int]:
        """(errno on the wire, cookie) of the next answer."""
        magic, error, cookie = struct.unpack(">IIQ", self._get(16))
        assert magic == 0x67446698
        return error, cookie

    def call(self, command: int, offset: int = 0, data: bytes = b"", length: int = 0, flags: int = 0) -> int:
        """One request; the answer's errno."""
        self.ask(command, offset, data, length, flags)
        return self.answer()[0]

    def write(self, offset: int, data: bytes) -> int:
        return self.call(WRITE, offset, data)

    def close(self) -> None:
        self._socket.close()

    def _get(self, count: int) -> bytes:
        data = self._socket.recv(count, socket.MSG_WAITALL)
        assert len(data) == count, "the server hung up"
        return data


def seen(raw: bytes) -> list[Seen]:
    return [(r.kind, r.offset, r.length, bytes(r.data)) for r in iter_records(raw)]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[WriteLog]:
    log = WriteLog(tmp_path, 3, SIZE, max_bytes=1 << 20)
    log.start()
    yield log
    log.close()


@pytest.fixture
def client(log: WriteLog) -> Iterator[NbdClient]:
    client = NbdClient(log.nbd_socket)
    yield client
    client.close()


def test_the_disk_is_what_qemu_needs(client: NbdClient) -> None:
    flush, fua, trim, zeroes = 1 << 2, 1 << 3, 1 << 5, 1 << 6
    assert client.size == SIZE
    assert client.flags & (flush | fua | trim | zeroes) == flush | fua | trim | zeroes
    assert not client.flags & 2, "must be writable"


def test_every_kind_is_recorded_with_its_range(log: WriteLog, client: NbdClient) -> None:
    assert client.write(4096, b"abcd" * 1024) == 0
    assert client.write(SIZE - 1, b"!") == 0
    assert client.call(ZEROES, 8192, length=65536) == 0
    assert client.call(ZEROES, 1 << 20, length=32 << 20, flags=NO_HOLE) == 0
    assert client.call(TRIM, 512, length=1024) == 0
    assert client.call(WRITE, 0, b"fua", flags=FUA) == 0
    assert client.call(FLUSH) == 0
    raw = log.take(log.position(), 1)
    assert seen(raw) == [
        (Kind.WRITE, 4096, 4096, b"abcd" * 1024),
        (Kind.WRITE, SIZE - 1, 1, b"!"),
        (Kind.ZERO, 8192, 65536, b""),
        (Kind.ZERO, 1 << 20, 32 << 20, b""),
        (Kind.TRIM, 512, 1024, b""),
        (Kind.WRITE, 0, 3, b"fua"),
    ]
    assert {record.disk for record in iter_records(raw)} == {3}


def test_many_in_flight_are_recorded_in_order_and_counted_when_answered(log: WriteLog, client: NbdClient) -> None:
    rng, expected, whole, counted = random.Random(1), [], b"", 0
    for _ in range(40):
        batch = [(rng.randrange(SIZE - 70000), rng.randbytes(rng.choice((1, 512, 4096, 65536)))) for _ in range(16)]
        for cookie, (offset, data) in enumerate(batch):
            client.ask(WRITE, offset, data, cookie=cookie)
        for _ in batch:
            error, cookie = client.answer()
            assert error == 0
            counted += RECORD.size + len(batch[cookie][1])
            assert log.position() >= counted, "answered before it was counted"
        expected += [(Kind.WRITE, offset, len(data), data) for offset, data in batch]
        assert log.position() == counted
        whole += log.take(counted, 5)
        assert log.pending_bytes == 0
    assert seen(whole) == expected


def test_the_position_read_at_any_time_falls_between_records(log: WriteLog, client: NbdClient) -> None:
    def write() -> None:
        for at in range(400):
            client.write(at * 5000, bytes([at % 256]) * 4999)

    writer = threading.Thread(target=write)
    writer.start()
    count = 0
    while writer.is_alive():
        count += len(seen(log.take(log.position(), 5)))  # iter_records refuses a cut record
    assert count + len(seen(log.take(log.position(), 5))) == 400


def test_the_largest_request(log: WriteLog, client: NbdClient) -> None:
    data = os.urandom(32 << 20)
    client.ask(WRITE, 0, data)
    record = seen(log.take(RECORD.size + len(data), 10))
    assert client.answer()[0] == 0
    assert record == [(Kind.WRITE, 0, len(data), data)]
    assert log.position() == RECORD.size + len(data)


def test_reading_is_refused_and_leaves_the_log_alone(log: WriteLog, client: NbdClient) -> None:
    assert client.call(READ, 0, length=4096) == EIO_ON_THE_WIRE
    assert client.write(0, b"x") == 0
    assert log.position() == RECORD.size + 1
    assert log.failed is None


def test_beyond_the_end_is_refused(log: WriteLog, client: NbdClient) -> None:
    assert client.call(ZEROES, SIZE - 512, length=1024) != 0
    assert log.position() == 0


def test_backpressure_holds_the_client_and_bounds_memory(log: WriteLog, client: NbdClient) -> None:
    """1 MiB may be held here; socket buffers and requests under way come on top. Then it goes on, nothing lost."""
    total, data = 96, os.urandom(1 << 20)

    def write() -> None:
        for at in range(total):
            client.write((at % 60) << 20, data)

    writer = threading.Thread(target=write)
    writer.start()
    eventually(lambda: log.pressed)
    time.sleep(0.3)
    stuck = log.position()
    time.sleep(0.3)
    assert log.position() == stuck
    assert stuck < 16 << 20
    assert log.pending_bytes < 2 << 20
    assert seen(log.take(stuck, 5))  # more than the bound: the receiver goes on for a take that waits
    with log.cutting():  # and for a stop that waits for the writes in flight
        writer.join(20)
    assert log.position() == total * (RECORD.size + len(data))
    assert {record[3] for record in seen(log.take(log.position(), 5))} == {data}


def test_nbdkit_killed_is_seen(log: WriteLog, client: NbdClient) -> None:
    client.write(0, b"x")
    os.kill(log.nbdkit_pid, signal.SIGKILL)
    eventually(lambda: log.failed is not None)
    with pytest.raises(DiskError, match="disk mirror lost"):
        log.take(log.position(), 1)


def test_a_writer_that_disconnects_is_seen(log: WriteLog, client: NbdClient) -> None:
    """The job ended: from now on the guest writes past us."""
    client.write(0, b"x")
    client.close()
    eventually(lambda: log.failed is not None)
    assert "disconnected" in str(log.failed)
    eventually(lambda: not alive(log.nbdkit_pid))  # nobody can write to half a log


def test_one_that_only_looked_may_go(log: WriteLog, client: NbdClient) -> None:
    other = NbdClient(log.nbd_socket)
    other.call(FLUSH)
    other.close()
    assert client.write(0, b"x") == 0
    assert log.failed is None


def test_without_the_worker_every_write_fails(tmp_path: Path) -> None:
    """The log socket is gone but nbdkit lives: EIO, again and again, and nothing is counted."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "log"))
    listener.listen()
    (tmp_path / "pos").write_bytes(bytes(8))
    plugin = Path(__file__).parents[2] / "remusdb/disk/nbd_plugin.py"
    nbdkit = subprocess.Popen(
        [
            *("nbdkit", "-f", "--exit-with-parent", "-U", str(tmp_path / "nbd"), "python", str(plugin)),
            *(f"size={SIZE}", "disk=0", f"log={tmp_path}/log", f"position={tmp_path}/pos"),
        ]
    )
    try:
        worker = listener.accept()[0]
        client = NbdClient(tmp_path / "nbd")
        assert client.write(0, b"x") == 0
        counted = (tmp_path / "pos").read_bytes()
        worker.close()
        for call in (client.write(0, b"y"), client.call(ZEROES, 0, length=1), client.call(TRIM, 0, length=1)):
            assert call == EIO_ON_THE_WIRE
        assert client.call(FLUSH) == 0
        assert (tmp_path / "pos").read_bytes() == counted == struct.pack("<Q", RECORD.size + 1)
        assert nbdkit.poll() is None
        client.close()
    finally:
        nbdkit.kill()
        nbdkit.wait()
        listener.close()


WORKER = """
import os, sys, threading, time
from pathlib import Path
from remusdb.disk.writelog import WriteLog
log = WriteLog(Path(sys.argv[1]), 0, 1 << 20)
starter = threading.Thread(target=log.start)  # nbdkit must not die with the thread that called start()
starter.start(); starter.join()
time.sleep(0.3)
print(log.nbdkit_pid, flush=True)
time.sleep(60)
"""


def test_nbdkit_ends_with_a_killed_worker(tmp_path: Path) -> None:
    """...but not with the thread that called start; and the next worker can start in the same folder."""
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    pid = int(worker.stdout.readline())
    client = NbdClient(tmp_path / "disk0.nbd")
    assert client.write(0, b"x") == 0
    worker.kill()
    worker.communicate()
    eventually(lambda: not alive(pid))
    with pytest.raises((AssertionError, OSError)):
        client.write(0, b"y")
    client.close()
    log = WriteLog(tmp_path, 0, 1 << 20)
    log.start()
    assert log.position() == 0
    log.close()


def test_close_leaves_nothing(tmp_path: Path) -> None:
    log = WriteLog(tmp_path, 0, SIZE)
    log.start()
    client, pid = NbdClient(log.nbd_socket), log.nbdkit_pid
    client.write(0, b"x")
    log.close()
    log.close()
    assert not alive(pid)
    assert list(tmp_path.iterdir()) == []
    assert log.failed == "closed"
    client.close()


def test_close_ends_an_nbdkit_that_is_blocked_in_a_write(tmp_path: Path) -> None:
    log = WriteLog(tmp_path, 0, SIZE, max_bytes=1)
    log.start()
    client = NbdClient(log.nbd_socket)
    client.ask(WRITE, 0, bytes(32 << 20))
    eventually(lambda: log.pressed)
    started = time.monotonic()
    log.close()
    assert time.monotonic() - started < 4
    assert not alive(log.nbdkit_pid)
    client.close()


def test_close_ends_an_nbdkit_that_hangs(tmp_path: Path) -> None:
    log = WriteLog(tmp_path, 0, SIZE)
    log.start()
    os.kill(log.nbdkit_pid, signal.SIGSTOP)
    log.close()
    assert not alive(log.nbdkit_pid)


def test_qemus_user_may_connect_and_no_other(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = Path("/tmp") / f"remusdb-test-{os.getpid()}"
    folder.mkdir(mode=0o755)
    log = WriteLog(folder, 0, SIZE, uid=64055, gid=64055)
    log.start()
    try:
        connect = f"import socket; socket.socket(socket.AF_UNIX).connect({str(log.nbd_socket)!r})"
        for uid, may in ((64055, True), (65534, False)):
            done = subprocess.run(["/usr/bin/python3", "-c", connect], user=uid, group=uid, extra_groups=[], cwd="/")
            assert (done.returncode == 0) is may, uid
    finally:
        log.close()
        folder.rmdir()


def test_a_start_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="too long"):
        WriteLog(tmp_path / ("x" * 100), 0, SIZE).start()
    with pytest.raises(DiskError, match="cannot start") as caught:
        WriteLog(tmp_path / "missing", 0, SIZE).start()
    assert caught.value.hint
    with pytest.raises(DiskError, match="out of range"):
        WriteLog(tmp_path, 256, SIZE)
    assert list(tmp_path.iterdir()) == []


def test_nbdkit_that_refuses_to_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remusdb.disk.writelog.PLUGIN", tmp_path / "none.py")
    with pytest.raises(DiskError, match=r"none\.py"):
        WriteLog(tmp_path, 0, SIZE).start()
    assert list(tmp_path.iterdir()) == []


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    def once() -> int:
        log = WriteLog(tmp_path, 0, SIZE)
        log.start()
        log.close()
        return len(os.listdir("/proc/self/fd"))

    assert once() == once() == once()
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0  # nbdkit was waited for
    assert errno.EIO == EIO_ON_THE_WIRE
