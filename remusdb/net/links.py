# SPDX-License-Identifier: Apache-2.0
"""Links: a thin typed wrapper over pyroute2.

Owns one pyroute2 socket. Foreign errors become GateError here. Links that we make are quiet: no IPv6
(hence no address, no DAD, no MLD) and no ARP.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from remusdb.errors import GateError

NAME_MAX = 15
_QUIET = 0x80 | 0x1  # IFF_NOARP, IFF_UP


@dataclass(frozen=True)
class Link:
    """A network interface as the kernel describes it; sizes in bytes, counters in frames."""

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    master: int
    up: bool
    alias: str
    tx_dropped: int
    tx_frames: int
    rx_frames: int


class Links:
    """Requests about links."""

    def __init__(self) -> None:
        with _wrapped("opening netlink"):
            self._ipr = IPRoute()

    def close(self) -> None:
        """Let go of the socket."""
        self._ipr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def find(self, name: str) -> Link | None:
        """The link, or None."""
        try:
            return _link(self._ipr.link("get", ifname=name)[0])
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return None
            raise GateError(f"looking for {name}: {error}") from error

    def get(self, name: str) -> Link:
        """The link; GateError if it is not there."""
        link = self.find(name)
        if link is None:
            raise GateError(f"no network interface named {name}", hint="is the VM running, and is this its tap?")
        return link

    def name_of(self, index: int) -> str:
        """Name of the link with this ifindex."""
        with _wrapped(f"looking for interface {index}"):
            return str(self._ipr.get_links(index)[0].get_attr("IFLA_IFNAME"))

    def add_veth(self, name: str, peer: str, mac: str) -> None:
        """A veth pair; `peer` carries `mac`."""
        with _wrapped(f"making {name}"):
            self._ipr.link("add", ifname=name, kind="veth", peer={"ifname": peer, "address": mac})

    def add_ifb(self, name: str) -> None:
        """An IFB device."""
        with _wrapped(f"making {name}", "the plug gate needs the ifb module"):
            self._ipr.link("add", ifname=name, kind="ifb")

    def add_bridge(self, name: str) -> None:
        """A bridge that is up and forwards at once."""
        with _wrapped(f"making {name}"):
            self._ipr.link("add", ifname=name, kind="bridge", br_forward_delay=0)
        self.set_up(name, True)

    def join(self, name: str, bridge: str) -> None:
        """Make the link a port of the bridge that cannot reach its other ports, and bring it up."""
        index = self.get(name).index
        with _wrapped(f"putting {name} on {bridge}"):
            self._ipr.link("set", index=index, master=self.get(bridge).index, state="up")
            self._ipr.brport("set", index=index, isolated=1)

    def add_peer(self, name: str, own: str, peer: str) -> None:
        """Give the link the address `own`, with `peer` alone behind it. Nothing if it has it already."""
        whole = ipaddress.ip_address(own).max_prefixlen
        # 0x02: no duplicate address detection, which would keep an IPv6 address unusable for a second.
        flags = {"flags": 0x02} if whole == 128 else {}
        with _wrapped(f"giving {name} an address"):
            self._ipr.addr("replace", index=self.get(name).index, local=own, address=peer, prefixlen=whole, **flags)

    def neighbour(self, name: str, address: str) -> str:
        """The MAC with which `address` answered on this link, or nothing."""
        index, known = self.get(name).index, 0x02 | 0x04 | 0x08 | 0x10  # NUD_REACHABLE, STALE, DELAY, PROBE
        with _wrapped(f"looking for {address}"):
            for found in self._ipr.get_neighbours(ifindex=index):
                if found.get_attr("NDA_DST") == address and found["state"] & known:
                    return str(found.get_attr("NDA_LLADDR") or "")
        return ""

    def move(self, name: str, namespace: int) -> None:
        """Move the link into the network namespace of this descriptor."""
        with _wrapped(f"moving {name} to another namespace"):
            self._ipr.link("set", index=self.get(name).index, net_ns_fd=namespace)

    def delete(self, name: str) -> None:
        """Remove the link; nothing happens if it is not there."""
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            return
        with _wrapped(f"removing {name}"):
            self._ipr.link("del", index=index)

    def quieten(self, name: str, *, mtu: int, txqlen: int, alias: str = "") -> Link:
        """Bring one of our links up so that nothing ever speaks on it by itself."""
        index = self.get(name).index
        _disable_ipv6(name)
        said = {"IFLA_IFALIAS": alias} if alias else {}
        with _wrapped(f"setting up {name}"):
            self._ipr.link("set", index=index, mtu=mtu, txqlen=txqlen, flags=_QUIET, change=_QUIET, **said)
        return self.get(name)

    def set_up(self, name: str, up: bool) -> None:
        """Bring the link up or down."""
        with _wrapped(f"bringing {name} {'up' if up else 'down'}"):
            self._ipr.link("set", index=self.get(name).index, state="up" if up else "down")

    def set_forwarding_entry(self, port: Link, mac: str) -> None:
        """Tell the port's bridge that `mac` is behind it, as if a frame had come in there."""
        with _wrapped(f"teaching the bridge {mac}"):
            self._ipr.fdb("replace", ifindex=port.index, lladdr=mac, state=0x02, flags=0x04)


def short_name(prefix: str, tap: str) -> str:
    """A device name of at most 15 characters, the same every time for the same tap."""
    if len(prefix) + len(tap) <= NAME_MAX:
        return prefix + tap
    digest = hashlib.blake2s(tap.encode(), digest_size=4).hexdigest()
    return f"{prefix}{tap[: NAME_MAX - len(prefix) - 8]}{digest}"


def _disable_ipv6(name: str) -> None:
    # Not an error if missing: a kernel without IPv6 has nothing to disable.
    with contextlib.suppress(FileNotFoundError):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    stats = message.get_attr("IFLA_STATS64") or {}
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        kind=(info.get_attr("IFLA_INFO_KIND") if info else "") or "",
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU") or 0,
        master=message.get_attr("IFLA_MASTER") or 0,
        up=bool(message["flags"] & 1),
        alias=message.get_attr("IFLA_IFALIAS") or "",
        tx_dropped=stats.get("tx_dropped", 0),
        tx_frames=stats.get("tx_packets", 0),
        rx_frames=stats.get("rx_packets", 0),
    )


@contextlib.contextmanager
def _wrapped(what: str, hint: str = "") -> Iterator[None]:
    try:
        yield
    except (NetlinkError, OSError) as error:
        denied = getattr(error, "code", error.errno) == errno.EPERM if isinstance(error, OSError) else False
        raise GateError(f"{what} failed: {error}", hint="run as root" if denied else hint) from error
