# SPDX-License-Identifier: Apache-2.0
"""Bridges, taps and packet filters of a real kernel, as the check of a backup sees them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from remusdb.core.probe import Bridge, Forwarding, Uplink
from remusdb.net import forwarding, offloads
from remusdb.net.bridges import Bridges
from tests.host.netlab import own_namespace, sh


@pytest.fixture(autouse=True)
def _namespace() -> Iterator[None]:
    with own_namespace():
        yield


def test_a_bridge_and_what_leads_out_of_it() -> None:
    sh("ip link add br0 type bridge; ip link set br0 up; ip link add br1 type bridge")
    sh("ip link add out type veth peer name far; ip link set out mtu 9000 master br0 up")
    sh("ip link add off type veth peer name far2; ip link set off master br0")
    sh("ip tuntap add vnet7 mode tap; ip link set vnet7 mtu 9000 master br0 up; ip link set br0 mtu 9000")
    found = Bridges()
    assert found.bridge("br0") == Bridge("br0", True, True, 9000, uplinks=[Uplink("out", 9000)])
    assert found.bridge("br1") == Bridge("br1", there=True, mtu=1500)
    assert found.bridge("none") == Bridge("none") and found.bridge("out") == Bridge("out")
    assert found.mtu("vnet7") == 9000 and found.mtu("none") == 0
    assert found.there("vnet7") and not found.there("none")
    # What is no container's goes before what may be one's.
    sh("ip link add real type vxlan id 5 dstport 4789; ip link set real master br0 up")
    assert [uplink.name for uplink in Bridges().bridge("br0").uplinks] == ["real"]


def test_a_filter_that_drops_what_is_forwarded() -> None:
    assert forwarding.look() == Forwarding(called=True)  # a new namespace has br_netfilter's default
    sh("nft add table inet f; nft 'add chain inet f fw { type filter hook forward priority 0; policy drop; }'")
    assert forwarding.look() == Forwarding(True, ["inet f fw"])
    sh("nft add rule inet f fw tcp dport 25 drop")
    assert forwarding.look() == Forwarding(True, ["inet f fw"])
    sh("nft add rule inet f fw ct state established accept")
    assert forwarding.look() == Forwarding(True, [], ["inet f fw"])
    sh("sysctl -w net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0")
    assert forwarding.look() == Forwarding(called=False)
    sh("nft add table bridge f; nft 'add chain bridge f fw { type filter hook forward priority 0; policy drop; }'")
    assert forwarding.look() == Forwarding(False, ["bridge f fw"])


def test_a_tap_tells_its_offloads_and_leaves_nothing_behind() -> None:
    before = sh("ip link")
    taken = offloads.tun_offloads()
    assert taken & (offloads.CSUM | offloads.TSO4 | offloads.TSO6) == offloads.CSUM | offloads.TSO4 | offloads.TSO6
    assert "checksums, TSO" in offloads.told(taken)
    assert sh("ip link") == before
    assert offloads.vhost_features("/dev/none") == offloads.NO_VHOST
