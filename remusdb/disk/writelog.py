# SPDX-License-Identifier: Apache-2.0
"""The write log of one protected disk: an nbdkit that QEMU's block copy writes to, and what it was sent.

Owns nbdkit (a child), its sockets and files in `folder`, and the received records. Invariant: while the VM is
stopped, `take(position())` is every write the guest saw complete since the last take, in order, and no other.
A cut always falls between records: the position is moved by whole records only.

    new ──start()──▶ receiving ──nbdkit ends, or QEMU disconnects──▶ failed (nbdkit is gone too)
                         └──────────────close()──────▶ closed ◀──close()──┘

The worker must not cut (stop the VM) while the guest's writes are held up by a full log: enter `cutting()`
around the stop, and cut early when `pressed`.
"""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import subprocess
import threading
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from remusdb.disk.stream import LogStream
from remusdb.errors import DiskError, NoThread
from remusdb.names import SOCKET_PATH_MAX_BYTES
from remusdb.threads import start

PLUGIN = Path(__file__).with_name("nbd_plugin.py")
DEFAULT_MAX_BYTES = 256 << 20
RECEIVE_BYTES = 256 << 10
START_TIMEOUT_S = 10.0
JOIN_TIMEOUT_S = 2.0


class WriteLog:
    """One disk's write log. `start`, `take` and `close` are for one thread; the rest for any."""

    def __init__(
        self,
        folder: Path,
        disk: int,
        size: int,
        *,
        uid: int = -1,
        gid: int = -1,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        """`disk`: index in records; `size`: bytes; `uid`, `gid`: who may connect (QEMU's; -1: only us)."""
        if not 0 <= disk <= 255:  # a byte of each record
            raise DiskError(f"disk index {disk} is out of range")
        self.disk, self.size = disk, size
        self.nbd_socket = folder / f"disk{disk}.nbd"
        self._log_socket = folder / f"disk{disk}.log"
        self._position_file = folder / f"disk{disk}.pos"
        self._stderr_file = folder / f"disk{disk}.err"
        self._owner = (uid, gid)
        self._stream = LogStream(max_bytes)
        self._ready = threading.Event()
        self._closing = False
        self._nbdkit: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._counter: memoryview | None = None
        self._thread = threading.Thread(target=self._run, name=f"writelog-{disk}", daemon=True)

    # --- metrics ---

    @property
    def failed(self) -> str | None:
        """Why nothing more will come, or None."""
        return self._stream.failed

    @property
    def pending_bytes(self) -> int:
        """Bytes received and not yet taken."""
        return self._stream.pending_bytes

    @property
    def pressed(self) -> bool:
        """The bound is reached and the guest's writes wait: cut an epoch now."""
        return self._stream.pressed

    @property
    def filled(self) -> float:
        """How much of the bound is used: 1.0 and above is `pressed`."""
        return self._stream.pending_bytes / self._stream.max_bytes

    @property
    def nbdkit_pid(self) -> int:
        """0 when it never started."""
        return self._nbdkit.pid if self._nbdkit else 0

    # --- what the worker does ---

    def start(self) -> None:
        """Start nbdkit; when this returns, QEMU can connect to `nbd_socket`."""
        if len(bytes(self.nbd_socket)) > SOCKET_PATH_MAX_BYTES:
            raise DiskError(f"socket path too long: {self.nbd_socket}", hint="use a shorter run folder")
        if shutil.which("nbdkit") is None:
            raise DiskError("nbdkit is not installed", hint="apt install nbdkit nbdkit-plugin-python")
        try:
            self._map_counter()
            start(self._thread)
            self._await_nbdkit()
            self.nbd_socket.chmod(0o600)
            os.chown(self.nbd_socket, *self._owner)
        except (OSError, NoThread) as error:
            self.close()
            raise DiskError(
                f"cannot start the write log of disk {self.disk}: {error}", hint="try `nbdkit python --dump-plugin`"
            ) from error

    def _map_counter(self) -> None:
        self._remove_files()  # of a worker that was killed
        self._position_file.write_bytes(bytes(8))
        with self._position_file.open("r+b") as file:
            self._counter = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")

    def _await_nbdkit(self) -> None:
        if not self._ready.wait(START_TIMEOUT_S):
            raise OSError(f"nbdkit did not start within {START_TIMEOUT_S} s{self._last_words()}")
        if self.failed is not None:
            raise OSError(self.failed)

    def position(self) -> int:
        """Length of the log in bytes; of this very instant while the VM is stopped. Always between records."""
        if self._counter is None:
            raise DiskError("write log is not started")
        return self._counter[0]

    def cutting(self) -> AbstractContextManager[None]:
        """Enter before the VM is stopped, leave when it is: a full log must not hold up the stop."""
        return self._stream.unbounded()

    def take(self, upto: int, timeout_s: float) -> bytes:
        """Remove and return the raw records up to `upto` (a `position()`), waiting until they are here."""
        return self._stream.take(upto, timeout_s)

    def discard(self) -> None:
        """Throw away what is here and what comes: nobody will take it, and no write of the guest may wait for that."""
        self._stream.discard()

    def close(self) -> None:
        """End nbdkit, remove the files. Idempotent."""
        self._closing = True
        self._stream.fail("closed")
        self._end_nbdkit()
        if self._thread.is_alive():
            self._thread.join(JOIN_TIMEOUT_S)
        self._remove_files()

    # --- the receiving thread ---

    def _run(self) -> None:
        """Receive until the stream ends. nbdkit is started *here*: it dies with the thread that started it
        (PR_SET_PDEATHSIG is per thread), and this one lives exactly as long as the log is wanted."""
        try:
            self._connection = self._start_nbdkit()
            self._ready.set()
            self._receive(self._connection)
        except OSError as error:
            self._stream.fail(f"{error}{self._last_words()}")
        finally:
            self._ready.set()
            if self._connection is not None:
                self._connection.close()

    def _start_nbdkit(self) -> socket.socket:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, self._stderr_file.open("wb") as stderr:
            listener.bind(str(self._log_socket))
            self._log_socket.chmod(0o600)
            listener.listen(1)
            self._nbdkit = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr
            )
            return self._accept(listener)

    def _command(self) -> list[str]:
        return [
            "nbdkit", "--foreground", "--exit-with-parent", "--newstyle", "--threads", "1",
            "--unix", str(self.nbd_socket), "python", str(PLUGIN),
            f"size={self.size}", f"disk={self.disk}", f"log={self._log_socket}", f"position={self._position_file}",
        ]  # fmt: skip

    def _accept(self, listener: socket.socket) -> socket.socket:
        """The plugin's connection, or an error as soon as nbdkit ended without making one."""
        assert self._nbdkit is not None
        listener.settimeout(0.05)
        while not self._closing:
            with suppress(TimeoutError):
                return listener.accept()[0]
            if self._nbdkit.poll() is not None:
                raise OSError(f"nbdkit ended with status {self._nbdkit.returncode}")
        raise OSError("closed")

    def _receive(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        while chunk := connection.recv(RECEIVE_BYTES):
            self._stream.put(chunk)
            self._stream.wait_for_room()
            if self.failed is not None:
                return
        self._stream.fail(f"nbdkit ended the write log{self._last_words()}")

    # --- ends ---

    def _last_words(self) -> str:
        with suppress(OSError):
            lines = self._stderr_file.read_text(errors="replace").strip().splitlines()
            if lines:
                return f" ({lines[-1].strip()})"
        return ""

    def _end_nbdkit(self) -> None:
        """SIGKILL: it keeps nothing, and on SIGTERM it would wait for QEMU to disconnect first."""
        if self._nbdkit is not None:
            self._nbdkit.kill()
            self._nbdkit.wait()

    def _remove_files(self) -> None:
        for path in (self.nbd_socket, self._log_socket, self._position_file, self._stderr_file):
            path.unlink(missing_ok=True)
