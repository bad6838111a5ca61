# SPDX-License-Identifier: Apache-2.0
"""`remusdb setup` over a real SSH, on two hosts of the lab that have sshds, keys and ports of their own.

They have the product already (its package is installed in tests/dist), no systemd (`systemctl` notes what it is asked
for), and an empty /etc/remusdb.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from remusdb.config import load_agent, load_host
from remusdb.deadline import Deadline, poll_until
from tools.lab import Lab
from tools.lab.host import Host
from tools.lab.paths import REPO

PORT = 2222
SYSTEMCTL = """#!/bin/sh
mkdir -p /run/units
case "$1 $2" in
    "is-active --quiet") exit 3 ;;
    is-enabled*) [ ! -e "/run/units/$2.service" ] || echo enabled ;;
    is-active*) [ ! -e "/run/units/$2.service" ] || echo active ;;
    "enable --now") shift 2; for unit; do : > "/run/units/$unit"; done ;;
esac
"""
SSHD = """\
Port {port}
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
SetEnv PATH={path}
"""


@dataclass
class Site:
    """Two bare hosts with sshds, and the machine from which they are set up."""

    lab: Lab
    folder: Path

    def host(self, name: str) -> Host:
        return self.lab.host(name)

    def setup(self, *options: str, known: str = "known_hosts") -> subprocess.CompletedProcess[str]:
        named = [f"{name}={self.host(name).ip4}" for name in ("a", "b")]
        keys = ["--identity", str(self.folder / "key"), "--known-hosts", str(self.folder / known)]
        command = ["remusdb", "setup", *named, "--ssh-port", str(PORT), *keys, "--certs", str(self.folder / "certs")]
        return self.lab.client.run([*command, *options], check=False, timeout_s=120)

    def written(self) -> dict[str, tuple[int, int]]:
        """Each file below /etc/remusdb of both hosts, with its mode and the time of its last change."""
        roots = [self.host(name).path("/etc/remusdb") for name in ("a", "b")]
        files = [path for root in roots for path in root.rglob("*") if path.is_file()]
        return {
            str(path.relative_to(self.lab.folder)): (path.stat().st_mode & 0o777, path.stat().st_mtime_ns)
            for path in files
        }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Lab() as lab:
        made = Site(lab, tmp_path_factory.mktemp("setup"))
        keygen(made.folder / "key")
        lines = [_ssh(made, made.host(name)) for name in ("a", "b")]
        (made.folder / "known_hosts").write_text("".join(lines))
        (made.folder / "nobody").write_text("")
        (made.folder / "others").write_text(
            "".join(line.replace(line.split()[-1], lines[1 - at].split()[-1]) for at, line in enumerate(lines))
        )
        yield made


def keygen(path: Path) -> str:
    """A key pair without a passphrase; the public key."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=20)
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


def _ssh(site: Site, host: Host) -> str:
    """Start this host's sshd; its line for known_hosts."""
    folder = site.folder / host.name
    folder.mkdir()
    public = keygen(folder / "host_key")
    (folder / "authorized_keys").write_text((site.folder / "key.pub").read_text())
    path = f"{REPO / '.venv/bin'}:/usr/sbin:/usr/bin:/sbin:/bin"
    (folder / "sshd_config").write_text(SSHD.format(port=PORT, address=host.ip4, folder=folder, path=path))
    (folder / "shadow").write_text(
        "root:*:19000:0:99999:7:::\n"
    )  # root may be locked on this machine, which sshd obeys
    (folder / "systemctl").write_text(SYSTEMCTL)
    os.chmod(folder / "systemctl", 0o755)
    host.path("/run/sshd").mkdir()
    host.run(["mount", "--bind", str(folder / "shadow"), "/etc/shadow"])
    host.run(["mount", "--bind", str(folder / "systemctl"), os.path.realpath("/usr/bin/systemctl")])
    sshd = host.popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "sshd_config")], log=folder / "log")
    ready = poll_until(lambda: "listening" in (folder / "log").read_text(), Deadline.after(20), 0.05)
    assert ready and sshd.poll() is None, (folder / "log").read_text()
    return f"[{host.ip4}]:{PORT} {public}\n"


@pytest.mark.parametrize("known", ["nobody", "others"])
def test_a_host_whose_key_is_not_known_or_another_is_not_believed(site: Site, known: str) -> None:
    done = site.setup("--yes", known=known)
    assert done.returncode == 4 and "key" in done.stderr, done.stderr
    assert site.written() == {}


def test_a_dry_run_shows_each_step_and_does_none(site: Site) -> None:
    done = site.setup("--dry-run")
    assert done.returncode == 0, done.stderr
    for name in ("a", "b"):
        assert f"{name}: the agent's configuration: write /etc/remusdb/agent.toml" in done.stdout
    assert site.written() == {} and not (site.folder / "certs").exists()


def test_two_hosts_are_set_up_and_a_second_run_changes_nothing(site: Site) -> None:
    done = site.setup("--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a: /etc/remusdb/host.toml: good: host a, peers b" in done.stdout, "it ends with the check"
    made = site.written()
    for name, other in (("a", "b"), ("b", "a")):
        etc = site.host(name).path("/etc/remusdb")
        assert list(load_host(etc / "host.toml").peers) == [other] and list(
            load_agent(etc / "agent.toml").primaries
        ) == [other]
        assert (etc / "tls/key.pem").read_bytes() == (site.folder / "certs" / name / "key.pem").read_bytes()
        assert (etc / "tls").stat().st_mode & 0o777 == 0o700 and (etc / "tls/key.pem").stat().st_mode & 0o777 == 0o600
        units = sorted(path.name for path in site.host(name).path("/run/units").iterdir())
        assert units == ["remusdb-agent.service", "remusdb-evacuate.service", "remusdb-host.service"]
    assert not [file for file in made if "ca.key" in file or file.endswith(".partial")]
    again = site.setup("--yes")
    assert again.returncode == 0 and "a: nothing to do" in again.stdout and "b: nothing to do" in again.stdout
    assert site.written() == made


def test_a_configuration_that_is_there_is_not_replaced(site: Site) -> None:
    """Runs after the one above: a host that names another peer is told of, and nothing is done to either."""
    file = site.host("b").path("/etc/remusdb") / "host.toml"
    own = file.read_text()
    file.write_text(own.replace("[peers.a]", "[peers.other]"))
    (site.host("a").path("/run/units") / "remusdb-host.service").unlink()
    done = site.setup("--yes")
    assert done.returncode == 2 and "[peers.a] is missing" in done.stdout, done.stdout + done.stderr
    assert not (site.host("a").path("/run/units") / "remusdb-host.service").exists()
    file.write_text(own)
