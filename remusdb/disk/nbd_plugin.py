# SPDX-License-Identifier: Apache-2.0
"""nbdkit plugin: the write-only target of one disk's block copy.

It runs inside nbdkit, in the system's own Python: standard library only, never `import remusdb`.

Owns the sending end of one disk's write log. Invariant: a request is answered only after its record is in the
log socket and the record's bytes are counted in the position file. QEMU's `stop` waits for every guest write,
and a guest write waits for its answer here, so while the VM is stopped the position is exactly the length of
the log that belongs to that instant.

Parameters: size=BYTES disk=INDEX log=PATH (unix stream socket, we connect) position=PATH (8 bytes, mapped).
The log is a sequence of records: RECORD, then `length` bytes of data for WRITE.

    connected ──send fails, or the NBD client that wrote goes away──▶ broken (every later request: EIO)
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import errno
import mmap
import os
import signal
import socket
import struct

import nbdkit

API_VERSION = 2

# kind u8, disk u8, reserved u16, length u32 (bytes), offset u64 (bytes)
RECORD = struct.Struct("<BBHIQ")
WRITE, ZERO, TRIM = 1, 2, 3

# Larger socket buffers mean fewer switches between this process and the worker; they bound what is in flight.
LOG_BUFFER_BYTES = 4 << 20
SO_SNDBUFFORCE = 32
PR_SET_PDEATHSIG = 1
MAX_REQUEST_BYTES = 32 << 20

_parameters: dict[str, str] = {}
_log: Log | None = None


class Log:
    """The sending end of the log socket, and the position it counts up."""

    def __init__(self, path: str, position_path: str, disk: int) -> None:
        self.disk = disk
        self.broken = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, LOG_BUFFER_BYTES)
        except PermissionError:  # not root: the system's limit has to do
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOG_BUFFER_BYTES)
        self._socket.connect(path)
        with builtins.open(position_path, "r+b") as file:
            # One aligned 8-byte store a record: a reader in the other process never sees half of it.
            self._position = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")

    def append(self, kind: int, offset: int, length: int, data: bytes | memoryview = b"") -> None:
        """Send one record whole, then count it. Raises OSError; the log is broken from then on."""
        if self.broken:
            raise OSError(errno.EIO, "the write log is broken")
        header = RECORD.pack(kind, self.disk, 0, length, offset)
        try:
            self._send(header, data)
        except OSError:
            self.break_off()
            raise
        self._position[0] += RECORD.size + len(data)

    def _send(self, header: bytes, data: bytes | memoryview) -> None:
        """One gathering send; what the socket did not take at once follows."""
        sent = self._socket.sendmsg([header, data], [], socket.MSG_NOSIGNAL)
        if sent < len(header):
            self._socket.sendall(header[sent:], socket.MSG_NOSIGNAL)
            sent = len(header)
        if sent < len(header) + len(data):
            self._socket.sendall(memoryview(data)[sent - len(header) :], socket.MSG_NOSIGNAL)

    def break_off(self) -> None:
        """No record will follow: the worker sees the end of the stream."""
        self.broken = True
        self._socket.close()


class Connection:
    """One NBD client; `wrote` tells QEMU's mirror from a client that only looked."""

    wrote = False


def _append(h: Connection, kind: int, offset: int, length: int, data: bytes | memoryview = b"") -> None:
    h.wrote = True
    try:
        if _log is None:
            raise OSError(errno.EIO, "no write log")
        _log.append(kind, offset, length, data)
    except OSError:
        nbdkit.set_error(errno.EIO)  # whatever the log socket said, the disk's user gets EIO
        raise


# --- what nbdkit calls ------------------------------------------------------------------------------------


def thread_model() -> int:
    """One request at a time over all connections: the log's order is the order of the answers."""
    return int(nbdkit.THREAD_MODEL_SERIALIZE_ALL_REQUESTS)


def config(key: str, value: str) -> None:
    if key not in ("size", "disk", "log", "position"):
        raise RuntimeError(f"unknown parameter: {key}")
    _parameters[key] = value


def config_complete() -> None:
    missing = {"size", "disk", "log", "position"} - _parameters.keys()
    if missing:
        raise RuntimeError(f"missing parameter: {', '.join(sorted(missing))}")


def after_fork() -> None:
    """Connect now: nbdkit has bound its NBD socket, so the worker's `accept` also says that it listens."""
    global _log
    # nbdkit's own --exit-with-parent is a SIGTERM, upon which it waits for QEMU to disconnect.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # A cut waits, with the VM stopped, for the writes that are here. The threads nbdkit makes later inherit this;
    # how much it runs is bounded by the worker, which reads the log at normal priority.
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    _log = Log(_parameters["log"], _parameters["position"], int(_parameters["disk"]))


def open(readonly: bool) -> Connection:
    return Connection()


def close(h: Connection) -> None:
    """The mirror went away: say so, or writes that no longer come here would go unnoticed."""
    if h.wrote and _log is not None and not _log.broken:
        os.write(2, b"the NBD client disconnected\n")
        _log.break_off()


def get_size(h: Connection) -> int:
    return int(_parameters["size"])


def block_size(h: Connection) -> tuple[int, int, int]:
    """Minimum 1: with more, the client would read-modify-write, and there is nothing here to read."""
    return 1, 4096, MAX_REQUEST_BYTES


def _yes(h: Connection) -> bool:
    return True


can_write = can_flush = can_trim = can_zero = can_fast_zero = _yes


def can_fua(h: Connection) -> int:
    return int(nbdkit.FUA_NATIVE)  # accepted and ignored: durability is the epoch's commit, not this process


def pread(h: Connection, buf: bytearray, offset: int, flags: int) -> None:
    """Nothing is kept here. An error, not zeros: a client that reads back would build on invented data."""
    nbdkit.set_error(errno.EIO)
    raise OSError(errno.EIO, "this disk is write-only")


def pwrite(h: Connection, buf: memoryview, offset: int, flags: int) -> None:
    _append(h, WRITE, offset, len(buf), buf)


def zero(h: Connection, count: int, offset: int, flags: int) -> None:
    _append(h, ZERO, offset, count)


def trim(h: Connection, count: int, offset: int, flags: int) -> None:
    _append(h, TRIM, offset, count)


def flush(h: Connection, flags: int) -> None:
    """Every answered write is in the log already."""
