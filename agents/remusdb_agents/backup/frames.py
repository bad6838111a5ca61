# SPDX-License-Identifier: Apache-2.0
"""One frame of a session, as its receiving thread takes it: what is no word to be decided on goes where it belongs.

Invariant: a frame of a connection that does not feed the standby any more changes nothing, whichever thread has it in
its hands; the primary was told why before that connection is closed.
"""

from __future__ import annotations

from remusdb.core.backup_events import Bye, Committed, SwitchoverAsked
from remusdb.core.messages import Notice, Taken, pack, unpack
from remusdb.core.standby import Phase
from remusdb.core.wire import BULK, Frame, FrameType
from remusdb.errors import BadFrame
from remusdb.transport.stream import FrameStream
from remusdb_agents.backup.catch_up import now_ns
from remusdb_agents.backup.desk import Desk
from remusdb_agents.backup.holding import Holding


def take(here: Holding, desk: Desk, stream: FrameStream, frame: Frame) -> bool:
    """False when the session is over. BadFrame, Hopeless, TornCopy, PeerUnreachable."""
    core, line = here.core, here.lines.number(stream)
    with desk.turn:
        feeds = core.follows(line, frame.term)
        machine, inbox, committed = here.machine, here.inbox, core.now.standby.committed
    if not feeds or machine is None:
        with desk.turn:  # who gives the replica up tells the primary so, before the connection is closed
            desk.turn.wait_for(lambda: core.phase is not Phase.ENDING)
        return False
    if frame.type in BULK and frame.epoch == 0:
        if committed:  # memory is exactly a committed epoch by now, and is only moved by the next
            raise BadFrame("a frame of the initial sync came after its end")
        taken = here.seeding.take(frame, lambda: line == core.now.line, machine.applier.apply)
        if taken is None:
            return False
        stream.send(FrameType.TAKEN, frame.term, 0, pack(Taken(taken)))
    elif frame.type in BULK:
        if here.references.concern(frame):
            with here.hearing.not_reading():  # its disks may take their time
                with_pages = here.references.follow(frame, machine.images)
            inbox.add(with_pages, len(frame.payload))
        else:
            inbox.add(frame)
    elif frame.type is FrameType.COMMIT:
        whole = inbox.close(frame, now_ns())
        crowded = machine.applier.crowded_with(whole)
        desk.post(Committed(line, whole.term, whole.epoch, tuple(whole.addresses), whole.stays, crowded, whole))
    elif frame.type is FrameType.BYE:
        notice = unpack(Notice, frame.payload)
        desk.post(Bye(line, notice.reason, notice.forget))
        return False
    elif frame.type is FrameType.TAKEOVER:
        desk.post(SwitchoverAsked(line, unpack(Notice, frame.payload).reason))
    return True
