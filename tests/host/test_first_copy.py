# SPDX-License-Identifier: Apache-2.0
"""QEMU's own block copy through the base filter: what it names, and what the backup ends up with.

qemu-storage-daemon does the copy as a VM's QEMU does it, without a VM.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remusdb.core.blocks import BLOCK_BYTES, hash_table
from remusdb.core.messages import Base
from remusdb.core.writes import Kind, iter_records
from remusdb.disk.resync_filter import ResyncFilter
from remusdb.disk.writelog import WriteLog

SIZE = (64 << 20) + 4096
SECTOR = 512


class Qmp:
    """A QMP client for one thread."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rw")
        self._file.readline()
        self("qmp_capabilities")

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def __call__(self, command: str, **arguments: object) -> Any:
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while "return" not in (reply := json.loads(self._file.readline())):
            assert "error" not in reply, reply
        return reply["return"]


@contextmanager
def storage_daemon(folder: Path, source: Path, kind: str, target: Path, unmap: str) -> Iterator[Qmp]:
    monitor = folder / "qmp"
    file = {"driver": "file", "filename": str(source)}
    nbd = {"driver": "nbd", "server": {"type": "unix", "path": str(target)}, "export": ""}
    nodes = [
        {"driver": kind, "node-name": "source", "file": file, "discard": "unmap"},
        {"driver": "raw", "node-name": "target", "file": nbd, "discard": unmap},
    ]
    command = ["qemu-storage-daemon", "--chardev", f"socket,path={monitor},server=on,wait=off,id=qmp"]
    command += [part for node in nodes for part in ("--blockdev", json.dumps(node))] + ["--monitor", "qmp"]
    with subprocess.Popen(command) as process:
        try:
            while not monitor.exists():
                assert process.poll() is None
                time.sleep(0.02)
            with closing(Qmp(monitor)) as qmp:
                yield qmp
        finally:
            process.kill()


def first_copy(qmp: Qmp, log: WriteLog) -> bytes:
    """The records of a whole copy, as libvirt asks for it."""
    options = {"job-id": "copy", "device": "source", "target": "target", "sync": "full"}
    qmp("blockdev-mirror", **options, **{"copy-mode": "write-blocking"})
    raw, deadline = b"", time.monotonic() + 60
    while not qmp("query-block-jobs")[0]["ready"]:
        raw += log.take(log.position(), 5)
        assert time.monotonic() < deadline
    return raw + log.take(log.position(), 5)


def sources(folder: Path, kind: str) -> tuple[Path, bytes]:
    """A disk with data, holes, and for qcow2 a discarded range; its file and its content."""
    raw, disk = folder / "source.raw", folder / f"source.{kind}"
    with raw.open("wb") as file:
        for at in (0, 10 << 20, (25 << 20) + 5000, SIZE - 70_000):
            file.seek(at)
            file.write(os.urandom(70_000))
        file.truncate(SIZE)
    if kind == "qcow2":
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, disk], check=True)
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", "discard 10M 64k", disk], check=True, stdout=subprocess.DEVNULL)
    compare = folder / "compare.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", disk, compare], check=True)
    return disk, compare.read_bytes()


def applied(image: bytearray, raw: bytes) -> None:
    for one in iter_records(raw):
        image[one.offset : one.offset + one.length] = one.data if one.kind is Kind.WRITE else bytes(one.length)


@pytest.mark.parametrize("unmap", ["unmap", "ignore"])
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_copy_names_every_byte_and_onto_a_base_only_what_differs_is_sent(
    tmp_path: Path, kind: str, unmap: str
) -> None:
    disk, content = sources(tmp_path, kind)
    log = WriteLog(tmp_path, 0, SIZE)
    log.start()
    try:
        with storage_daemon(tmp_path, disk, kind, log.nbd_socket, unmap) as qmp:
            raw = first_copy(qmp, log)
    finally:
        log.close()
    named = np.zeros(SIZE // SECTOR, np.bool_)
    for one in iter_records(raw):
        assert one.offset % BLOCK_BYTES == 0
        named[one.offset // SECTOR : (one.offset + one.length) // SECTOR] = True
    assert named.all()

    image = bytearray(content)  # the base: the disk, but for a few blocks with something else
    for at in (0, 7 << 20, 30 << 20, SIZE - 100):
        image[at : at + 100] = os.urandom(100)
    sieve = ResyncFilter(0, SIZE, 99)
    sieve.take(Base(0, 0, hash_table(image, 99)))
    sent = sieve.reduce(raw)
    sent += sieve.rest()
    applied(image, sent)
    assert image == content
    assert len(sent) < 4 * BLOCK_BYTES
