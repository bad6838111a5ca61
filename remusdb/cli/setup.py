# SPDX-License-Identifier: Apache-2.0
"""`remusdb setup`: two hosts, from nothing to running daemons, over SSH."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from remusdb.cli.progress import Steps
from remusdb.cli.say import say
from remusdb.control import Progress
from remusdb.errors import ConfigError, UsageError
from remusdb.setup import perform
from remusdb.setup.facts import ETC, Facts
from remusdb.setup.plan import Certificates, Plan, plan
from remusdb.setup.wish import Named, Wish, check_wish, read_hosts

if TYPE_CHECKING:
    from remusdb.setup.ssh import Login, Remote

CHECK_S = 120.0
TLS_FILES = ("ca.pem", "cert.pem", "key.pem")
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("hosts", metavar="[NAME=ADDRESS]...", nargs=-1)
@click.option("--deb", type=FILE, help="The package to install: remusdb_VERSION_amd64.deb.")
@click.option(
    "--certs", type=FOLDER, default="remusdb-tls", show_default=True, help="Folder of the CA: kept off the hosts."
)
@click.option("--arbiter", metavar="URL", multiple=True, help="An etcd on a third machine; once for each endpoint.")
@click.option("--arbiter-tls", type=FOLDER, help="Folder with ca.pem, cert.pem and key.pem for that etcd.")
@click.option("--user", default="root", show_default=True, help="Who logs in; if not root, with sudo.")
@click.option("--ssh-port", type=click.IntRange(1, 65535), default=22, show_default=True, help="Of both hosts.")
@click.option("--identity", type=FILE, help="The key to log in with.")
@click.option("--known-hosts", type=FILE, help="Keys of the hosts, besides those that you know already.")
@click.option("--dry-run", is_flag=True, help="Show each step, and do none.")
@click.option("--yes", is_flag=True, help="Do not ask before anything is changed.")
def setup(
    hosts: tuple[str, ...],
    deb: Path | None,
    certs: Path,
    arbiter: tuple[str, ...],
    arbiter_tls: Path | None,
    user: str,
    ssh_port: int,
    identity: Path | None,
    known_hosts: Path | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Set hosts up over SSH: package, certificates, configurations, AppArmor, firewall, daemons.

    Each host gets what it lacks, and nothing that is there is replaced: run it again at any time. It ends with the
    check of every VM that runs there. Without hosts it asks for them.

    \b
    remusdb setup alpha=192.0.2.1 beta=192.0.2.2 --deb remusdb_0.1.0_amd64.deb
    """
    try:
        from remusdb.setup.ssh import Login  # late: paramiko is slow to import, and no daemon needs it
    except ImportError as exc:
        raise UsageError(
            f"`setup` needs paramiko: {exc}", hint="apt install python3-paramiko; or install remusdb[setup]"
        ) from exc

    wish = Wish(read_hosts(hosts or _asked()), deb, arbiter, arbiter_tls is not None)
    check_wish(wish)
    login = Login(user, ssh_port, identity, known_hosts)
    remotes: dict[str, Remote] = {}
    try:
        _connect(remotes, wish, login)
        _set_up(remotes, wish, certs, arbiter_tls, dry_run, yes)
    finally:
        for remote in remotes.values():
            remote.close()


def _asked() -> tuple[str, ...]:
    """A few answers, in place of arguments."""
    found = []
    for which in ("first", "second"):
        name = click.prompt(f"Name of the {which} host", err=True)
        found.append(f"{name}={click.prompt(f'Address at which the other one reaches {name}', err=True)}")
    return tuple(found)


def _connect(remotes: dict[str, Remote], wish: Wish, login: Login) -> None:
    from remusdb.setup.ssh import Remote

    for host in wish.hosts:
        remotes[host.name] = Remote(host.name, host.address, login)


def _set_up(
    remotes: dict[str, Remote], wish: Wish, folder: Path, arbiter_tls: Path | None, dry_run: bool, yes: bool
) -> None:
    facts = {host.name: perform.look(remotes[host.name]) for host in wish.hosts}
    made = {host.name: _certificates(folder, host.name, arbiter_tls) for host in wish.hosts}
    plans = {name: plan(name, facts[name], wish, made[name]) for name in remotes}
    missing = [host for host in wish.hosts if not made[host.name].key]
    _show(plans, missing, folder)
    if any(one.problems for one in plans.values()):
        raise ConfigError("nothing was changed", hint="each line with `!` says what to do first")
    if dry_run:
        return
    if any(one.steps for one in plans.values()):
        if not yes:
            click.confirm("Go on?", abort=True, err=True)
        if missing:
            _make_certificates(folder, missing)
            made = {host.name: _certificates(folder, host.name, arbiter_tls) for host in wish.hosts}
            plans = {name: plan(name, facts[name], wish, made[name]) for name in remotes}
        _perform(remotes, plans)
    for host in wish.hosts:
        _check(remotes[host.name], wish, facts[host.name])


def _perform(remotes: dict[str, Remote], plans: dict[str, Plan]) -> None:
    """Every step, host after host; how far it is."""
    total = sum(len(one.steps) for one in plans.values())
    done = 0
    with Steps() as steps:
        for name, one in plans.items():
            for step in one.steps:
                steps.say(f"{name}: {step.what}")
                steps.show(Progress(step="set up", done=done, total=total, unit="steps"))
                perform.do(remotes[name], step)
                done += 1
        steps.show(Progress(step="set up", done=done, total=total, unit="steps"))


def _show(plans: dict[str, Plan], missing: list[Named], folder: Path) -> None:
    if missing and not any(one.problems for one in plans.values()):
        say(f"here: make certificates for {', '.join(host.name for host in missing)} in {folder}")
    for name, one in plans.items():
        say(*(f"{name}: ! {problem}" for problem in one.problems))
        say(*(f"{name}: note: {note}" for note in one.notes))
        say(*(f"{name}: {step.what}: {step.shown()}" for step in one.steps))
        if not one.steps and not one.problems:
            say(f"{name}: nothing to do")


def _certificates(folder: Path, name: str, arbiter_tls: Path | None) -> Certificates:
    """What is in the folder for this host; empty where nothing was made yet."""
    own = folder / name
    try:
        etcd = {file: (arbiter_tls / file).read_bytes() for file in TLS_FILES} if arbiter_tls else {}
        if not (own / "key.pem").exists():
            return Certificates(etcd=etcd)
        ca, cert, key = ((own / file).read_bytes() for file in TLS_FILES)
        return Certificates(ca, cert, key, etcd)
    except OSError as exc:
        raise UsageError(f"{exc.filename}: {exc.strerror}") from exc


def _make_certificates(folder: Path, missing: list[Named]) -> None:
    from remusdb.transport.certs import make_ca_and_hosts  # late: cryptography is slow to import

    make_ca_and_hosts(folder, {host.name: [host.address] for host in missing})
    say(f"here: certificates are in {folder}; keep {folder / 'ca' / 'ca.key'} off the hosts")


def _check(remote: Remote, wish: Wish, facts: Facts) -> None:
    """Both configurations as the daemons load them, and each VM that runs there."""
    lines: list[str] = []
    for file in ("host.toml", "agent.toml"):
        lines += remote.must(f"remusdb config check {ETC}/{file}", CHECK_S).splitlines()
    (other, *_) = wish.others(remote.name)
    for vm in filter(None, facts.vms.splitlines()):
        _, told, complained = remote.run(shlex.join(["remusdb", "check", "--to", other.name, "--", vm]), CHECK_S)
        lines += [f"check {vm} --to {other.name}", *told.splitlines(), *complained.splitlines()]
    say(*(f"{remote.name}: {line}" for line in lines))
