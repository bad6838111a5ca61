# SPDX-License-Identifier: Apache-2.0
"""The .deb in a clean Debian 12 (with its backports) and a clean Debian 13: it installs, runs, and leaves no trace."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.version import Version

from remusdb import __version__
from remusdb.cli.main import cli
from remusdb.preflight import apparmor
from tools.dist import chroots, deb, needs, wheel
from tools.lab.paths import BUILD

pytestmark = pytest.mark.timeout(2400)  # the first time apt installs all that the package depends on
CODENAMES = [debian.codename for debian in needs.debians()]

LEFT_OUT = " -o ".join(f"-path {path}" for path in ("/proc", "/dev", "/tmp", "/var/lib/dpkg", "/var/log"))
LIST = f"find / -xdev \\( {LEFT_OUT} \\) -prune -o -print"
INSTALLED = f"""
say() {{ echo "== $1"; }}
({LIST}) | sort > /tmp/before
dpkg -i /remusdb.deb > /tmp/dpkg.log 2>&1 || {{ cat /tmp/dpkg.log; exit 1; }}
say version; remusdb --version
say check; remusdb check db1 2>&1 && exit 1 || echo "exit $?"
say certs; remusdb certs --out /tmp/certs --host alpha=192.0.2.1; ls /tmp/certs/alpha
say config; for file in /usr/share/doc/remusdb/examples/*.toml; do remusdb config check $file; done
say imports
cat > /tmp/imports.py << 'END'
import importlib, pkgutil, remusdb, remusdb_agents
for package in (remusdb, remusdb_agents):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith(("__main__", ".nbd_plugin", ".setup.ssh")) and ".console." not in found.name:
            importlib.import_module(found.name)
print(remusdb.__file__, remusdb_agents.__file__)
print("compiled" if remusdb.native.kernels.collect else "")
END
/usr/lib/remusdb/bin/python3 -P -W error /tmp/imports.py
say console; remusdb console 2>&1 && exit 1 || echo "exit $?"
say setup; remusdb setup a=192.0.2.1 b=192.0.2.2 2>&1 && exit 1 || echo "exit $?"
say versions
/usr/lib/remusdb/bin/python3 -P -c 'import importlib.metadata as m, sys
for name in sys.argv[1:]: print(name, m.version(name))' {" ".join(requirement.name for requirement in needs.required())}
say others
/usr/bin/python3 -c 'import remusdb' 2>&1 | tail -n 1
say man; zcat /usr/share/man/man1/remusdb.1.gz
say completion; COMP_WORDS="remusdb pro" COMP_CWORD=1 _REMUSDB_COMPLETE=bash_complete remusdb
ls /usr/share/bash-completion/completions/remusdb /usr/share/zsh/vendor-completions/_remusdb
say apparmor; cat /etc/apparmor.d/abstractions/libvirt-qemu.d/remusdb
say hook; cat /etc/libvirt/hooks/qemu.d/remusdb; stat -c %a /etc/libvirt/hooks/qemu.d/remusdb
say enabled; find /etc/systemd -name 'remusdb*'
say units; ls /usr/lib/systemd/system | grep remusdb
say modes; stat -c '%a %U %n' /etc/remusdb /etc/remusdb/tls /etc/remusdb/hooks.d
say compiled; find /usr/lib/remusdb/app -name '*.pyc' | grep -c .
say reinstall
mkdir -p /var/lib/remusdb/vms; echo state > /var/lib/remusdb/vms/db1.json; echo mine > /etc/remusdb/host.toml
dpkg -i /remusdb.deb > /tmp/dpkg.log 2>&1; cat /etc/remusdb/host.toml /var/lib/remusdb/vms/db1.json
say removed
dpkg --remove remusdb > /tmp/dpkg.log 2>&1
ls /usr/lib/remusdb 2>&1 || true
cat /etc/remusdb/host.toml /var/lib/remusdb/vms/db1.json; ls /etc/libvirt/hooks/qemu.d
say purged
dpkg --purge remusdb > /tmp/dpkg.log 2>&1
({LIST}) | sort > /tmp/after
diff /tmp/before /tmp/after || true
say end
"""
KEEPS_DISKS = """
dpkg -i /remusdb.deb > /dev/null 2>&1
mkdir -p /var/lib/remusdb/images/db1 /var/lib/remusdb/vms
echo disk > /var/lib/remusdb/images/db1/vda.raw; echo state > /var/lib/remusdb/vms/db1.json
dpkg --purge remusdb 2>&1
find /var/lib/remusdb -type f
"""
REFUSES = """
dpkg -i /remusdb.deb > /dev/null 2>&1
mkdir -p /run/remusdb
flock /run/remusdb/worker-db1.lock dpkg --remove remusdb 2>&1 && exit 1
dpkg-query -W -f '${db:Status-Status}\\n' remusdb
dpkg --remove remusdb > /dev/null
dpkg-query -W -f '${db:Status-Status}\\n' remusdb
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .deb of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    return deb.build(wheel.build(folder), folder)


@pytest.fixture(scope="module", params=CODENAMES)
def root(request: pytest.FixtureRequest) -> Path:
    (BUILD / "test").mkdir(parents=True, exist_ok=True)
    return chroots.ensure(request.param, BUILD / "test" / f"deb-{request.param}.log")


@pytest.fixture(scope="module")
def said(root: Path, package: Path) -> dict[str, str]:
    """What each part of INSTALLED printed."""
    done = chroots.run(root, package, INSTALLED)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    parts = re.split(r"^== (\w+)\n", done.stdout, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_it_runs(said: dict[str, str]) -> None:
    assert said["version"] == f"remusdb {__version__}\n"
    assert "exit 5" in said["check"] and "hint:" in said["check"], said["check"]  # no daemon runs there
    assert said["certs"].split()[-3:] == ["ca.pem", "cert.pem", "key.pem"]
    assert said["config"].count(": good: ") == 3
    files, native = said["imports"].splitlines()
    assert files.split() == [f"/usr/lib/remusdb/app/{name}/__init__.py" for name in ("remusdb", "remusdb_agents")]
    assert native == "compiled", "what is written in C is in the package, for this Python"
    assert int(said["compiled"]) > 100, "the units see /usr as read only: what is not compiled stays so"


def test_each_python_package_is_as_new_as_it_must_be(said: dict[str, str]) -> None:
    found = dict(line.split() for line in said["versions"].splitlines())
    for requirement in needs.required():
        assert Version(found[requirement.name]) in requirement.specifier, requirement


def test_setup_says_what_it_lacks_where_it_lacks_it(said: dict[str, str], root: Path) -> None:
    """It is for one machine, and paramiko is only recommended; Debian 12's package has it. There is no network."""
    assert ("apt install python3-paramiko" if "trixie" in root.name else "cannot be logged in to") in said["setup"]


def test_the_console_says_what_it_lacks(said: dict[str, str]) -> None:
    """What it needs is recommended, and not installed here."""
    assert "apt install python3-starlette" in said["console"] and "exit 1" in said["console"]


def test_no_other_program_sees_its_python(said: dict[str, str]) -> None:
    assert said["others"] == "ModuleNotFoundError: No module named 'remusdb'\n"


def test_man_page_completion_rule_and_hook_are_there(said: dict[str, str]) -> None:
    for verb in cli.commands:
        assert f"remusdb {verb} " in said["man"].replace("\\-", "-"), verb
    assert {"plain,protect"} <= set(said["completion"].split()) and said["completion"].count("/usr/share") == 2
    assert apparmor.CHANNEL_RULE in said["apparmor"] and apparmor.MONITOR_RULE in said["apparmor"]
    assert said["hook"].startswith("#!/bin/sh\n") and said["hook"].endswith("755\n")


def test_nothing_starts_by_itself(said: dict[str, str]) -> None:
    assert said["enabled"] == ""
    assert len(said["units"].split()) == 4
    assert said["modes"].splitlines()[1] == "700 root /etc/remusdb/tls"


def test_state_and_configuration_stay_until_the_purge_which_leaves_nothing(said: dict[str, str]) -> None:
    assert said["reinstall"] == "mine\nstate\n"
    assert "mine\nstate\nremusdb\n" in said["removed"] and "No such file" in said["removed"]
    assert said["purged"] == ""


def test_a_purge_does_not_take_the_disks_that_a_vm_may_run_from(root: Path, package: Path) -> None:
    done = chroots.run(root, package, KEEPS_DISKS)
    assert done.stdout.splitlines()[-1] == "/var/lib/remusdb/images/db1/vda.raw", done.stdout + done.stderr
    assert "holds disks of VMs" in done.stdout and "db1.json" not in done.stdout


def test_it_cannot_be_removed_while_it_protects_a_vm(root: Path, package: Path) -> None:
    done = chroots.run(root, package, REFUSES)
    assert "a VM of this host is protected" in done.stdout, done.stdout + done.stderr
    assert done.stdout.split()[-2:] == ["installed", "config-files"], done.stdout + done.stderr
