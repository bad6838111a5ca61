# SPDX-License-Identifier: Apache-2.0
"""What `remusdb setup` does to a host, decided from what the host is like; done by a made-up host that keeps what it
is told. Whatever a host was like: after the steps nothing is left to do. Over a real SSH: tests/host/test_setup.py."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import pytest

from remusdb.config import load_agent, load_host
from remusdb.errors import RemusError, UsageError
from remusdb.setup.facts import ETC, RULE, UNITS, Facts, read_facts
from remusdb.setup.plan import Certificates, Plan, plan
from remusdb.setup.steps import Put, Run, Send, Step
from remusdb.setup.wish import Wish, check_wish, read_hosts

HOSTS = read_hosts(("alpha=192.0.2.1", "beta=2001:db8::2"))
DEB = Path("/somewhere/remusdb_1.2.3_amd64.deb")
WISH = Wish(HOSTS, DEB)
CERTS = Certificates(b"the CA\n", b"alpha's certificate\n", b"alpha's key\n")
BARE = Facts(codename="trixie", kernel="6.12.43+deb13-amd64")
FACT_OF = {
    f"{ETC}/tls/ca.pem": "ca",
    f"{ETC}/tls/cert.pem": "cert",
    f"{ETC}/tls/key.pem": "key",
    f"{ETC}/etcd/key.pem": "etcd_key",
    f"{ETC}/host.toml": "host_toml",
    f"{ETC}/agent.toml": "agent_toml",
    RULE: "rule",
    "/etc/nftables.conf": "nft_conf",
}
NFT = [
    {
        "chain": {
            "family": "inet",
            "table": "filter",
            "name": "output",
            "type": "filter",
            "hook": "output",
            "policy": "drop",
        }
    },
    {
        "chain": {
            "family": "inet",
            "table": "filter",
            "name": "input",
            "type": "filter",
            "hook": "input",
            "policy": "drop",
        }
    },
]


def after(facts: Facts, steps: list[Step]) -> Facts:
    """The host when the steps were done, as it would be looked at again."""
    found = dataclasses.asdict(facts)
    for step in steps:
        match step:
            case Put(path=path, content=content) if path in FACT_OF:
                found[FACT_OF[path]] = content.decode().strip()
            case Run(argv=("env", _, "apt-get", *_)):
                found |= {
                    "package": "installed 1.2.3",
                    "program": "/usr/bin/remusdb",
                    "hook": "yes",
                    "rule": "the rule",
                }
            case Run(argv=("systemctl", "enable", "--now", *units)):
                found["units"] = "\n".join(f"{unit.removesuffix('.service')} enabled active" for unit in units)
            case Run(argv=("firewall-cmd", "--permanent", option)):
                found["firewalld_rules"] += option.partition("=")[2] + "\n"
            case Run(argv=("ufw", "allow", "proto", protocol, "from", source, *_, port)):
                found["ufw"] += f"\n{port}/{protocol} ALLOW {source}"
            case Run(argv=("nft", "insert", "rule", family, table, chain, *_, comment)):
                rule = {"family": family, "table": table, "chain": chain, "comment": comment.strip('"')}
                objects = [*json.loads(found["nft_ruleset"])["nftables"], {"rule": rule}]
                found["nft_ruleset"] = json.dumps({"nftables": objects})
    return Facts(**found)


def whole(facts: Facts, wish: Wish = WISH, certificates: Certificates = CERTS) -> list[Step]:
    """The steps for host alpha, after which there is none."""
    first = plan("alpha", facts, wish, certificates)
    assert first.problems == [] and first.steps
    assert plan("alpha", after(facts, first.steps), wish, certificates) == Plan(notes=first.notes)
    return first.steps


def put(steps: list[Step]) -> dict[str, Put]:
    return {step.path: step for step in steps if isinstance(step, Put)}


def commands(steps: list[Step]) -> list[str]:
    return [" ".join(step.argv) for step in steps if isinstance(step, Run)]


def test_a_bare_host_gets_everything_in_this_order() -> None:
    steps = whole(BARE)
    assert isinstance(steps[0], Send) and steps[0].source == DEB
    ran = commands(steps)
    assert ran[0].endswith("apt-get install -y -q --no-install-recommends /run/remusdb-setup/remusdb.deb")
    assert ran[2].split()[-2:] == ["libvirtd.servic[e]", "virtqemud.servic[e]"], (
        "by name, one that is not there is an error"
    )
    assert ran[-1] == "systemctl enable --now " + " ".join(f"{unit}.service" for unit in UNITS) and len(ran) == 4
    assert isinstance(steps[-1], Run), "the daemons come last: all that they read is there"
    assert list(put(steps)) == [f"{ETC}/tls/{file}.pem" for file in ("ca", "cert", "key")] + [
        f"{ETC}/host.toml",
        f"{ETC}/agent.toml",
    ]


def test_a_key_is_for_root_alone_and_is_not_shown() -> None:
    (key,) = [step for path, step in put(whole(BARE)).items() if path.endswith("key.pem")]
    assert key.mode == 0o600 and key.content == CERTS.key
    assert "key" not in repr(CERTS) and "alpha's key" not in key.shown()


def test_what_is_written_is_what_the_daemons_load(tmp_path: Path) -> None:
    wish = dataclasses.replace(WISH, arbiter=("https://192.0.2.3:2379",), arbiter_tls=True)
    etcd = {"ca.pem": b"1", "cert.pem": b"2", "key.pem": b"3"}
    files = put(whole(BARE, wish, dataclasses.replace(CERTS, etcd=etcd)))
    for name in ("host.toml", "agent.toml"):
        (tmp_path / name).write_bytes(files[f"{ETC}/{name}"].content)
    host, agent = load_host(tmp_path / "host.toml"), load_agent(tmp_path / "agent.toml")
    assert host.host.name == agent.agent.name == "alpha"
    assert host.peers["beta"].address == "2001:db8::2" and list(agent.primaries) == ["beta"]
    for arbiter in (host.arbiter, agent.arbiter):
        assert arbiter is not None and arbiter.endpoints == ["https://192.0.2.3:2379"]
        assert {str(path) for path in (arbiter.ca, arbiter.cert, arbiter.key)} <= set(files)
    assert files[f"{ETC}/etcd/key.pem"].mode == 0o600


def test_only_what_is_missing_is_done() -> None:
    done = after(BARE, whole(BARE))
    (step,) = whole(dataclasses.replace(done, agent_toml=""))
    assert isinstance(step, Put) and step.path == f"{ETC}/agent.toml"
    stopped = done.units.replace("remusdb-host enabled active", "remusdb-host enabled inactive")
    assert len(whole(dataclasses.replace(done, units=stopped))) == 1
    newer = dataclasses.replace(WISH, deb=DEB.with_name("remusdb_1.2.4_amd64.deb"))
    upgrade = plan("alpha", done, newer, CERTS).steps
    assert [type(one) for one in upgrade] == [Send, Run, Run], "an upgrade touches no configuration, and not libvirt"


def test_debian_12_takes_its_qemu_from_backports() -> None:
    facts = dataclasses.replace(BARE, codename="bookworm", suites="bookworm\nbookworm-backports")
    assert "-t bookworm-backports" in commands(whole(facts))[0]
    told = plan("alpha", dataclasses.replace(facts, suites="bookworm"), WISH, CERTS)
    assert told.steps == [] and "bookworm-backports" in told.problems[0]


@pytest.mark.parametrize(
    ("there", "word"),
    [
        ({"codename": "noble"}, "this is noble"),
        ({"cert": "another CA's"}, "cert.pem"),
        ({"host_toml": '[host]\nname = "alpha"\n'}, "[peers.beta] is missing"),
        ({"agent_toml": '[agent]\nname = "gamma"\n[primaries.beta]\n'}, 'has not name = "alpha"'),
        ({"agent_toml": "name ="}, "is not TOML"),
    ],
)
def test_what_is_there_is_never_replaced(there: dict[str, str], word: str) -> None:
    told = plan("alpha", dataclasses.replace(BARE, **there), WISH, CERTS)
    assert told.steps == [] and any(word in problem for problem in told.problems), told


def test_certificates_that_nobody_here_has_are_not_replaced_by_new_ones() -> None:
    done = after(BARE, whole(BARE))
    told = plan("alpha", done, WISH, Certificates())
    assert told.steps == [] and "cert.pem" in told.problems[0]


def test_a_configuration_with_settings_of_ones_own_stays() -> None:
    own = '[host]\nname = "alpha"\n[peers.beta]\naddress = "10.0.0.2"\n[protection]\nepoch_ms = 100\n'
    assert f"{ETC}/host.toml" not in put(whole(dataclasses.replace(BARE, host_toml=own)))


def test_without_a_package_it_must_be_installed_already() -> None:
    wish = Wish(HOSTS)
    assert "--deb" in plan("alpha", BARE, wish, CERTS).problems[0]
    by_pip = dataclasses.replace(BARE, program="/usr/bin/remusdb", apparmor="yes")
    files = put(whole(by_pip, wish))
    assert "/run/remusdb/** rw," in files[RULE].content.decode(), "the package would have brought it"
    assert RULE not in put(whole(dataclasses.replace(by_pip, apparmor=""), wish))


def test_an_old_kernel_is_told_and_stops_nothing() -> None:
    told = plan("alpha", dataclasses.replace(BARE, kernel="6.1.0-40-amd64"), WISH, CERTS)
    assert "6.7" in told.notes[0] and told.steps


FIREWALLS = {
    "firewalld": {"firewalld": "yes"},
    "ufw": {"ufw": "Status: active\n\nTo Action From"},
    "nftables": {"nftables": "yes", "nft_ruleset": json.dumps({"nftables": NFT}), "nft_conf": "flush ruleset"},
}


@pytest.mark.parametrize("kind", FIREWALLS)
def test_a_firewall_that_runs_lets_the_other_host_reach_the_agent_and_nobody_else(kind: str) -> None:
    ran = [line for line in commands(whole(dataclasses.replace(BARE, **FIREWALLS[kind]))) if "7473" in line]
    assert ran and all("2001:db8::2" in line and "192.0.2.1" not in line for line in ran)
    assert {"tcp", "udp"} == {word for line in ran for word in ("tcp", "udp") if word in line}


@pytest.mark.parametrize("kind", FIREWALLS)
def test_a_host_that_was_set_up_before_heartbeats_had_datagrams_is_given_that_rule_alone(kind: str) -> None:
    facts = dataclasses.replace(BARE, **FIREWALLS[kind])
    steps = whole(facts)
    older = after(facts, [step for step in steps if not (isinstance(step, Run) and "udp" in " ".join(step.argv))])
    if kind == "nftables":
        older = dataclasses.replace(older, nft_conf='flush ruleset\n comment "remusdb agent for beta"')
    ran = [line for line in commands(plan("alpha", older, WISH, CERTS).steps) if "7473" in line]
    assert ran and all("udp" in line for line in ran)


def test_the_port_is_the_one_that_the_agent_listens_on() -> None:
    own = '[agent]\nname = "alpha"\nport = 9000\n[primaries.beta]\n'
    ran = commands(whole(dataclasses.replace(BARE, agent_toml=own, firewalld="yes")))
    assert any('port="9000"' in line for line in ran) and not any("7473" in line for line in ran)


def test_nftables_rule_stands_in_the_chain_that_drops_and_comes_back_at_the_next_boot() -> None:
    steps = whole(dataclasses.replace(BARE, **FIREWALLS["nftables"]))
    line, datagrams = [line for line in commands(steps) if line.startswith("nft ")]
    assert datagrams.startswith("nft insert rule inet filter input ip6 saddr 2001:db8::2 udp dport 7473 accept")
    assert line.startswith("nft insert rule inet filter input ip6 saddr 2001:db8::2 tcp dport 7473 accept")
    kept = put(steps)["/etc/nftables.conf"].content.decode()
    assert kept.startswith("flush ruleset\n") and line.removeprefix("nft ") in kept


@pytest.mark.parametrize(
    "facts",
    [{}, {"ufw": "Status: inactive"}, {"nftables": "yes", "nft_ruleset": json.dumps({"nftables": NFT[:1]})}],
)
def test_where_no_firewall_is_in_the_way_none_is_touched(facts: dict[str, str]) -> None:
    ran = commands(whole(dataclasses.replace(BARE, **facts)))
    assert not any(word in line for line in ran for word in ("firewall", "ufw", "nft"))


@pytest.mark.parametrize(
    "words",
    [
        ("alpha",),
        ("alpha=1.2.3.4",),
        ("alpha=1.2.3.4", "alpha=1.2.3.5"),
        ("alpha=1.2.3.4", "beta=1.2.3.4"),
        ("alpha=1.2.3.4;reboot", "beta=1.2.3.5"),
        ("al/pha=1.2.3.4", "beta=1.2.3.5"),
        ("ca=1.2.3.4", "beta=1.2.3.5"),
        ('a"b=1.2.3.4', "beta=1.2.3.5"),
    ],
)
def test_words_that_are_no_hosts(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        read_hosts(words)


@pytest.mark.parametrize(
    "wish",
    [
        Wish(HOSTS, Path("other_1_amd64.deb")),
        Wish(HOSTS, arbiter=("192.0.2.3",)),
        Wish(HOSTS, arbiter=('http://x"\n',)),
        Wish(HOSTS, arbiter_tls=True),
    ],
)
def test_wishes_that_cannot_be(wish: Wish) -> None:
    with pytest.raises(UsageError):
        check_wish(wish)


def test_a_hosts_answer_that_is_none() -> None:
    lines = dict.fromkeys(Facts.__dataclass_fields__, "")
    lines["kernel"] = base64.b64encode(b"6.12 \xff").decode()
    assert read_facts("\n".join(f"{name} {value}" for name, value in lines.items())).kernel == "6.12 \ufffd"
    for told in ("", "kernel %%%", "motd: welcome\n"):
        with pytest.raises(RemusError):
            read_facts(told)
