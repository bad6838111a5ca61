# SPDX-License-Identifier: Apache-2.0
"""`remusdb host` and `remusdb agent`: the daemons, in the foreground."""

from __future__ import annotations

from pathlib import Path

import click

from remusdb import log
from remusdb.cli.asking import fill
from remusdb.config import Agent, Host, load_agent, load_host
from remusdb.errors import ConfigError
from remusdb.safefiles import make_folder, require_only_ours

# The imports of the daemons are late: they bring libvirt and numpy, which no other verb needs.


def _config(default: str) -> click.Option:
    return click.Option(
        ["--config", "file"], type=click.Path(path_type=Path), default=default, show_default=True, help="What to load."
    )


def _log_form() -> click.Option:
    return click.Option(
        ["--log", "form"],
        type=click.Choice(list(log.FORMS)),
        help="Form of the log, also of workers: text, or one line a record.  "
        "[default: REMUSDB_LOG, or `log` in the file, or text]",
    )


def _folders(of: Host | Agent) -> None:
    """Before anything else, so that the folders have the same modes whichever daemon is the first one."""
    for path, key in ((of.state_dir, "state_dir"), (of.image_dir, "image_dir"), (of.run_dir, "run_dir")):
        try:
            make_folder(path)
        except OSError as exc:
            raise ConfigError(f"{key} {path}: {exc.strerror}") from exc
        require_only_ours(path, key)


@click.command(params=[_config("/etc/remusdb/host.toml"), _log_form()])
@click.pass_context
def host(ctx: click.Context, file: Path, form: str | None) -> None:
    """Run the primary host's daemon in the foreground."""
    config = load_host(file)
    log.setup(debug=fill(ctx).debug, form=form, otherwise=config.host.log)
    _folders(config.host)
    from remusdb.host.daemon import HostDaemon

    HostDaemon(config).run()


@click.command(params=[_config("/etc/remusdb/agent.toml"), _log_form()])
@click.pass_context
def agent(ctx: click.Context, file: Path, form: str | None) -> None:
    """Run the backup agent in the foreground."""
    config = load_agent(file)
    log.setup(debug=fill(ctx).debug, form=form, otherwise=config.agent.log)
    _folders(config.agent)
    from remusdb_agents.backup.daemon import AgentDaemon

    AgentDaemon(config).run()
