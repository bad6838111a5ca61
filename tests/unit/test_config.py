# SPDX-License-Identifier: Apache-2.0
"""Configuration: what loads, and what each kind of mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from remusdb.config import AgentConfig, HostConfig, Primary, check_copy_patience, check_silence, load_agent, load_host
from remusdb.errors import ConfigError

HOST = """
[host]
name = "alpha"
[peers.beta]
address = "192.0.2.2"
[protection]
epoch_ms = 40
window = 2
[vms.db1]
epoch_ms = 100
"""


def host(tmp_path: Path, text: str) -> HostConfig:
    file = tmp_path / "host.toml"
    file.write_text(text)
    return load_host(file)


def agent(tmp_path: Path, text: str) -> AgentConfig:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    return load_agent(file)


def test_a_host_file_with_defaults(tmp_path: Path) -> None:
    config = host(tmp_path, HOST)
    assert config.host.run_dir == Path("/run/remusdb")
    assert config.peers["beta"].port == 7473
    assert config.tls.ca == Path("/etc/remusdb/tls/ca.pem")
    assert config.for_vm("other").epoch_ms == 40


def test_a_vm_overrides_and_inherits(tmp_path: Path) -> None:
    mine = host(tmp_path, HOST).for_vm("db1")
    assert (mine.epoch_ms, mine.window) == (100, 2)


def test_an_agent_file(tmp_path: Path) -> None:
    config = agent(tmp_path, '[agent]\nname = "beta"\n[network.bridges]\nbr0 = "br1"\n')
    assert config.failover.silence_ms == 500
    assert config.network.bridges == {"br0": "br1"}


@pytest.mark.parametrize(
    ("text", "key", "why"),
    [
        (HOST.replace("epoch_ms = 40", "epoch_ms = 10"), "protection.epoch_ms", ">= 25"),
        (HOST.replace("epoch_ms = 40", 'epoch_ms = "50"'), "protection.epoch_ms", "got `str`"),
        (HOST.replace("epoch_ms = 40", "epoch_ms = true"), "protection.epoch_ms", "got `bool`"),
        (HOST.replace("epoch_ms = 100", "epoch_ms = 5000"), "vms.db1.epoch_ms", "<= 1000"),
        (HOST.replace("window = 2", 'gate = "magic"'), "protection.gate", "magic"),
        (HOST.replace('"192.0.2.2"', "7"), "peers.beta.address", "str"),
        (HOST.replace('address = "192.0.2.2"', ""), "peers.beta.address", "is missing"),
        (HOST.replace("[peers.beta]", "[peers.alpha]"), "peers.alpha", "this host itself"),
        (HOST.replace('name = "alpha"', ""), "host.name", "is missing"),
        (HOST.replace('"alpha"', '"../etc"'), "host.name", "regex"),
        ("", "host", "is missing"),
        ("host = 3", "host", "expected a table"),
        (HOST.replace("[peers.beta]\naddress", "[peers]\nbeta"), "peers.beta", "expected a table, got a string"),
        (HOST + "[tls]\nca = 'relative.pem'", "tls.ca", "absolute"),
        (HOST + "[tls]\nca = 3", "tls.ca", "path"),
        (HOST.replace("window = 2", "heartbeat_ms = 200\nconnect_timeout_ms = 150"), "protection.heartbeat_ms", "less"),
        (HOST.replace("epoch_ms = 40", "vm_call_timeout_ms = 100\nepoch_ms = 100"), "protection.epoch_ms", "less"),
        (
            HOST.replace("window = 2", "connect_timeout_ms = 2000\ncopy_patience_ms = 2000"),
            "protection.connect_timeout_ms",
            "less",
        ),
        (HOST.replace("epoch_ms = 40", "libvirt_patience_ms = 4000"), "protection.libvirt_patience_ms", "at least"),
    ],
)
def test_a_mistake_names_file_and_key(tmp_path: Path, text: str, key: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        host(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'host.toml'}: {key}: "), caught.value
    assert why in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        (HOST.replace("epoch_ms = 40", "epoch = 40"), "protection.epoch", "protection.epoch_ms"),
        (HOST.replace("epoch_ms = 100", "windw = 1"), "vms.db1.windw", "vms.db1.window"),
        (HOST + "[protect]\n", "protect", "protection"),
        (HOST.replace('name = "alpha"', 'name = "alpha"\nrundir = "/run"'), "host.rundir", "host.run_dir"),
    ],
)
def test_an_unknown_key_is_told_the_nearest(tmp_path: Path, text: str, key: str, near: str) -> None:
    with pytest.raises(ConfigError, match="unknown key") as caught:
        host(tmp_path, text)
    assert f": {key}: " in str(caught.value)
    assert f"`{near}`" in caught.value.hint


def test_a_key_like_no_other_is_told_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        agent(tmp_path, '[agent]\nname = "b"\n[failover]\nzzz = 1\n')
    assert "silence_ms" in caught.value.hint


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_host(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="not TOML"):
        host(tmp_path, "[host")
    (tmp_path / "agent.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not TOML"):
        load_agent(tmp_path / "agent.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_host(tmp_path)


def test_an_agent_that_gives_a_copy_up_before_its_primary_is_refused(tmp_path: Path) -> None:
    check_copy_patience(30_000, 30_000)
    with pytest.raises(ConfigError, match="copy_patience_ms = 29999"):
        check_copy_patience(30_000, 29_999)
    with pytest.raises(ConfigError, match=r"failover.silence_ms: 5000 must be at most"):
        agent(tmp_path, '[agent]\nname = "b"\n[failover]\nsilence_ms = 5000\ncopy_patience_ms = 4000\n')


def test_a_heartbeat_too_slow_for_the_agent_is_refused() -> None:
    check_silence(100, 300)
    with pytest.raises(ConfigError, match="silence_ms = 299"):
        check_silence(100, 299)


def test_block_devices_of_the_backup(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('[agent]\nname = "beta"\n[disks.db1]\nvda = "/dev/vg0/db1"\n[disks."a & b"]\nvdb = "/dev/sdx"\n')
    assert load_agent(file).disks == {"db1": {"vda": Path("/dev/vg0/db1")}, "a & b": {"vdb": Path("/dev/sdx")}}
    for device in ('"vg0/db1"', "7", '["/dev/sdx"]'):
        file.write_text(f'[agent]\nname = "beta"\n[disks.db1]\nvda = {device}\n')
        with pytest.raises(ConfigError, match=r"agent\.toml: disks\.db1\.vda: .*block device"):
            load_agent(file)
    file.write_text('[agent]\nname = "beta"\n[disks]\nvda = "/dev/vg0/db1"\n')
    with pytest.raises(ConfigError, match=r"disks\.vda"):
        load_agent(file)


def test_the_primaries_of_an_agent(tmp_path: Path) -> None:
    text = '[agent]\nname = "beta"\n[primaries.alpha]\n[primaries.gamma]\nvms = ["db1", "a & b"]\n'
    found = agent(tmp_path, text).primaries
    assert found == {"alpha": Primary(), "gamma": Primary(vms=["db1", "a & b"])}
    assert agent(tmp_path, '[agent]\nname = "beta"\n').primaries == {}  # nobody may


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("[primaries.beta]", "primaries.beta: is this host itself"),
        ('[primaries.alpha]\nvms = ["../db1"]', "primaries.alpha.vms: a name has no slash"),
        ("[primaries.alpha]\nvms = [1]", "primaries.alpha.vms"),
        ("[primaries.alpha]\nvm = []", "did you mean `primaries.alpha.vms`"),
        ('primaries = ["alpha"]', "primaries"),
    ],
)
def test_primaries_that_cannot_be(tmp_path: Path, table: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        agent(tmp_path, f'{table}\n[agent]\nname = "beta"\n')
    assert why in f"{caught.value} {caught.value.hint}"
