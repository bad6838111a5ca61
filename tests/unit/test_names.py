# SPDX-License-Identifier: Apache-2.0
"""What VMs may be called, what their files and sockets are called, and whose QEMU a process is."""

from __future__ import annotations

from pathlib import Path

import pytest

from remusdb.errors import UsageError, VmError
from remusdb.host.libvirt_hook import hook_text
from remusdb.names import file_stem, name_of, require_name, socket_stem
from remusdb.state import StateStore
from remusdb.vm import process
from remusdb.vm.prepare import qmp_socket
from remusdb.worker.spec import LONGEST_FILE
from remusdb_agents.backup.registry import Registry
from tests.unit.test_libvirt_hook import ask

LONG = "openshift-cnv_" + "x" * 59
NAMES = [
    "pg",
    "my db",
    "a&b",
    'it\'s "quoted"',
    "a<b>c",
    "back\\slash",
    "tab\there",
    "Datenbänk",
    ".hidden",
    "..",
    "%41",
]
NAMES += [LONG, "y" * 247, "ä" * 123, "&" * 100, "%=" + "0" * 32]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_has_its_own_files(tmp_path: Path, name: str) -> None:
    """Found again by the store, by a listing of it, and by libvirt's hook, which is a shell script."""
    assert require_name(name) == name
    stem = file_stem(name)
    assert "/" not in stem and stem not in (".", "..") and len(f"{stem}-term12.live.xml.partial".encode()) <= 255
    assert name_of(stem) == name or stem.startswith("%=")
    store = StateStore(tmp_path)
    store.update(name, role="fenced", owner="hostb", term=3)
    assert store.names() == [name] and store.load(name).term == 3
    assert hook_text(tmp_path)
    for shell in ("sh", "bash"):
        assert "hostb owns this VM" in ask(tmp_path, name, shell=shell).stderr


def test_no_two_names_share_a_file() -> None:
    assert len({file_stem(name) for name in [*NAMES, LONG + "y", "y" * 246, "_hidden"]}) == len(NAMES) + 3


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "a\0b", "a\x07", "x" * 248, "ä" * 124, None, 7, "\ud800"])
def test_what_is_no_name(name: object) -> None:
    with pytest.raises(UsageError):
        require_name(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_socket_path_always_fits(name: str) -> None:
    folder = Path("/run/remusdb")
    for before, after in (("worker-", ".sock"), ("", LONGEST_FILE)):
        path = f"{folder}/{before}{socket_stem(folder, before, name, after)}{after}"
        assert len(path.encode()) <= 107
    assert socket_stem(folder, "worker-", "pg", ".sock") == "pg"


def test_a_file_that_tells_no_name_is_left_out(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.update("y" * 247, term=1)
    next((tmp_path / "vms").glob("*.json")).write_text("torn")
    store.update("pg", term=1)
    assert store.names() == ["pg"]


def line(*words: str) -> bytes:
    return b"\0".join(word.encode() for word in ("qemu", *words)) + b"\0"


@pytest.mark.parametrize("name", ["pg", "a&b", "a,b", "tab\there", 'q"uote'])
def test_the_process_is_found_by_the_status_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(process, "RUN_FOLDER", tmp_path)
    lines = {41: line("-name", f"guest={name.replace(',', ',,')},debug-threads=on"), 42: line("-name", "guest=other")}
    monkeypatch.setattr(process, "command_line", lambda pid: lines.get(pid, b""))
    assert process.qemu_pid(name) is None
    for pid, found in ((41, 41), (42, None), (43, None)):
        domain = f"<domstatus state='running' pid='{pid}'><x/></domstatus>"
        (tmp_path / f"{name}.xml").write_text(f"<!-- libvirt's -->\n{domain}")
        assert process.qemu_pid(name) == found
    (tmp_path / f"{name}.xml").write_text("torn")
    assert process.qemu_pid(name) is None


def test_paths_on_the_command_line() -> None:
    monitor = "socket,id=remusdb-qmp,path=/a,,b/remusdb-x.sock,server=on,wait=off"
    words = line("-name", "guest=pg", "-object", "memory-backend-ram,id=m", "-chardev", monitor)
    assert process.socket_of("remusdb-qmp", words) == Path("/a,b/remusdb-x.sock")
    assert process.socket_of("remusdb", words) is None
    assert process.socket_of("remusdb-qmp", line()) is None


def test_libvirts_folder_of_a_vm_is_told_by_libvirt_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by QEMU's command line, which QEMU itself can rewrite, nor by anything in the VM's definition."""
    monkeypatch.setattr(process, "RUN_FOLDER", tmp_path)
    assert process.domain_folder("pg") is None
    status = "<!-- libvirt's -->\n<domstatus pid='41'>{}<domain><metadata>{}</metadata></domain></domstatus>"
    folder = "<libDir path='{}'/>".format
    for private, in_domain, found in (
        (folder("/lib/domain-1-q&quot;u\\o"), folder("/elsewhere"), Path('/lib/domain-1-q"u\\o')),
        ("<vcpus/>", folder("/elsewhere"), None),
        (folder("lib/domain-1-pg"), "", None),
    ):
        (tmp_path / "pg.xml").write_text(status.format(private, in_domain))
        assert process.domain_folder("pg") == found
    (tmp_path / "pg.xml").write_text("torn")
    assert process.domain_folder("pg") is None


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\nb", ""])
def test_a_peer_names_no_path(name: str) -> None:
    registry = Registry.__new__(Registry)
    with pytest.raises(UsageError), registry.using(name):
        pytest.fail("made")
    with pytest.raises(UsageError):
        registry.standing(name)
    with pytest.raises(VmError, match="UUID"):
        qmp_socket("../x")
