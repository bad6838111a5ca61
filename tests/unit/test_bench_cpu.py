# SPDX-License-Identifier: Apache-2.0
"""Which program of a host a process is, by its command line."""

from __future__ import annotations

import pytest

from tools.bench.cpu import program


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("/v/bin/python -P -m remusdb.worker 9 /run/remusdb/worker-pg.sock", "worker"),
        ("/v/bin/python -P -m remusdb.net.tapgate_process --max-bytes 1", "gate"),
        ("/v/bin/remusdb agent --config /etc/remusdb/agent.toml", "agent"),
        ("/v/bin/remusdb host --config /etc/remusdb/host.toml", "daemon"),
        ("/usr/bin/qemu-system-x86_64 -name guest=worker", "qemu"),
        ("/usr/sbin/libvirtd -d", "libvirt"),
        ("etcd", "other"),
    ],
)
def test_a_process_is_named_by_what_it_runs(command: str, name: str) -> None:
    assert program(command) == name
