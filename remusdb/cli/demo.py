# SPDX-License-Identifier: Apache-2.0
"""`remusdb demo`: a failover to look at, on this machine alone. The lab that it needs is in the source tree."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import click

import remusdb
from remusdb.cli.say import say
from remusdb.errors import UsageError


@click.command()
@click.option(
    "--kill", type=click.Choice(["host", "qemu", "link"]), default="host", show_default=True, help="What dies."
)
@click.option(
    "--db", type=click.Choice(["postgresql", "mariadb"]), default="postgresql", show_default=True, help="In the VM."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the moment at which it dies.")
@click.option("--plain", is_flag=True, help="Lines in place of the picture; so it is without a terminal, too.")
@click.pass_context
def demo(ctx: click.Context, kill: str, db: str, seed: int, plain: bool) -> None:
    """Show a failover: two hosts, a database VM and its clients on this machine; one host dies under load.

    A living picture shows both hosts and the heartbeat of each client, and at the end what was lost: nothing. The
    hosts are namespaces of this machine, its own VMs and network are not touched. About two minutes with an image that
    is there, as root, on Debian 12 or 13, in a copy of remusdb's sources (it is `make demo` there): packages that it
    lacks are installed first. The picture needs a terminal of 80 columns and 24 lines.
    """
    tree = Path(remusdb.__file__).resolve().parents[1]
    if not (tree / "tools" / "demo.py").is_file() or not (tree / "Makefile").is_file():
        raise UsageError(
            "the demo needs remusdb's sources: the two hosts that it makes are not in the installed package",
            hint="in a copy of the sources, as root: make demo; what it shows is in docs/demo.cast there",
        )
    if os.geteuid() != 0:
        raise UsageError("the demo makes namespaces and VMs: run it as root", hint="sudo .venv/bin/remusdb demo")
    if shutil.which("make") is None:
        raise UsageError("the demo needs make", hint="apt install make")
    command = ["make", "-C", str(tree), "--no-print-directory", "demo", f"SEED={seed}", f"KILL={kill}", f"DB={db}"]
    done = subprocess.run([*command, *(["PLAIN=1"] if plain else [])], check=False)
    if done.returncode:
        say(f"remusdb: the demo failed; what its hosts logged is in {tree / 'build' / 'demo'}", err=True)
    ctx.exit(1 if done.returncode else 0)
