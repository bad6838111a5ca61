# SPDX-License-Identifier: Apache-2.0
"""`remusdb config`: look at a configuration file as the daemons do."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from remusdb.cli.asking import json_option
from remusdb.cli.say import print_json, say
from remusdb.config import AgentConfig, HostConfig, load_agent, load_host
from remusdb.console.config import Console, load_console
from remusdb.tomlstruct import read_toml


@click.group()
def config() -> None:
    """Look at configuration files."""


@config.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def check_file(file: Path, as_json: bool) -> None:
    """Load FILE (host.toml, agent.toml, console.toml) as its daemon would; with --json, show every value in effect."""
    tables = read_toml(file)
    loaded: HostConfig | AgentConfig | Console
    if "console" in tables:
        loaded = load_console(file, required=True)
    else:
        loaded = load_agent(file) if "agent" in tables else load_host(file)
    if as_json:
        print_json(msgspec.to_builtins(loaded, enc_hook=str))
    else:
        say(f"{file}: good: {_summary(loaded)}")


def _summary(loaded: HostConfig | AgentConfig | Console) -> str:
    if isinstance(loaded, Console):
        who = "a certificate" if loaded.client_ca else "a token" if loaded.token_file else "nothing, and only shows"
        return f"console on {loaded.listen} port {loaded.port}, asks for {who}"
    if isinstance(loaded, HostConfig):
        peers = ", ".join(loaded.peers) or "none"
        protection = loaded.protection
        when = "on demand" if protection.epoch_mode == "on-demand" else f"every {protection.epoch_ms} ms"
        return f"host {loaded.host.name}, peers {peers}, epochs {when}"
    when = f"after {loaded.failover.silence_ms} ms of silence" if loaded.failover.automatic else "only when asked"
    primaries = ", ".join(loaded.primaries) or "nobody: name the hosts that may, each as [primaries.HOST]"
    return f"agent {loaded.agent.name} on port {loaded.agent.port}, standbys for {primaries}; takes over {when}"
