# SPDX-License-Identifier: Apache-2.0
"""A bug report's bundle: secrets are planted wherever it looks, and none may be in it; nor anything from elsewhere."""

from __future__ import annotations

import json
import os
import stat
import tarfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from remusdb.cli.main import cli
from remusdb.control.api import Checked, HostVms
from remusdb.control.status import VmStatus
from remusdb.diagnose import bundle as bundle_module
from remusdb.diagnose import collect as collect_module
from remusdb.diagnose import places
from remusdb.diagnose.bundle import Bundle
from remusdb.diagnose.collect import Places, collect, finish
from remusdb.diagnose.scrub import GONE, scrub, scrub_value, scrub_xml
from remusdb.errors import BadXml, PeerUnreachable, UsageError
from remusdb.preflight.checks import Check

KEY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7hUNTeR4bKqW"
PEM = f"-----BEGIN PRIVATE KEY-----\n{KEY}\nHUNTERshort==\n-----END PRIVATE KEY-----"
XML = """<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' type='kvm'><name>db1</name><uuid>u-1</uuid>
<title>HUNTER title</title><description>root has HUNTER</description>
<metadata><a:b xmlns:a='x:y' z='HUNTER'>HUNTER</a:b></metadata>
<sysinfo type='smbios'><oemStrings><entry>HUNTER</entry></oemStrings></sysinfo>
<os><cmdline>ro quiet db.password=HUNTER console=ttyS0</cmdline></os>
<devices><graphics type='vnc' passwd='HUNTER' port='5900'/><graphics type='spice' passwd="HUN&quot;TER"/>
<disk><auth username='admin'><secret type='iscsi' usage='HUNTER'/></auth><target dev='vda'/></disk></devices>
<qemu:commandline><qemu:arg value='-object'/><qemu:arg value='secret,id=s0,data=HUNTER'/>
<qemu:arg value='-spice'/><qemu:arg value='port=1,password=HUNTER,,HUNTER,x=1'/>
<qemu:arg value='-fw_cfg'/><qemu:arg value='name=opt/x,string=HUNTER'/><qemu:env name='X_TOKEN' value='tokens=HUNTER'/>
</qemu:commandline></domain>"""
LINES = [
    "password=HUNTER", "db_password = HUNTER HUNTER", "passwd: HUNTER and HUNTER", 'x {"token": "HUNTER", "vm": 1}',
    r'{\"apiKey\":\"HUNTER\"}', r"password=\"HUNTER HUNTER\" x", "PGPASSWORD='HUNTER HUNTER' psql",
    "Authorization: Bearer HUNTER", "curl -H 'authorization: Basic HUNTER'", "sent Bearer HUNTER",
    "https://root:HUN/TER@192.0.2.1:2379/x HUN".replace("HUN/TER", "HUNTER/HUNTER").removesuffix(" HUN"),
    "etcdctl --password HUNTER get", "run --client-secret 'HUNTER HUNTER'", "-vnc :0,password=HUNTER",
    '-object \'{"qom-type":"secret","id":"s0","data":"HUNTER","iv":"HUNTERiv"}\' \\'.replace(',"iv":"HUNTERiv"', ""),
    "-object secret,id=s0,data=HUNTER", "-smbios type=11,value=HUNTER", "-fw_cfg 'name=a,string=HUNTER'",
    "cookie: a=HUNTER; b=HUNTER", f"key {KEY}", "jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJIVU5URVIifQ.HUNTER",
    "encryption_key=HUNTER", "ssh-key: HUNTER", "'secret': 'HUNTER',", "pwd=HUNTER", "psk = HUNTER",
]  # fmt: skip
SECRETS = ("HUNTER", KEY, KEY[:40])


def harmless(text: str) -> bool:
    return not any(secret in text for secret in SECRETS)


@pytest.mark.parametrize("line", LINES)
def test_a_line_with_a_secret_loses_it_and_nothing_before_it(line: str) -> None:
    shown = scrub(f"one\n{line}\ntwo")
    assert harmless(shown), shown
    assert GONE in shown and shown.startswith("one\n") and shown.endswith("\ntwo")


def test_a_private_key_goes_whole_also_where_its_beginning_or_end_is_cut_off() -> None:
    assert scrub(f"a\n{PEM}\nb") == f"a\n{GONE}\nb"
    assert scrub(PEM[40:] + "\nb") == f"{GONE}\nb"
    assert scrub("a\n" + PEM[:-40]) == f"a\n{GONE}"
    assert harmless(scrub(json.dumps({"file": PEM})))


@pytest.mark.parametrize(
    "line",
    [
        "2026-11-28T09:41:39.123Z WARNING remusdb.host vm=db1 term=3 epoch=812: beta is silent; output is held",
        "E-PEER the host daemon is not running (nothing listens on /run/remusdb/host.sock)",
        "cannot connect to https://192.0.2.1:2379/v3/kv: no answer in time",
        "uuid 6ba7b810-9dad-11d1-80b4-00c04fd430c8 of /var/lib/libvirt/images/db1.qcow2",
    ],
)
def test_what_a_report_is_for_stays(line: str) -> None:
    assert scrub(line) == line


@pytest.mark.parametrize("text", ["a" * 400_000, "secret" * 60_000, "-" * 400_000, "://" * 100_000, "A1a/" * 90_000])
def test_no_line_takes_long(text: str) -> None:
    began = time.process_time()
    scrub(text)
    assert time.process_time() - began < 20, "each letter of a long line is looked at a bounded number of times"


def test_values_are_judged_by_their_keys_at_any_depth() -> None:
    told = {
        "arbiter": {"password": "HUNTER", "endpoints": ["https://a:HUNTER@b:2379"]},
        "tokens": ["HUNTER"],
        "term": 3,
    }
    shown = scrub_value(told)
    assert harmless(str(shown)) and shown["term"] == 3 and "b:2379" in shown["arbiter"]["endpoints"][0]
    assert scrub_value({"secret": ""}) == {"secret": ""}, "that there is none is worth knowing"


def test_a_definition_keeps_its_devices_alone() -> None:
    shown = scrub_xml(XML)
    assert harmless(shown), shown
    assert "<name>db1</name>" in shown and 'port="5900"' in shown and 'dev="vda"' in shown and "console=ttyS0" in shown
    with pytest.raises(BadXml):
        scrub_xml("<domain password='HUNTER'")


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """A host with a secret in each place."""
    state, etc, logs, programs = (tmp_path / name for name in ("state", "etc", "log", "bin"))
    for folder in (state / "vms", state / "host" / "history", etc / "tls", logs / "qemu", programs):
        folder.mkdir(parents=True)
    (state / "vms" / "db1.json").write_text(json.dumps({"vm": "db1", "reason": "x password=HUNTER", "token": "HUNTER"}))
    event = {"vm": "db1", "event": "held", "details": {"said": "token: HUNTER"}, "secret": "HUNTER"}
    (state / "host" / "history" / "db1.jsonl").write_text(json.dumps(event) + "\nno JSON, passwd=HUNTER\n")
    (etc / "host.toml").write_text('# HUNTER\n[arbiter]\nendpoints = ["https://u:HUNTER@h:1"]\npassword = "HUNTER"\n')
    (etc / "agent.toml").write_text('# HUNTER\n[agent\nname = "beta"\npassword = "HUNTER"\n')
    (etc / "tls" / "key.pem").write_text(PEM)
    (logs / "qemu" / "db1.log").write_text("\n".join(["began", *LINES, PEM, "ended"]))
    (logs / "qemu" / "db1.log.0").write_text("an older one, password=HUNTER")
    for other in ("db10.log", "db1.log.log"):  # of VMs db10 and db1.log
        (logs / "qemu" / other).write_text("HUNTER of another VM")
    (logs / "libvirtd.log").write_text("\n".join(LINES))
    (tmp_path / "virsh.xml").write_text(XML)
    (tmp_path / "journal").write_text("\n".join(LINES))
    for name in ("virsh", "journalctl", "qemu-system-x86_64", "nbdkit", "free", "df", "ip"):
        program = programs / name
        xml = f'case "$*" in *dumpxml*) exec /bin/cat {tmp_path}/virsh.xml ;; esac\n' if name == "virsh" else ""
        program.write_text(f"#!/bin/sh\n{xml}exec /bin/cat {tmp_path}/journal\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    return Places(state, etc, logs, etc / "absent")


def told() -> HostVms:
    return HostVms(vms=[VmStatus(vm="db1", reason="login with password=HUNTER failed", hint="token: HUNTER")])


def made(at: Places, folder: Path, name: str = "bundle") -> tuple[Path, dict[str, str]]:
    checked = Checked(checks=[Check("arbiter", False, "required", "https://u:HUNTER@h is silent", "passwd=HUNTER")])

    def silent() -> object:
        raise PeerUnreachable("no agent; it was asked with token=HUNTER")

    folder.mkdir(exist_ok=True)
    with Bundle(folder, name) as bundle:
        collect("db1", bundle, at, {"host": told, "check": lambda: checked, "agent": silent})
        finish(bundle, "db1")
    assert harmless(str(bundle.left_out))
    with tarfile.open(bundle.path) as tar:
        found = {}
        for entry in tar:
            assert (
                entry.isreg() and entry.mode == 0o600 and entry.name.startswith(f"{name}/") and ".." not in entry.name
            )
            file = tar.extractfile(entry)
            assert file is not None
            found[entry.name.removeprefix(f"{name}/")] = file.read().decode()
    return bundle.path, found


def test_there_is_no_secret_in_the_bundle_and_everything_else_is(at: Places, tmp_path: Path) -> None:
    path, found = made(at, tmp_path / "out")
    assert [name for name, text in found.items() if not harmless(name + text)] == []
    assert set(found) >= {
        "told/host.json", "told/check.json", "vms/db1.json", "history/host/db1.jsonl", "etc/host.toml",
        "etc/agent.toml", "etc/files", "vm/running.xml", "vm/inactive.xml", "logs/journal", "logs/kernel",
        "logs/qemu/db1.log", "logs/qemu/db1.log.0", "logs/libvirt/libvirtd.log", "versions/remusdb", "versions/qemu",
        "contents.json",
    }  # fmt: skip
    assert not {"logs/qemu/db10.log", "logs/qemu/db1.log.log"} & set(found)
    assert "began" in found["logs/qemu/db1.log"] and "ended" in found["logs/qemu/db1.log"]
    assert "h:1" in found["etc/host.toml"] and 'name = "beta"' in found["etc/agent.toml"]
    assert "tls/key.pem" in found["etc/files"], "that it is there, and whose it is"
    contents = json.loads(found["contents.json"])
    assert contents["left_out"]["told/agent.json"].startswith("E-PEER no agent")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_stands_in_the_place_of_a_file_is_not_followed(at: Places, tmp_path: Path) -> None:
    """Where QEMU's user may write: a link, a second name of another's file, a FIFO that nobody writes to."""
    shadow, group = tmp_path / "shadow", tmp_path / "group"
    shadow.write_text("OUTSIDE")
    group.write_text("OUTSIDE")
    qemu = at.libvirt_logs / "qemu"
    (qemu / "db1.log").unlink()
    (qemu / "db1.log").symlink_to(shadow)
    (qemu / "db1.log.1").hardlink_to(group)
    os.mkfifo(qemu / "db1.log.2")
    (at.state_dir / "agent").mkdir()
    (at.state_dir / "agent" / "vms").mkdir(mode=0o777)
    (at.state_dir / "agent" / "vms").chmod(0o777)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "db1.json").write_text("OUTSIDE")
    (at.state_dir / "agent").chmod(0o777)
    (at.state_dir / "agent" / "vms").rmdir()
    (at.state_dir / "agent" / "vms").symlink_to(elsewhere)
    _, found = made(at, tmp_path / "out")
    assert not any("OUTSIDE" in text for text in found.values())
    left_out = json.loads(found["contents.json"])["left_out"]
    assert {"logs/qemu/db1.log", "logs/qemu/db1.log.1", "logs/qemu/db1.log.2"} <= set(left_out)
    assert list(places.names(at.state_dir / "agent" / "vms")) == []


def test_a_line_whose_beginning_is_cut_off_is_not_read(tmp_path: Path) -> None:
    """What stands in it is perhaps a secret whose name was in front of the cut."""
    (tmp_path / "log").write_text("password=HUNTER\nnext\n")
    assert places.tail(tmp_path / "log", 9) == ("next\n", False)
    assert places.tail(tmp_path / "log", 99) == ("password=HUNTER\nnext\n", True)


def test_its_size_is_bounded(at: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (at.libvirt_logs / "qemu" / "db1.log").write_text("old\n" + "x y z\n" * 400 + "the end")
    monkeypatch.setattr(collect_module, "FILE_MAX_BYTES", 1000)
    _, found = made(at, tmp_path / "out")
    log = found["logs/qemu/db1.log"]
    assert len(log) < 1100 and log.endswith("the end") and "[its beginning is left out]" in log
    monkeypatch.setattr(bundle_module, "BUNDLE_MAX_BYTES", 3000)
    _, found = made(at, tmp_path / "out", "small")
    assert sum(map(len, found.values())) - len(found["contents.json"]) <= 3000
    assert "the bundle is full" in json.loads(found["contents.json"])["left_out"].values()


def test_a_bundle_is_there_whole_or_not_at_all(at: Places, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(TypeError), Bundle(out, "x") as bundle:
        bundle.add("a", None)  # type: ignore[arg-type]
    assert list(out.iterdir()) == []
    (out / "taken.tar.gz").symlink_to(tmp_path / "victim")
    with pytest.raises(UsageError, match="File exists"), Bundle(out, "taken"):
        pass
    assert not (tmp_path / "victim").exists()
    with pytest.raises(UsageError, match="No such file"):
        Bundle(tmp_path / "nowhere", "x")


def test_the_command_needs_no_daemon(at: Places, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    words = ["--run-dir", str(tmp_path), "diagnose", "db1", "--to", str(out), "--state-dir", str(at.state_dir)]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    (file,) = out.iterdir()
    assert done.stdout.startswith(f"{file} (") and "not in it: told/host.json: E-PEER" in done.stdout
    file.unlink()
    told = json.loads(CliRunner().invoke(cli, [*words, "--json"]).stdout)
    assert "vms/db1.json" in told["entries"] and "told/agent.json" in told["left_out"]
    assert told["size_bytes"] == Path(told["path"]).stat().st_size
    assert CliRunner().invoke(cli, [*words[:3], "../x"]).exit_code == 2
