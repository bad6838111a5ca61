# SPDX-License-Identifier: Apache-2.0
"""What several targets have samples of: a VM, and what a backup says that this VM would find there."""

from __future__ import annotations

from remusdb.core.probe import (
    Answer,
    Arbitration,
    Bridge,
    Confinement,
    Forwarding,
    HugePages,
    Namesake,
    Uplink,
)
from remusdb.preflight.here import Here

DOMAIN = """<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>db1</name>
<uuid>0b1c8f5e-7d0e-4c57-9c0b-3d7f0a1b2c3d</uuid><memory unit='KiB'>1048576</memory>
<vcpu placement='static' cpuset='0-1'>2</vcpu><cputune><vcpupin vcpu='0' cpuset='0,^1'/></cputune>
<numatune><memory mode='strict' nodeset='0'/></numatune>
<os><type arch='x86_64' machine='pc-q35-8.2'>hvm</type><loader readonly='yes' type='pflash'>/x/c.fd</loader>
<nvram>/var/lib/libvirt/qemu/nvram/db1.fd</nvram></os><features><acpi/></features>
<cpu mode='custom'><model>Nehalem</model></cpu><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/var/lib/libvirt/images/db1.raw'/>
<target dev='vda' bus='virtio'/><alias name='virtio-disk0'/></disk>
<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><target dev='vnet3'/>
<model type='virtio'/></interface><graphics type='vnc' port='5900' listen='127.0.0.1'/>
<serial type='pty'><source path='/dev/pts/1'/><target port='0'/></serial><memballoon model='virtio'/></devices>
<qemu:commandline><qemu:arg value='-mon'/><qemu:arg value='chardev=remusdb-qmp,mode=control'/></qemu:commandline>
</domain>"""

BRIDGE = Bridge("br0", there=True, up=True, mtu=1500, uplinks=[Uplink("eth0", 1500)])
HERE = Here(
    "alpha", 100, "7", {"br0": BRIDGE}, {"vnet3": 1500}, {"vnet3": {}}, tun_offloads=0x7F, vhost=-1, cpu="",
    disks={"vda": 10 << 20},
)  # fmt: skip
GOOD = Answer(
    agent="beta", sees="alpha", silence_ms=500, arbiter=Arbitration("7"), domain_types=["qemu", "kvm"], cpus="0-3",
    nodes="0", huge_pages={2048: HugePages(0, mounted=False)}, huge_page_kib=2048, tun_offloads=0x1FF, vhost=-1,
    forwarding=Forwarding(called=True), confinement=Confinement(confined=False), image_free=1 << 30, memory_problem="",
    paths={"/usr/bin/qemu-system-x86_64": ""}, bridges={"br0": BRIDGE}, taken_links=[], listens={},
    namesakes=[Namesake("db1", "0b1c8f5e-7d0e-4c57-9c0b-3d7f0a1b2c3d", False, True, False)], cpu="",
    host_cpu="identical",
)  # fmt: skip
