# SPDX-License-Identifier: Apache-2.0
"""How many connections one peer may have whose session is not agreed on yet, and what becomes of their memory.

Owns the list of connections that are open. A connection that follows a VM is one a VM anyway (a newer one replaces it);
all others of a peer are bounded: by `SPARE`, and one more for each VM that it has here, since after a blip of the link
all of them come again at once. Over the bound the oldest goes that has said nothing yet, as with strangers
(`transport/crowd.py`); where all have spoken, the newcomer is refused and told so.

    let in ──first frame──▶ spoken ──WELCOME──▶ follows a VM
        └── over the bound: the oldest of these is closed
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Callable, Iterable

from remusdb.core.messages import Refuse, pack
from remusdb.core.wire import FrameType
from remusdb.errors import BadFrame
from remusdb.quietly import NOISY
from remusdb.transport.stream import FrameStream
from remusdb_agents.backup.replica import Replica

log = logging.getLogger(__name__)

SPARE = 16  # a `check`, the questions of a reconciler, and some VMs whose sessions begin
MOST = 512  # of all peers together, which are as many as there are certificates
REFUSED_S = 0.5  # so long a peer that is refused for this may take to read why
LASTED_S = 1.0  # a question takes little memory, and less time
TRIM_S = 1.0  # at most so often memory is given back: it takes some ms

Session = Callable[[FrameStream], None]


class Guests:
    """The connections of all peers, in the order in which they came."""

    def __init__(self, session: Session, replicas: Callable[[], Iterable[Replica]], most: int = MOST) -> None:
        """`session` serves a connection to its end; `replicas`: of the VMs that are kept here now."""
        self._most = most
        self._session = session
        self._replicas = replicas
        self._lock = threading.Lock()
        self._open: dict[FrameStream, None] = {}
        self._trim = _trimmer()

    def serve(self, stream: FrameStream) -> None:
        """Serve a connection in this thread, if there is room. BadFrame where there is none."""
        begun = time.monotonic()
        try:
            self._enter(stream)
            self._session(stream)
        finally:
            with self._lock:
                self._open.pop(stream, None)
            if time.monotonic() - begun > LASTED_S:
                self._trim()

    def _enter(self, stream: FrameStream) -> None:
        name, replicas = stream.peer_name, list(self._replicas())
        following = {replica.stream for replica in replicas}
        bound = SPARE + sum(replica.peer == name for replica in replicas)
        with self._lock:
            self._open[stream] = None
            waiting = [one for one in self._open if one not in following]
            mine = [one for one in waiting if one.peer_name == name]
            over = mine if len(mine) > bound else waiting if len(waiting) > self._most else []
            victim = next((one for one in over if one is not stream and not one.spoken), None)
            if victim is not None:
                del self._open[victim]
        if victim is not None:
            log.warning("host %s: a connection that said nothing is closed for another", victim.peer_name, extra=NOISY)
            victim.close()
        elif over:
            self._refuse(stream, len(over))

    def _refuse(self, stream: FrameStream, count: int) -> None:
        why = f"{count} connections of host {stream.peer_name} whose sessions are not agreed on are open"
        stream.send(FrameType.REFUSE, 0, 0, pack(Refuse(why, "try again in some seconds")))
        stream.close(drain_s=REFUSED_S)
        raise BadFrame(why)


def _trimmer() -> Callable[[], None]:
    """What gives the memory of sessions that ended back to the system: glibc keeps it otherwise (docs/facts.md)."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:  # another C library
        return _nothing
    last = -TRIM_S

    def give_back() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= TRIM_S:
            last = now
            trim(0)

    return give_back


def _nothing() -> None:
    return
