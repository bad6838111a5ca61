# SPDX-License-Identifier: Apache-2.0
"""A guest with database sessions, its gate with the product's CommitRule, and a backup, in one thread.

Every frame that leaves is taken to have reached its client at once. After each step the primary is taken to die: the
backup resumes the last epoch that it holds, whose sessions may from there on send anything, and `check` says what no
client may have seen.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field

from remusdb.core.release.frames import ACK, SYN
from remusdb.core.release.rule import CommitRule, Flow
from remusdb.core.release.settings import ReleaseSettings
from tests.unit.release_frames import frame, recorded

PORTS = {"postgresql": 5432, "mysql": 3306, "mark": 9999}
FIRST_SEQ = 2**32 - 300  # numbers begin again soon
MARK = 9
Step = tuple[str, int, int]


class Broken(AssertionError):
    """A promise was broken."""


def _pg(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", 4 + len(body)) + body


def _my(number: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "little") + bytes([number]) + body


def _pg_answer(what: str, *, inside: bool) -> bytes:
    end = _pg(b"Z", b"T" if inside else b"I")
    tag = {"begin": b"BEGIN\0", "commit": b"COMMIT\0", "chain": b"COMMIT\0", "work": b"SELECT 1\0"}[what]
    rows = _pg(b"D", b"\0\1\0\0\0\x09" + b"Z\0\0\0\5IC\0\0") * 3 if what == "work" else b""
    return rows + _pg(b"C", tag) + end


def _my_answer(what: str, *, inside: bool) -> bytes:
    if what == "work":
        return _my(1, b"\0\1\7" + bytes([inside]) + b"\0\0\0")
    return _my(1, b"\0\0\0" + bytes([inside]) + b"\0\0\0")


_HELLO = {
    "postgresql": b"N" + _pg(b"R", bytes(4)) + _pg(b"Z", b"I"),
    "mysql": recorded("mariadb1011")["plain"][0][1],
    "mark": b"",
}


@dataclass
class Session:
    """A session of the guest's server. Positions count the bytes of its connection from 0."""

    kind: str
    number: int
    output: bytearray = field(default_factory=bytearray)
    ends: list[tuple[int, int]] = field(default_factory=list)  # where answers lie that end or begin a transaction
    inside: bool = False
    marked: bool = False
    sent: int = 0  # first transmissions
    asked: int = 0  # bytes that the client sent
    seen: int = 0  # up to here a client has bytes
    acked: int = 0  # up to here a client knows that its own arrived

    def __post_init__(self) -> None:
        self.output += _HELLO[self.kind]

    def ask(self, what: str) -> None:
        """The client asks; the server answers at once, the answer is not sent yet."""
        if self.kind == "mark" and self.sent < len(self.output):
            return  # who sets marks waits until all was sent
        self.asked += 10
        what = what if self.inside or what == "work" else "begin"
        if what == "begin" and self.inside:
            what = "work"
        self.inside = (self.inside and what != "commit") or what == "begin"
        make = _my_answer if self.kind == "mysql" else _pg_answer
        start = len(self.output)
        # Only who waits until all was sent may mark: else an answer to COMMIT that is still to be sent is marked, too.
        self.marked = self.kind == "mark" and self.inside and what == "work"
        self.output += make(what, inside=self.inside)
        if what != "work":
            self.ends.append((start, len(self.output)))

    def frame(self, start: int, end: int, flags: int = ACK) -> bytes:
        """The bytes of `start:end` as the guest's kernel sends them."""
        port, client = PORTS[self.kind], 40000 + self.number
        dscp = MARK if self.marked else 0
        data = bytes(self.output[start:end])
        seq = FIRST_SEQ + start
        return frame(seq, data, flags=flags, port=port, client_port=client, dscp=dscp, ack=self.asked)


@dataclass
class Sent:
    """A frame that the guest sent."""

    session: Session
    end: int
    asked: int
    flow: Flow | None


@dataclass
class Cut:
    """What an epoch holds of each session, and the list that goes with it."""

    sent: list[int]
    asked: list[int]
    listed: set[int]
    frames: list[Sent]


class World:
    """See above. `rule_class`, `late_list` and `uncounted` plant mistakes."""

    def __init__(self, rule_class: type[CommitRule] = CommitRule, *, late_list: bool = False, uncounted: bool = False):
        self.rule = rule_class(ReleaseSettings(postgresql_ports=(5432,), mysql_ports=(3306,), mark=MARK))
        self.late_list, self.uncounted = late_list, uncounted
        self.sessions = [Session(kind, at) for at, kind in enumerate(("postgresql", "mysql", "mark"))]
        self.held: list[Sent] = []
        self.cuts: deque[Cut] = deque()
        self.sending: deque[Sent] = deque()
        self.backup = Cut([0] * 3, [0] * 3, set(), [])
        self.early = 0
        for session in self.sessions:
            self._emit(session, 0, 0, SYN | ACK)
            self._emit(session, 0, len(session.output))
            session.sent = len(session.output)
        for what in ("cut", "commit"):
            self.step((what, 0, 0))
        self.step(("leave", 0, 99))

    def step(self, step: Step) -> None:
        """Something happens; then the primary may be dead."""
        what, number, size = step
        session = self.sessions[number]
        match what:
            case "begin" | "work" | "commit_it" | "chain":
                session.ask(what.removesuffix("_it"))
            case "send" | "lose" | "swap":
                self._send(session, what, size)
            case "again":
                start = max(0, session.sent - size)
                self._emit(session, start, min(session.sent, start + 1 + size // 2))
            case "ack":
                session.asked += 1
                self._emit(session, session.sent, session.sent)
            case "cut":
                self._cut()
            case "commit" if self.cuts:
                self.backup = self.cuts.popleft()
                self.sending.extend(self.backup.frames)
            case "leave":
                for _ in range(min(size, len(self.sending))):
                    self._leave()
            case _:
                pass
        self.check()

    def _send(self, session: Session, what: str, size: int) -> None:
        start, end = session.sent, min(session.sent + size, len(session.output))
        if end == start:
            return
        session.sent = end
        if what == "send":
            self._emit(session, start, end)
        elif what == "swap":
            middle = (start + end) // 2
            for piece in ((middle, end), (start, middle)):
                self._emit(session, *piece)

    def _emit(self, session: Session, start: int, end: int, flags: int = ACK) -> None:
        judged = self.rule.judge(session.frame(start, end, flags) if not flags & SYN else self._hello(session), 0.0)
        sent = Sent(session, end, session.asked, judged.flow)
        if not judged.early:
            self.held.append(sent)
            if self.uncounted and judged.flow is not None:
                self.rule.left(judged.flow)
            return
        self.early += 1
        if any(start < last and first < end for first, last in session.ends):
            raise Broken(f"an answer that ends or begins a transaction left early, {session.kind}")
        self._reach(sent)

    def _hello(self, session: Session) -> bytes:
        return frame(FIRST_SEQ - 1, flags=SYN | ACK, port=PORTS[session.kind], client_port=40000 + session.number)

    def _cut(self) -> None:
        made = Cut([one.sent for one in self.sessions], [one.asked for one in self.sessions], self._list(), self.held)
        self.cuts.append(made)
        self.held = []

    def _list(self) -> set[int]:
        return {flow.key.client_port - 40000 for flow in self.rule.open_flows()}

    def _leave(self) -> None:
        sent = self.sending.popleft()
        if sent.flow is not None and not self.uncounted:
            self.rule.left(sent.flow)
        self._reach(sent)

    @staticmethod
    def _reach(sent: Sent) -> None:
        sent.session.seen = max(sent.session.seen, sent.end)
        sent.session.acked = max(sent.session.acked, sent.asked)

    def check(self) -> None:
        """The primary dies now: what a client has, the survivor has too, or it breaks that connection."""
        listed = self._list() if self.late_list else self.backup.listed
        for session, sent, asked in zip(self.sessions, self.backup.sent, self.backup.asked, strict=True):
            if (session.seen > sent or session.acked > asked) and session.number not in listed:
                raise Broken(f"a client of {session.kind} has bytes that the survivor knows nothing of")
