# SPDX-License-Identifier: Apache-2.0
"""Traffic control: the redirect at a link's ingress, and the plug qdisc.

`index` is always a link's ifindex. Requests are idempotent where the gate needs it: removing what is not there
does nothing, and a redirect replaces the one before it in one step, so no frame passes between the two.
"""

from __future__ import annotations

import enum
import errno
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from remusdb.core.reset import Target
from remusdb.errors import GateError
from remusdb.net.bpf import FLOWS_IN_PROGRAM, drop_all, drop_flows
from remusdb.net.netlink import (
    CREATE,
    DUMP,
    ECHO,
    EXCL,
    NESTED,
    REPLACE,
    KernelError,
    Netlink,
    Reply,
    attribute,
    attributes,
    leading,
    text,
)

_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_NEWTFILTER, _DELTFILTER, _GETTFILTER = 44, 45, 46
_ROOT, _CLSACT, _INGRESS, _EGRESS = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFFFFF2, 0xFFFFFFF3
_OLD_INGRESS = 0xFFFF0000  # where the filters of a plain ingress qdisc hang, as libvirt makes it for <bandwidth>
_CLSACT_HANDLE, _PLUG_HANDLE = 0xFFFF0000, 0x00010000
_KIND, _OPTIONS, _STATS = 1, 2, 3
_BPF_ACT, _BPF_OPS_LEN, _BPF_OPS, _BPF_FLAGS = 1, 4, 5, 8
_DIRECT = struct.pack("=I", 1)  # TCA_BPF_FLAG_ACT_DIRECT: the program's answer is the verdict, no action module needed
_ACT_KIND, _ACT_OPTIONS, _MIRRED_PARMS = 1, 2, 2
_STOLEN = 4
_TCMSG = struct.Struct("=BBHiIII")
_TC_STATS = struct.Struct("=QIIIIIII")

PREFERENCE = 1  # ours must be asked before any other ingress filter
RESETS_PREFERENCE = 2  # after the gate's redirect: what the gate lets go must pass this, too
_RESETS_INFO = RESETS_PREFERENCE << 16 | socket.htons(3)
_FILTER_HANDLE = 1  # fixed, so that a change replaces it in one step
_FILTER_INFO = PREFERENCE << 16 | socket.htons(3)  # protocol all: IPv4 alone would let ARP and IPv6 out


class Direction(enum.Enum):
    """Where mirred puts the frame: into the device's transmit path, or as if the device had received it."""

    EGRESS = 1
    INGRESS = 3


class PlugAction(enum.Enum):
    """What `sch_plug` may be told; the values are the kernel's."""

    BUFFER = 0
    RELEASE_ONE = 1
    RELEASE_INDEFINITE = 2
    LIMIT = 3


@dataclass(frozen=True)
class QdiscStats:
    """What a root qdisc passed, holds and dropped."""

    sent_frames: int
    held_frames: int
    held_bytes: int
    dropped_frames: int


class Tc:
    """Requests about qdiscs and filters."""

    def __init__(self) -> None:
        self._netlink = Netlink()

    def close(self) -> None:
        """Let go of the socket."""
        self._netlink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def add_clsact(self, index: int) -> bool:
        """True if it was added, False if the link has one; another ingress qdisc is an error."""
        body = _tcmsg(index, _CLSACT_HANDLE, _CLSACT) + text(_KIND, "clsact")
        try:
            self._ask("adding clsact", _NEWQDISC, CREATE | EXCL, body)
        except KernelError as error:
            if error.errno != errno.EEXIST:
                raise
            if self.ingress_qdisc(index) != "clsact":
                hint = "another program shapes this interface's ingress (libvirt's <bandwidth>?); remove that first"
                raise GateError("the interface has an ingress qdisc of another kind", hint=hint) from error
            return False
        return True

    def del_clsact(self, index: int) -> None:
        """Remove it, with its filters."""
        if self.ingress_qdisc(index) == "clsact":
            self._ask("removing clsact", _DELQDISC, 0, _tcmsg(index, _CLSACT_HANDLE, _CLSACT))

    def ingress_qdisc(self, index: int) -> str:
        """Kind of the ingress qdisc, or ""."""
        for reply in self._ask("listing qdiscs", _GETQDISC, DUMP, _tcmsg(index)):
            if reply.fixed[3] == index and reply.fixed[4] == _CLSACT_HANDLE:
                return _kind(reply)
        return ""

    def redirect(self, index: int, program: bytes, target: int, direction: Direction) -> None:
        """Send what `program` matches at the link's ingress to `target` instead; replaces our earlier redirect."""
        mirred = struct.pack("=IIiiiiI", 0, 0, _STOLEN, 0, 0, direction.value, target)
        action = text(_ACT_KIND, "mirred") + attribute(_ACT_OPTIONS | NESTED, attribute(_MIRRED_PARMS, mirred))
        options = (
            attribute(_BPF_ACT | NESTED, attribute(1 | NESTED, action))
            + attribute(_BPF_OPS_LEN, struct.pack("=H", len(program) // 8))
            + attribute(_BPF_OPS, program)
        )
        body = _tcmsg(index, _FILTER_HANDLE, _INGRESS, _FILTER_INFO)
        body += text(_KIND, "bpf") + attribute(_OPTIONS | NESTED, options)
        self._ask("redirecting the interface's output", _NEWTFILTER, CREATE, body)

    def del_redirect(self, index: int) -> None:
        """Take our redirect away."""
        if self.redirected(index):
            # By preference, without a handle: the kernel then frees the whole classifier and leaves no empty one.
            body = _tcmsg(index, 0, _INGRESS, _FILTER_INFO) + text(_KIND, "bpf")
            self._ask("removing the redirect", _DELTFILTER, 0, body)

    def redirected(self, index: int) -> bool:
        """Whether our redirect is on the link."""
        return (PREFERENCE, "bpf") in self.ingress_filters(index)

    def shut(self, index: int, *, as_sent: bool = False) -> None:
        """Drop all that the VM sends there. Ours, in the place of our redirect: that one replaces it in one step.

        `as_sent`: on a macvtap, where the VM's frames are sent and not received.
        """
        kind = self.ingress_qdisc(index)
        if not kind:
            self.add_clsact(index)
        parent = _OLD_INGRESS if kind == "ingress" else _EGRESS if as_sent else _INGRESS
        options = (
            attribute(_BPF_OPS_LEN, struct.pack("=H", len(drop_all()) // 8))
            + attribute(_BPF_OPS, drop_all())
            + attribute(_BPF_FLAGS, _DIRECT)
        )
        body = _tcmsg(index, _FILTER_HANDLE, parent, _FILTER_INFO)
        body += text(_KIND, "bpf") + attribute(_OPTIONS | NESTED, options)
        self._ask("shutting the interface", _NEWTFILTER, CREATE, body)

    def drop_flows(self, index: int, targets: Sequence[Target]) -> None:
        """Drop all that the VM sends in these connections, and no others any more; none: as if it had never been."""
        kind = self.ingress_qdisc(index)
        if targets and not kind:
            self.add_clsact(index)
        parent = _OLD_INGRESS if kind == "ingress" else _INGRESS
        flows = [(one.guest.address, one.guest.port, one.client.address, one.client.port) for one in targets]
        there = self._handles(index, parent) if kind else []
        wanted = [flows[at : at + FLOWS_IN_PROGRAM] for at in range(0, len(flows), FLOWS_IN_PROGRAM)]
        for handle, some in enumerate(wanted, _FILTER_HANDLE):
            program = drop_flows(some)
            options = (
                attribute(_BPF_OPS_LEN, struct.pack("=H", len(program) // 8))
                + attribute(_BPF_OPS, program)
                + attribute(_BPF_FLAGS, _DIRECT)
            )
            body = _tcmsg(index, handle, parent, _RESETS_INFO) + text(_KIND, "bpf")
            body += attribute(_OPTIONS | NESTED, options)
            self._ask("dropping what connections send", _NEWTFILTER, CREATE, body)
        if not wanted and there:
            body = _tcmsg(index, 0, parent, _RESETS_INFO) + text(_KIND, "bpf")
            self._ask("dropping no connections", _DELTFILTER, 0, body)
            if parent != _OLD_INGRESS and not self.ingress_filters(index) and not self.egress_filters(index):
                self.del_clsact(index)
            return
        for handle in there:
            if handle >= _FILTER_HANDLE + len(wanted):
                body = _tcmsg(index, handle, parent, _RESETS_INFO) + text(_KIND, "bpf")
                self._ask("dropping fewer connections", _DELTFILTER, 0, body)

    def _handles(self, index: int, parent: int) -> list[int]:
        """Of our filters that drop connections."""
        replies = self._ask("listing filters", _GETTFILTER, DUMP, _tcmsg(index, 0, parent))
        return [reply.fixed[4] for reply in replies if reply.fixed[6] >> 16 == RESETS_PREFERENCE and reply.fixed[4]]

    def is_shut(self, index: int) -> bool:
        """Whether `shut` was the last that we did there."""
        return self._shut_at(index) is not None

    def open(self, index: int) -> None:
        """Undo `shut`, with the clsact that it added unless somebody else uses it by now."""
        parent = self._shut_at(index)
        if parent is None:
            return
        body = _tcmsg(index, 0, parent, _FILTER_INFO) + text(_KIND, "bpf")
        self._ask("opening the interface", _DELTFILTER, 0, body)
        if parent != _OLD_INGRESS and not self.ingress_filters(index) and not self.egress_filters(index):
            self.del_clsact(index)

    def _shut_at(self, index: int) -> int | None:
        """The hook where our drop filter is."""
        kind = self.ingress_qdisc(index)
        for parent in {"clsact": (_INGRESS, _EGRESS), "ingress": (_OLD_INGRESS,)}.get(kind, ()):
            for reply in self._ask("listing filters", _GETTFILTER, DUMP, _tcmsg(index, 0, parent)):
                options = attributes(reply.attributes.get(_OPTIONS, b""), 0)
                if reply.fixed[6] >> 16 == PREFERENCE and options.get(_BPF_FLAGS) == _DIRECT:
                    return parent
        return None

    def ingress_filters(self, index: int) -> set[tuple[int, str]]:
        """(preference, kind) of every ingress filter of the link."""
        return self._filters(index, _INGRESS)

    def egress_filters(self, index: int) -> set[tuple[int, str]]:
        """(preference, kind) of every clsact egress filter of the link."""
        return self._filters(index, _EGRESS)

    def _filters(self, index: int, parent: int) -> set[tuple[int, str]]:
        if self.ingress_qdisc(index) != "clsact":
            return set()
        found = self._ask("listing filters", _GETTFILTER, DUMP, _tcmsg(index, 0, parent))
        return {(reply.fixed[6] >> 16, _kind(reply)) for reply in found}

    def no_queue(self, index: int) -> None:
        """Hand frames straight to the driver: none may wait in a qdisc when we drain the link."""
        body = _tcmsg(index, 0, _ROOT) + text(_KIND, "noqueue")
        self._ask("taking the queue off our tap", _NEWQDISC, CREATE | REPLACE, body)

    def add_plug(self, index: int, limit_bytes: int) -> None:
        """A root plug qdisc, plugged, that holds at most `limit_bytes`."""
        self._ask("adding the plug qdisc", _NEWQDISC, CREATE | EXCL, _plug(index, PlugAction.LIMIT, limit_bytes))

    def plug(self, index: int, action: PlugAction) -> None:
        """Tell the link's plug qdisc."""
        self._ask(f"plug {action.name}", _NEWQDISC, 0, _plug(index, action, 0))

    def del_plug(self, index: int) -> None:
        """Remove the plug qdisc and what it holds. The link must be down, or what it holds would leave."""
        self._ask("removing the plug qdisc", _DELQDISC, 0, _tcmsg(index, _PLUG_HANDLE, _ROOT))

    def root_stats(self, index: int) -> QdiscStats:
        """Counters of the root qdisc."""
        for reply in self._ask("reading the qdisc", _GETQDISC, ECHO, _tcmsg(index, 0, _ROOT)):
            _bytes, sent, dropped, _over, _bps, _pps, queued, backlog = leading(
                _TC_STATS, reply.attributes.get(_STATS, b"")
            )
            return QdiscStats(sent, queued, backlog, dropped)
        raise GateError("the kernel reported nothing about the qdisc")

    def _ask(self, what: str, kind: int, flags: int, body: bytes) -> list[Reply]:
        return self._netlink.ask(what, kind, flags, body, _TCMSG)


def _tcmsg(index: int, handle: int = 0, parent: int = 0, info: int = 0) -> bytes:
    return _TCMSG.pack(0, 0, 0, index, handle, parent, info)


def _plug(index: int, action: PlugAction, limit_bytes: int) -> bytes:
    options = struct.pack("=iI", action.value, limit_bytes)
    return _tcmsg(index, _PLUG_HANDLE, _ROOT) + text(_KIND, "plug") + attribute(_OPTIONS, options)


def _kind(reply: Reply) -> str:
    return reply.attributes.get(_KIND, b"").rstrip(b"\0").decode(errors="replace")
