# SPDX-License-Identifier: Apache-2.0
"""Two hosts, a LAN and a client on one machine, with a real libvirtd on each host.

with Lab() as lab:
    lab.host("a").start_libvirt()
    lab.host("a").run(["virsh", "list"])
    lab.client.run(["ping", "-c1", lab.host("a").ip4])
"""

from tools.lab.host import Host
from tools.lab.lab import Lab
from tools.lab.node import Node

__all__ = ["Host", "Lab", "Node"]
