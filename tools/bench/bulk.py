# SPDX-License-Identifier: Apache-2.0
"""Bytes through one TCP connection between the VM and the client, MB/s.

    python -m tools.bench.bulk ADDRESS out|in BYTES      the client's end: waits for the VM, says how fast it was

PostgreSQL in the VM starts the other end, with COPY ... TO PROGRAM.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from typing import Literal

from tools.bench.pgbench import Pgbench
from tools.lab import Lab

PORT, CHUNK, ANSWER_S = 9377, 1 << 18, 60.0
MEGABYTE = 1_000_000
LISTENS = "listens"

Way = Literal["out", "in"]
WAYS: tuple[Way, ...] = ("out", "in")  # from the VM to the client, and back


def measure(lab: Lab, pgbench: Pgbench, way: Way, megabytes: int) -> float:
    """MB/s. Raises RuntimeError when either end fails."""
    size = megabytes * MEGABYTE
    command = [sys.executable, "-m", "tools.bench.bulk", lab.client.ip4, way, str(size)]
    with lab.client.popen(command, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        if client.stdout.readline().strip() != LISTENS:
            raise RuntimeError("the client does not listen")
        there = f"/dev/tcp/{lab.client.ip4}/{PORT}"
        program = f"head -c {size} /dev/zero > {there}" if way == "out" else f"cat < {there} > /dev/null"
        pgbench.once(f"COPY (SELECT 1) TO PROGRAM 'bash -c \"{program}\"';")
        said = client.stdout.readline()
    if client.returncode or not said:
        raise RuntimeError(f"bulk {way}: exit {client.returncode}")
    return round(float(said), 1)


def main(address: str, way: str, size: int) -> None:
    """Takes one connection, and moves `size` bytes."""
    with socket.create_server((address, PORT)) as server:
        server.settimeout(ANSWER_S)
        print(LISTENS, flush=True)
        link, _ = server.accept()
    with link:
        link.settimeout(ANSWER_S)
        began, left, chunk = time.monotonic(), size, bytearray(CHUNK)
        while left and way == "out":
            got = link.recv_into(chunk)
            if not got:
                raise SystemExit(f"{left} of {size} bytes did not come")
            left -= got
        while left and way == "in":
            left -= link.send(chunk[:left])
        link.shutdown(socket.SHUT_WR)
        while link.recv(CHUNK):  # until the VM has all of it
            pass
        took_s = time.monotonic() - began
    print(size / MEGABYTE / took_s, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
