# SPDX-License-Identifier: Apache-2.0
"""QEMU's own words, out of the log that libvirt keeps of them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from remusdb_agents.backup.standby.proof import HINT, hint_of
from remusdb_agents.backup.standby.qemu_log import MOST_BYTES_TOLD, QemuLog, complaints

START = """2026-11-27 09:33:06.300+0000: starting up libvirt version: 11.3.0, qemu version: 10.0.2
LC_ALL=C \\
PATH=/usr/local/sbin:/usr/local/bin \\
/usr/bin/qemu-system-x86_64 \\
-name guest=db1,debug-threads=on \\
-msg timestamp=on
char device redirected to /dev/pts/0 (label charserial0)
2026-11-27 09:33:06.720+0000: Domain id=4 is tainted: custom-device
2026-11-27T09:33:06.800000Z qemu-system-x86_64: warning: TCG doesn't support requested feature
"""
REFUSED = """2026-11-27T09:33:08.813253Z qemu-system-x86_64: Unknown savevm section or instance 'vmgenid' 0. Make sure
2026-11-27T09:33:08.813300Z qemu-system-x86_64: load of migration failed: Invalid argument
2026-11-27 09:33:10.442+0000: shutting down, reason=failed
"""
ASSERTED = """qemu-system-x86_64: error: failed to set MSR 0x10a to 0xc000069
qemu-system-x86_64: ../target/i386/kvm/kvm.c:3213: kvm_buf_set_msrs: Assertion `ret == cpu->kvm_msr_buf->nmsrs' failed.
"""


def test_only_complaints_of_qemu_are_told() -> None:
    assert complaints(REFUSED) == (
        "Unknown savevm section or instance 'vmgenid' 0. Make sure; load of migration failed: Invalid argument"
    )
    assert complaints(ASSERTED).startswith("error: failed to set MSR 0x10a to 0xc000069; ../target/i386")
    assert complaints(REFUSED.splitlines(True)[2]) == ""
    assert complaints("2026-11-27T09:33:08Z qemu-system-x86_64: Expected vmdescription section, but got 0\n") == ""
    assert complaints("2026-11-27T09:33:08Z qemu-system-x86_64: warning: old machine\n") == ""
    assert (
        complaints("2026-11-27T09:33:08Z qemu-system-x86_64: terminating on signal 15 from pid 5046 (libvirtd)\n") == ""
    )
    assert complaints("\x1b[2Jfoul\tplay") == "\ufffd[2Jfoul play"
    assert len(complaints("x" * 5000).encode()) == MOST_BYTES_TOLD


def test_what_was_said_before_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "db1.log"
    path.write_text(START + REFUSED)
    log = QemuLog("db1", tmp_path)
    assert log.words(0) == ""
    with path.open("a") as file:
        file.write(ASSERTED)
    assert "failed to set MSR" in log.words(0) and "vmgenid" not in log.words(0)
    path.write_text(REFUSED)  # the log daemon began a new file
    assert "vmgenid" in log.words(0)


def test_last_words_may_come_a_little_late(tmp_path: Path) -> None:
    log = QemuLog("db1", tmp_path)
    threading.Timer(0.1, (tmp_path / "db1.log").write_text, (REFUSED,)).start()
    assert "vmgenid" in log.words(5)
    assert QemuLog("none", tmp_path).words(0) == ""


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        (REFUSED, "lacks a device"),
        (ASSERTED, "CPU model"),
        ("Features 0x1c0010179bfffe7 unsupported. Allowed features: 0x179bfffe7", "virtio features"),
        ("something new", HINT),
    ],
)
def test_a_refusal_says_what_can_be_done(said: str, hint: str) -> None:
    assert hint in hint_of(complaints(said))
