# SPDX-License-Identifier: Apache-2.0
"""Commit protection is refused, in words, where it cannot be kept: by a plug gate, by an agent that resets nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from remusdb.config import Protection, load_host
from remusdb.core.lease import lease_until
from remusdb.core.messages import Welcome
from remusdb.core.patience import LEAST_DATAGRAMS_S, Patience
from remusdb.core.release.frames import FLOWS_MAX
from remusdb.errors import CannotProtect, ConfigError
from remusdb.net.factory import make_gate
from remusdb.net.tapgate import TapGate
from remusdb.worker.session import Session
from remusdb.worker.spec import release_settings

HOST = '[host]\nname = "a"\n[protection]\n'


def load(tmp_path: Path, settings: str) -> Protection:
    path = tmp_path / "host.toml"
    path.write_text(HOST + settings)
    return load_host(path).protection


def test_the_plug_gate_cannot_tell_frames_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the tap gate") as refused:
        load(tmp_path, 'release = "commit"\ngate = "plug"\n')
    assert 'gate = "auto" or "tap"' in refused.value.hint


def test_with_commit_protection_auto_is_the_tap_gate(tmp_path: Path) -> None:
    found = load(tmp_path, 'release = "commit"\nrelease_postgresql_ports = [5433]\nrelease_mark = 9\n')
    settings = release_settings(found, 1)
    assert settings is not None
    assert (settings.postgresql_ports, settings.mysql_ports, settings.mark) == ((5433,), (3306,), 9)
    assert isinstance(make_gate("auto", "vnet0", release=settings), TapGate)


def test_all_is_what_it_was(tmp_path: Path) -> None:
    assert load(tmp_path, "").release == "all"
    assert release_settings(load(tmp_path, ""), 1) is None


def test_all_interfaces_together_name_no_more_flows_than_commit_has_room_for(tmp_path: Path) -> None:
    found = load(tmp_path, 'release = "commit"\n')
    for nics in (1, 2, 3, 64):
        settings = release_settings(found, nics)
        assert settings is not None and settings.flows_max * nics <= FLOWS_MAX


@pytest.mark.parametrize(
    ("release", "resets", "refused"), [("commit", False, 1), ("commit", True, 0), ("all", False, 0)]
)
def test_an_agent_that_breaks_no_connections_is_refused(release: Any, resets: bool, refused: int) -> None:
    session: Any = SimpleNamespace(
        _epochs=SimpleNamespace(silence_s=0.0),
        _spec=SimpleNamespace(protection=Protection(release=release), peer=SimpleNamespace(name="b")),
    )
    welcome = Welcome("0.1", "b", 1, 0, False, 500, resets=resets)
    if refused:
        with pytest.raises(CannotProtect, match='does not know release = "commit"'):
            Session._require_resets(session, welcome)
    else:
        Session._require_resets(session, welcome)
        assert session._epochs.silence_s == 0.5


@pytest.mark.parametrize("silence_s", [0.2, 0.5, 60.0])
def test_the_lease_is_over_before_the_agent_may_take_over(silence_s: float) -> None:
    """It heard the epoch's COMMIT after the cut, and waits for its least limit from then on."""
    patience = Patience(silence_s)
    patience.begin(0.01)
    for at in range(1, 2000):  # as often as can be: then it waits for the shortest time
        patience.datagram(at / 100)
        patience.heard(at / 100)
    assert lease_until(0.0, silence_s) < patience.limit_s() == min(silence_s, LEAST_DATAGRAMS_S)
