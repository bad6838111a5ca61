# SPDX-License-Identifier: Apache-2.0
"""`remusdb certs`: a small CA, and a certificate for each host."""

from __future__ import annotations

from pathlib import Path

import click

from remusdb.cli.say import say
from remusdb.errors import UsageError


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write to.")
@click.option("--host", "hosts", metavar="NAME=ADDR[,ADDR]", multiple=True, required=True, help="Once for each host.")
@click.option("--overwrite", is_flag=True, help="Replace the certificates of hosts that have some.")
def certs(out: Path, hosts: tuple[str, ...], overwrite: bool) -> None:
    """Make certificates for the hosts (a later run adds hosts to the same CA).

    \b
    remusdb certs --out ./tls --host alpha=192.0.2.1 --host beta=192.0.2.2,beta.example
    """
    from remusdb.transport.certs import make_ca_and_hosts  # late: cryptography is slow to import

    made = make_ca_and_hosts(out, dict(_host(text) for text in hosts), overwrite=overwrite)
    for folder in made:
        say(f"{folder}/  ->  /etc/remusdb/tls/ on {folder.name}")
    say(f"Keep {out / 'ca' / 'ca.key'} off both hosts.", err=True)


def _host(text: str) -> tuple[str, list[str]]:
    name, equals, addresses = text.partition("=")
    found = [address.strip() for address in addresses.split(",") if address.strip()]
    if not name or not equals or not found:
        raise UsageError(f"--host {text}: expected NAME=ADDR[,ADDR]")
    return name, found
