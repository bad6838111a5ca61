# SPDX-License-Identifier: Apache-2.0
"""The preflight's look at the backup's network: whether anybody would reach the VM there. Pure."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass

from remusdb.core.probe import Answer, Bridge
from remusdb.net import offloads
from remusdb.preflight import needs
from remusdb.preflight.checks import Check, advice, required
from remusdb.preflight.here import Here

# The first machine types whose virtio-net offers these (hw/core/machine.c, hw_compat_8_1 and hw_compat_10_1).
_OFFERED = {offloads.USO4: (8, 2), offloads.USO6: (8, 2), offloads.TUNNEL: (10, 2), offloads.TUNNEL_CSUM: (10, 2)}
_MACHINE = re.compile(r"-(\d+)\.(\d+)\Z")
BRIDGE_SYSCTLS = "net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0"


@dataclass(frozen=True)
class _Nic:
    """One interface, with its bridges of both hosts."""

    mac: str
    tap: str
    element: ET.Element
    here: Bridge
    there: Bridge


def decide(peer: str, answer: Answer, here: Here, tree: ET.Element) -> list[Check]:
    """The checks over interfaces, displays and the packet filter."""
    checks = []
    if answer.bridges is not None:
        nics = list(_nics(answer.bridges, here, tree))
        checks += _bridges(peer, answer.bridges, nics)
        checks += _vlans(peer, answer, here, [nic for nic in nics if nic.there.there])
    if answer.taken_links is not None and needs.own_taps(tree):
        taken = [f"{peer} has a link named {name}" for name in answer.taken_links if not answer.standby]
        hint = "remove <target dev=.../> from the interface (virsh edit), from the VM's next start, or rename that link"
        checks.append(required("peer taps", taken, "their names are free", hint))
    if answer.listens:
        checks += _displays(peer, answer, tree)
    if tree.find("./devices/interface") is not None:
        checks += _virtio(peer, answer, here, tree)
        checks += _filter(peer, answer)
    return checks


def _nics(there: dict[str, Bridge], here: Here, tree: ET.Element) -> Iterator[_Nic]:
    for element in tree.iterfind("./devices/interface"):
        source, target, mac = element.find("source"), element.find("target"), element.find("mac")
        name = source.get("bridge", "") if source is not None else ""
        if name in there:
            tap = target.get("dev", "") if target is not None else ""
            shown = mac.get("address", "") if mac is not None else ""
            yield _Nic(shown, tap, element, here.bridges.get(name, Bridge(name)), there[name])


def _bridges(peer: str, found: dict[str, Bridge], nics: list[_Nic]) -> list[Check]:
    problems, hints = [], []
    for name, bridge in found.items():
        if not bridge.there:
            problems.append(f"bridge {bridge.name} is not on {peer}")
            hints.append(
                f'make it there, or name the one to use in agent.toml of {peer}: [network.bridges] {name} = "…"'
            )
        elif not bridge.up:
            problems.append(f"bridge {bridge.name} on {peer} is down")
            hints.append(f"on {peer}: ip link set {bridge.name} up")
    lonely = [nic for nic in nics if nic.there.there and nic.here.uplinks and not nic.there.uplinks]
    names = ", ".join(dict.fromkeys(nic.there.name for nic in lonely))
    return [
        required("peer bridges", problems, f"{peer} has {', '.join(b.name for b in found.values()) or 'none to have'}",
                 "; ".join(hints)),
        advice("peer uplinks", f"{names} on {peer} has no port that leads out" if lonely else "", "all lead out",
               f"on {peer}: ip link set NIC master {names}, unless that host routes for it"),
    ]  # fmt: skip


def _vlans(peer: str, answer: Answer, here: Here, nics: list[_Nic]) -> list[Check]:
    """MTU and VLANs: what leaves this host must leave that one, in the same way."""
    small, hints = [], []
    for nic in nics:
        mine, theirs = _carries(nic.here, here.tap_mtu.get(nic.tap, 0)), _carries(nic.there, 0)
        if 0 < theirs < mine:
            small.append(f"{nic.there.name} on {peer} carries {theirs} bytes, {nic.mac} has {mine} here")
            hints += _larger(peer, nic.there, mine)
    strict: list[str] = []
    doubts: list[str] = []
    for nic in nics:
        why, certain = _astray(nic, here.tap_vlans.get(nic.tap, {}))
        if why:
            (strict if certain and not answer.libvirt_hooks else doubts).append(f"{nic.mac} on {peer}: {why}")
    return [
        required("peer MTU", small, f"{peer} carries as much", "; ".join(dict.fromkeys(hints))),
        required("peer VLAN", strict, "the same as here", _VLAN_HINT.format(peer=peer)),
        *_doubt("peer tags", "; ".join(doubts), f"see that these are the same network on {peer}"),
    ]


_VLAN_HINT = (
    "name in agent.toml of {peer}, under [network.bridges], a bridge in which new ports are in that VLAN "
    "(ip link set BRIDGE type bridge vlan_default_pvid N), or give the interface its <vlan> (libvirt 11, virsh edit)"
)


def _carries(bridge: Bridge, tap: int) -> int:
    """The largest frame that gets out, in bytes of MTU; 0 if nothing is known."""
    ways = [max(uplink.mtu for uplink in bridge.uplinks)] if bridge.uplinks else []
    return min([mtu for mtu in (bridge.mtu, tap, *ways) if mtu], default=0)


def _larger(peer: str, bridge: Bridge, mtu: int) -> list[str]:
    links = [*(uplink.name for uplink in bridge.uplinks if uplink.mtu < mtu), bridge.name]
    return [f"on {peer}: ip link set {name} mtu {mtu}" for name in links]


def _astray(nic: _Nic, tap: dict[int, bool]) -> tuple[str, bool]:
    """Why frames would not come out in the VLAN that they have here, and whether that is certain."""
    here, there = nic.here, nic.there
    if nic.element.find("vlan") is not None:
        return ("" if there.filters else f"it has a <vlan>, and bridge {there.name} does not look at VLANs"), True
    own = next((vid for vid, untagged in tap.items() if untagged), 0) if here.filters else 0
    trunk = sorted(vid for vid, untagged in tap.items() if not untagged) if here.filters else []
    if there.filters and not there.pvid:
        return f"a new port of {there.name} is in no VLAN", True
    if there.filters and trunk:
        return f"it has VLAN {', '.join(map(str, trunk))} here, and would have {there.pvid} alone", True
    mine, theirs = _forms(here, own), _forms(there, there.pvid)
    if there.filters and there.uplinks and not theirs:
        return f"a new port of {there.name} is in VLAN {there.pvid}, which leaves by none of its ports", True
    if not mine or not theirs or mine & theirs:
        return "", False
    told = f"its frames leave {_told(theirs)} there, and {_told(mine)} here"
    return told, here.filters and there.filters and own != there.pvid


def _forms(bridge: Bridge, vid: int) -> set[tuple[int, int]]:
    """How a frame of the VM's is tagged on the wire: (by the port, by the bridge), 0 for not at all."""
    if not bridge.filters:
        return {(uplink.outer, 0) for uplink in bridge.uplinks}
    return {(one.outer, 0 if one.vlans[vid] else vid) for one in bridge.uplinks if vid in one.vlans}


def _told(forms: set[tuple[int, int]]) -> str:
    tags = (" in ".join(f"VLAN {tag}" for tag in reversed(form) if tag) or "untagged" for form in sorted(forms))
    return " and ".join(f"as {tags_}" if tags_ != "untagged" else tags_ for tags_ in tags)


def _displays(peer: str, answer: Answer, tree: ET.Element) -> list[Check]:
    strict, doubts, taken = [], [], False
    for listen in needs.listens(tree):
        why = (answer.listens or {}).get(str(listen), "")
        if "is a name" in why:
            doubts.append(f"{listen.address} {why} on {peer}")
        elif why and not (answer.standby and "in use" in why):
            strict.append(f"nothing can listen on {listen} on {peer}: {why}")
            taken = taken or "in use" in why
    edit = "from its next start: virsh edit, <listen type='address' address='127.0.0.1'/>"
    hint = f"{edit}; or at once, on {peer}: sysctl -w net.ipv4.ip_nonlocal_bind=1 net.ipv6.ip_nonlocal_bind=1"
    return [
        required("peer displays", strict, f"{peer} can listen", f"{edit} and autoport='yes'" if taken else hint),
        *_doubt("peer display names", "; ".join(doubts), "an address is safer: 127.0.0.1, or 0.0.0.0"),
    ]


def _virtio(peer: str, answer: Answer, here: Here, tree: ET.Element) -> list[Check]:
    if tree.find("./devices/interface/model[@type='virtio']") is None:
        return []
    checks = []
    if answer.tun_offloads is not None and here.tun_offloads is not None:
        less = here.tun_offloads & ~answer.tun_offloads & _offered(tree)
        told = [f"the kernel of {peer} has no {offloads.told(less)}, which this one offers the guest"] if less else []
        hint = f"boot a kernel on {peer} that is not older than this one (USO: Linux 6.2), or move the VM there first"
        checks.append(required("peer offloads", told, "no fewer than here", hint))
    if answer.vhost is not None and here.vhost is not None:
        checks.append(_vhost(peer, answer.vhost, here.vhost, tree))
    return checks


def _offered(tree: ET.Element) -> int:
    """Offloads that the VM's machine type offers its guest; all, where its version is not known."""
    kind = tree.find("./os/type")
    found = _MACHINE.search(kind.get("machine", "") if kind is not None else "")
    version = (int(found[1]), int(found[2])) if found else (99, 0)
    return sum(bit for bit in offloads.NAMES if version >= _OFFERED.get(bit, (0, 0)))


def _vhost(peer: str, there: int, here: int, tree: ET.Element) -> Check:
    names = [driver.get("name") for driver in tree.iterfind("./devices/interface/driver")]
    load = f"on {peer}: modprobe vhost_net"
    if there == offloads.NO_VHOST:
        asked = ["the VM asks for vhost-net by name, and it is not there"] if "vhost" in names else []
        if asked or here == offloads.NO_VHOST:
            return required("peer vhost-net", asked, "neither host has it", load)
        return advice("peer vhost-net", f"{peer} has none: its network would be slower there", "", load)
    less = here & ~there & offloads.VHOST_DEFAULT if here != offloads.NO_VHOST else 0
    told = [f"the vhost-net of {peer} lacks features {less:#x}, which this one offers the guest"] if less else []
    return required("peer vhost-net", told, "as here", f"boot a kernel on {peer} that is not older than this one")


def _filter(peer: str, answer: Answer) -> list[Check]:
    found = answer.forwarding
    if found is None:
        return []
    certain = [f"{chain} on {peer} drops what bridges forward: no client would reach the VM" for chain in found.drops]
    hints = [f"on {peer}: nft add rule {chain} accept" for chain in found.drops if chain.startswith("bridge ")]
    if found.called:
        hints.append(f"on {peer}: sysctl -w {BRIDGE_SYSCTLS} (and into /etc/sysctl.d)")
    doubt = f"{', '.join(found.may_drop)} on {peer} drops bridged frames that no rule of it lets pass"
    return [
        required("peer packet filter", certain, "lets bridged frames pass", "; ".join(hints)),
        *_doubt(
            "peer filter rules", doubt if found.may_drop else "", f"see that they let this VM's frames pass on {peer}"
        ),
    ]


def _doubt(name: str, problem: str, hint: str) -> list[Check]:
    """Advice that is told only where there is something to say."""
    return [advice(name, problem, "", hint)] if problem else []
