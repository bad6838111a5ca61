# SPDX-License-Identifier: Apache-2.0
"""Frames over a TLS link: `send` from any thread, `receive` from one, both at once.

Owns: the link and the frame that is being received. Invariant: a frame is handed out only if its header made sense
and its checksum holds; after the first one that does not, the stream is closed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import numpy as np

from remusdb.core.wire import HEADER_BYTES, Frame, FrameType, Header, check_payload, decode_header, encode_header
from remusdb.deadline import Deadline
from remusdb.errors import BadFrame
from remusdb.transport.link import TlsLink

_SMALL = 16 * 1024  # bytes: up to here, header and payload are joined into one TLS record

Payload = bytes | memoryview
Outgoing = tuple[FrameType, int, int, Payload]  # type, term, epoch, payload


class FrameStream:
    """One session's frames. Errors end it: PeerUnreachable, PeerRefused (TLS), BadFrame (the protocol)."""

    def __init__(self, link: TlsLink) -> None:
        self._link = link
        self._header_bytes = memoryview(bytearray(HEADER_BYTES))
        self._header: Header | None = None  # of the frame whose payload is arriving
        self._payload = self._header_bytes[:0]
        self.spoken = False  # a whole frame came
        self._filled = 0  # bytes of the header, or of the payload, that are here
        self.allowed: Collection[FrameType] = frozenset(FrameType)  # what may come now: whoever receives narrows it
        self.peer_name = link.peer_certificate_name()
        self.peer_address = link.peer
        self.ends = link.ends  # address and port here, and of the peer

    @property
    def last_heard(self) -> float:
        """time.monotonic() when bytes last came in, also in the middle of a frame."""
        return self._link.last_heard

    @property
    def unread(self) -> bool:
        """Whether bytes came that nobody has read yet. A connection that was closed or reset has none."""
        return self._link.unread

    def send(self, type: FrameType, term: int, epoch: int, payload: Payload = b"") -> None:
        """Send one frame. Blocks while the peer does not read; `close` from another thread ends that."""
        self.send_many([(type, term, epoch, payload)])

    def beat(self, term: int) -> None:
        """Send a HEARTBEAT, if that waits for nobody: what another thread sends now is a sign of life as well."""
        self._link.write_if_room(encode_header(FrameType.HEARTBEAT, term, 0, b""))

    def send_many(self, frames: Iterable[Outgoing]) -> None:
        """Send the frames in order, with no frame of another thread between them."""
        self._link.write(_pieces(frames))

    def receive(self, timeout_s: float | None) -> Frame | None:
        """The next frame; None if none was complete after `timeout_s` (None waits for ever).

        What has arrived of it by then is kept, and the next call goes on from there; see `last_heard`.
        """
        deadline = None if timeout_s is None else Deadline.after(timeout_s)
        try:
            return self._receive(deadline)
        except BadFrame:
            self.close()
            raise

    def close(self, drain_s: float = 0.0) -> None:
        """Close; blocked senders and the receiver get PeerUnreachable. Once or often, from any thread.

        With `drain_s` the peer is given so long to read what was sent last (a REFUSE, a BYE) and to close.
        """
        self._link.close(drain_s)

    def _receive(self, deadline: Deadline | None) -> Frame | None:
        if self._header is None:
            if not self._fill(self._header_bytes, deadline):
                return None
            self._header = decode_header(self._header_bytes, self.allowed)
            # np.empty: bytearray would write the zeros of up to 16 MiB first.
            self._payload = np.empty(self._header.length, np.uint8).data
        if not self._fill(self._payload, deadline):
            return None
        header, payload, self._header = self._header, self._payload, None
        check_payload(header, payload)
        self.spoken = True
        return Frame(header.type, header.term, header.epoch, payload)

    def _fill(self, target: memoryview, deadline: Deadline | None) -> bool:
        """Go on filling `target`; True once it is full."""
        self._filled += self._link.read_into(target[self._filled :], deadline)
        if self._filled < len(target):
            return False
        self._filled = 0
        return True


def _pieces(frames: Iterable[Outgoing]) -> Iterator[Payload]:
    for type, term, epoch, payload in frames:
        header = encode_header(type, term, epoch, payload)
        if len(payload) <= _SMALL:
            yield header + bytes(payload)
        else:
            yield header
            yield payload
