# SPDX-License-Identifier: Apache-2.0
"""Which frames of one interface may leave at once, and which connections a takeover must break for that.

A frame is `early` when (a) its connection holds nothing in the gate, and (b) it carries on in order, and a reader says
that all of it is of a transaction that was open before it and is open after it. Everything else waits for its epoch.

`open_flows`, asked at a cut, names every connection of which a frame may leave early after that cut and before a later
one is committed. Such a frame finds nothing held, so no frame of its connection came since the cut that waits, and only
a frame that waits can open a connection: it was open at the cut. The whole argument: docs/guarantees.md.

A connection is known from its SYN on; one that is older, or of a client that uses TLS, by the server's marks alone.
What is not in order (sent again, overlapping, behind a gap) waits, and is read only as far as it carries on. Behind a
gap nothing is open until all that was sent behind it was seen again; a mark, which needs nothing before it, goes on.
"""

from __future__ import annotations

from typing import NamedTuple

from remusdb.core.release.frames import ACK, FIN, RST, SYN, URG, OpenFlow, Segment, flow_key, segment_of
from remusdb.core.release.mysql import MySqlReader
from remusdb.core.release.postgresql import PostgresReader
from remusdb.core.release.readers import MarkReader, Reader
from remusdb.core.release.settings import ReleaseSettings

_NUMBERS, _HALF = 1 << 32, 1 << 31
_MACS = slice(10, 22)  # destination, source; behind the virtio_net_hdr


class Flow:
    """A connection that is known. `held`: so many of its frames wait in the gate, or are released and not sent."""

    __slots__ = ("held", "last_ack", "macs", "most_seq", "next_seq", "readers", "seen", "vlan")

    def __init__(self, readers: list[Reader], next_seq: int) -> None:
        self.readers = readers
        self.next_seq = self.most_seq = next_seq  # of the next byte to be read; of what the guest sends next
        self.held = 0
        self.last_ack = 0
        self.macs = b""
        self.vlan: int | None = None
        self.seen = 0.0

    @property
    def open(self) -> bool:
        """Whether a transaction is open, and nothing is missing."""
        return self.next_seq == self.most_seq and any(reader.open for reader in self.readers)


class Judged(NamedTuple):
    """Of one frame. `flow`: whose it is, if that is known: `left` is called for it once a held frame has left."""

    flow: Flow | None
    early: bool


class Counters(NamedTuple):
    """Since the start: frames that might leave early, and those that wait; connections that are known, and open."""

    early: int
    held: int
    flows: int
    open: int


_UNKNOWN = Judged(None, False)


class CommitRule:
    """Of one interface. `judge` sees each of its frames, in order."""

    def __init__(self, settings: ReleaseSettings) -> None:
        self._settings = settings
        self._flows: dict[tuple[bytes, int | None], Flow] = {}
        self._early = self._held = 0

    def judge(self, frame: bytes, now: float) -> Judged:
        """Whether the frame may leave at once. `now`: of a clock that never goes back, in seconds."""
        segment = segment_of(frame)
        judged = _UNKNOWN if segment is None else self._of(segment, frame, now)
        if judged.early:
            self._early += 1
        else:
            self._held += 1
            if judged.flow is not None:
                judged.flow.held += 1
        return judged

    def left(self, flow: Flow, count: int = 1) -> None:
        """So many held frames of it have left the gate, or were dropped."""
        flow.held -= count

    def open_flows(self) -> list[OpenFlow]:
        """The connections that are open now. At most as many as are known."""
        return [_open_flow(key, flow) for (key, _vlan), flow in self._flows.items() if flow.open]

    def counters(self) -> Counters:
        """For status."""
        return Counters(self._early, self._held, len(self._flows), sum(flow.open for flow in self._flows.values()))

    def forget_all(self) -> None:
        """The gate was opened, or what it held was dropped: connections are known again from their next SYN on."""
        self._flows.clear()

    def _of(self, segment: Segment, frame: bytes, now: float) -> Judged:
        flow = self._flows.get((segment.key, segment.vlan))
        if segment.flags & (SYN | FIN | RST | URG | ACK) != ACK:
            return self._at_an_end(segment, flow)
        if flow is None:
            if not self._settings.mark or segment.dscp != self._settings.mark or not self._room():
                return _UNKNOWN
            flow = self._flows[segment.key, segment.vlan] = Flow([MarkReader(self._settings.mark)], segment.seq)
        flow.seen, flow.macs, flow.vlan = now, frame[_MACS], segment.vlan
        flow.last_ack = segment.ack
        inside = self._read(flow, segment, frame)
        return Judged(flow, inside and not flow.held)

    def _read(self, flow: Flow, segment: Segment, frame: bytes) -> bool:
        """Whether what it carries is of an open transaction. Reads what carries on, all the same."""
        end = (segment.seq + segment.size) % _NUMBERS
        known = (flow.next_seq - segment.seq) % _NUMBERS
        in_order = not known and flow.next_seq == flow.most_seq
        if 0 < (end - flow.most_seq) % _NUMBERS < _HALF:
            flow.most_seq = end
        if known >= _HALF:
            return self._gap(flow)
        if known and known >= segment.size:
            return False  # all of it was sent before
        payload = frame[segment.at + known : segment.at + segment.size]
        flow.next_seq = end
        inside = False
        for reader in flow.readers:
            inside = reader.read(payload, segment.dscp) or inside
        return inside and in_order

    def _gap(self, flow: Flow) -> bool:
        """Something before it is missing: never early. A reader of marks goes on, closed; others wait for it."""
        if any(isinstance(reader, MarkReader) for reader in flow.readers):
            flow.readers, flow.next_seq = [MarkReader(self._settings.mark)], flow.most_seq
        return False

    def _at_an_end(self, segment: Segment, flow: Flow | None) -> Judged:
        """The first or the last of a connection waits, and what is urgent; nothing is known of it before and after."""
        self._flows.pop((segment.key, segment.vlan), None)
        greets = segment.flags & (SYN | ACK | FIN | RST | URG) == SYN | ACK
        readers = self._readers(segment.port) if greets and not segment.size else []
        if readers and self._room():
            # What an older connection of the same ends holds leaves before what this one is answered.
            flow = self._flows[segment.key, segment.vlan] = Flow(readers, (segment.seq + 1) % _NUMBERS)
        return Judged(flow, False)

    def _readers(self, port: int) -> list[Reader]:
        readers: list[Reader] = []
        if port in self._settings.postgresql_ports:
            readers.append(PostgresReader())
        elif port in self._settings.mysql_ports:
            readers.append(MySqlReader())
        if self._settings.mark:
            readers.append(MarkReader(self._settings.mark))
        return readers

    def _room(self) -> bool:
        """Room for one more: the one that was silent for longest is forgotten, of those that are not open."""
        if len(self._flows) < self._settings.flows_max:
            return True
        closed = [(flow.seen, key) for key, flow in self._flows.items() if not flow.open]
        if not closed:
            return False
        del self._flows[min(closed)[1]]
        return True


def _open_flow(key: bytes, flow: Flow) -> OpenFlow:
    return OpenFlow(flow_key(key), flow.macs[6:], flow.macs[:6], flow.vlan, flow.most_seq, flow.last_ack)
