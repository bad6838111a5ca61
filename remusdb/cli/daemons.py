# SPDX-License-Identifier: Apache-2.0
"""`remusdb host` and `remusdb agent`: the daemons, in the foreground."""

from __future__ import annotations

from pathlib import Path

import click

from remusdb import log
from remusdb.cli.asking import fill
from remusdb.config import load_agent, load_host

# The imports of the daemons are late: they bring libvirt and numpy, which no other verb needs.


def _config(default: str) -> click.Option:
    return click.Option(
        ["--config", "file"], type=click.Path(path_type=Path), default=default, show_default=True, help="What to load."
    )


@click.command(params=[_config("/etc/remusdb/host.toml")])
@click.pass_context
def host(ctx: click.Context, file: Path) -> None:
    """Run the primary host's daemon in the foreground."""
    config = load_host(file)
    log.setup(debug=fill(ctx).debug)
    from remusdb.host.daemon import HostDaemon

    HostDaemon(config).run()


@click.command(params=[_config("/etc/remusdb/agent.toml")])
@click.pass_context
def agent(ctx: click.Context, file: Path) -> None:
    """Run the backup agent in the foreground."""
    config = load_agent(file)
    log.setup(debug=fill(ctx).debug)
    from remusdb_agents.daemon import AgentDaemon

    AgentDaemon(config).run()
