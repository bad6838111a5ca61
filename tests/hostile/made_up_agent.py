# SPDX-License-Identifier: Apache-2.0
"""The real agent, where only QEMU is made up: `python -m tests.hostile.made_up_agent CONFIG`.

Listener, sessions, terms, state, history, inbox, applier and replica disks are the product's. The standby takes the
pages of any RAM block and forgets them, after SLOW_MS of the environment; it proves whatever it is asked. While the
file NO_THREADS of the environment is there, no thread can be made.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from remusdb import log
from remusdb.config import load_agent
from remusdb.core.messages import Hello, Proof
from remusdb.core.pages import PagesDecoded
from remusdb.names import file_stem
from remusdb_agents.backup.applier import Applier
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.daemon import AgentDaemon
from remusdb_agents.backup.disks.base_copy import QuarantinedDisk
from remusdb_agents.backup.disks.block_hashes import Bases
from remusdb_agents.backup.disks.images import ReplicaImages
from remusdb_agents.backup.inbox import WholeEpoch

SLOW_S = float(os.environ.get("SLOW_MS", "0")) / 1000


class MadeUpStandby:
    """Takes pages and forgets them."""

    def apply(self, pages: PagesDecoded) -> None:
        """These pages are now so."""
        time.sleep(SLOW_S)


class MadeUpProver:
    """Every state is taken."""

    def prove(self, tell: Callable[[Proof], None]) -> None:
        """Say so at once."""
        tell(Proof("proven", time.time_ns(), 1, 1.0))


class MadeUpMachine:
    """As `remusdb_agents.backup.standby.machine.StandbyMachine`, without a QEMU."""

    def __init__(
        self,
        context: Context,
        hello: Hello,
        moved: Callable[[WholeEpoch], None],
        broken: Callable[[Exception], None],
        kept: Mapping[str, QuarantinedDisk],
    ) -> None:
        names = [disk.target for disk in hello.disks]
        folder = context.config.agent.image_dir / file_stem(hello.vm)
        self._images = ReplicaImages(folder, [disk.size for disk in hello.disks], names)
        self.bases = Bases(self._images, {i: kept[name] for i, name in enumerate(names) if name in kept}, broken)
        standby: Any = MadeUpStandby()
        self.applier = Applier(standby, self._images, moved, broken)
        self.prover = MadeUpProver()

    def wait_applied(self, timeout_s: float) -> bool:
        """As there."""
        return self.applier.wait_empty(timeout_s)

    def resume(self, stays: bool) -> None:
        """The VM runs, one may say."""
        self.applier.close()

    def announce(self, addresses: list[str]) -> None:
        """Nobody is told."""

    def close(self, *, keep_images: bool) -> None:
        """As there."""
        self.bases.close()
        self.applier.close()
        if keep_images:
            self._images.keep()
        else:
            self._images.remove()


def refuse_threads_while(file: Path) -> None:
    """No thread can be made while this file is there, as under a limit of processes."""
    start = threading.Thread.start

    def refusing(thread: threading.Thread) -> None:
        if file.exists():
            raise RuntimeError("can't start new thread")
        start(thread)

    mock.patch.object(threading.Thread, "start", refusing).start()


def main() -> None:
    """As `remusdb agent`."""
    if os.environ.get("NO_THREADS"):
        refuse_threads_while(Path(os.environ["NO_THREADS"]))
    config = load_agent(Path(sys.argv[1]))
    log.setup(debug=False)
    machine: Any = MadeUpMachine
    AgentDaemon(config, machine).run()


if __name__ == "__main__":
    main()
