# SPDX-License-Identifier: Apache-2.0
"""Bridges as a VM's frames meet them: what leads out of the host, how large a frame may be, which VLANs pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from remusdb.core.probe import Bridge, Uplink
from remusdb.errors import GateError

_UP = 0x1  # IFF_UP, linux/if.h
_PVID, _UNTAGGED = 0x02, 0x04  # BRIDGE_VLAN_INFO_*, linux/if_bridge.h

Vlans = dict[int, dict[int, int]]  # ifindex -> VLAN id -> flags


class Bridges:
    """The links of this network namespace at one moment. GateError when the kernel does not tell."""

    def __init__(self) -> None:
        try:
            with IPRoute() as ipr:
                self._links = {link.get_attr("IFLA_IFNAME"): link for link in ipr.get_links()}
                self._vlans = _vlans(ipr.get_vlans())
        except (NetlinkError, OSError) as exc:
            raise GateError(f"looking at bridges failed: {exc}") from exc

    def there(self, name: str) -> bool:
        """Whether a link of this name is there."""
        return name in self._links

    def mtu(self, name: str) -> int:
        """Bytes, 0 if there is no such link."""
        link = self._links.get(name)
        return int(link.get_attr("IFLA_MTU") or 0) if link else 0

    def vlans(self, tap: str) -> dict[int, bool]:
        """VLANs of a VM's port that it gets tagged (False) or as its own untagged frames (True)."""
        link = self._links.get(tap)
        flags = self._vlans.get(link["index"], {}) if link else {}
        return {vid: bool(flag & _PVID) for vid, flag in flags.items()}

    def bridge(self, name: str) -> Bridge:
        """The bridge of this name."""
        link = self._links.get(name)
        if link is None or _kind(link) != "bridge":
            return Bridge(name)
        return Bridge(
            name,
            there=True,
            up=bool(link["flags"] & _UP),
            mtu=self.mtu(name),
            filters=bool(_data(link, "IFLA_BR_VLAN_FILTERING")),
            pvid=int(_data(link, "IFLA_BR_VLAN_DEFAULT_PVID") or 0),
            uplinks=self._uplinks(link["index"]),
        )

    def _uplinks(self, bridge: int) -> list[Uplink]:
        """Ports that are no VM's. A veth leads to a container, unless the bridge has no other port."""
        ports = [link for link in self._links.values() if link.get_attr("IFLA_MASTER") == bridge]
        ports = [link for link in ports if _kind(link) != "tun" and link["flags"] & _UP]
        strong = [link for link in ports if _kind(link) != "veth"]
        return [self._uplink(link) for link in strong or ports]

    def _uplink(self, link: Any) -> Uplink:
        name = str(link.get_attr("IFLA_IFNAME"))
        outer = int(_data(link, "IFLA_VLAN_ID") or 0) if _kind(link) == "vlan" else 0
        flags = self._vlans.get(link["index"], {})
        return Uplink(name, self.mtu(name), outer, {vid: bool(flag & _UNTAGGED) for vid, flag in flags.items()})


def _kind(link: Any) -> str:
    info = link.get_attr("IFLA_LINKINFO")
    return (info.get_attr("IFLA_INFO_KIND") if info else "") or ""


def _data(link: Any, name: str) -> Any:
    info = link.get_attr("IFLA_LINKINFO")
    data = info.get_attr("IFLA_INFO_DATA") if info else None
    return data.get_attr(name) if data is not None and hasattr(data, "get_attr") else None


def _vlans(messages: Iterable[Any]) -> Vlans:
    found: Vlans = {}
    for message in messages:
        spec = message.get_attr("IFLA_AF_SPEC")
        for info in spec.get_attrs("IFLA_BRIDGE_VLAN_INFO") if spec else ():
            found.setdefault(message["index"], {})[info["vid"]] = info["flags"]
    return found
