#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Defines and starts the bare-metal guest as a VM on this host: 64 MiB, a disk, an interface on br0, a serial console in
# /var/log/libvirt/NAME-serial.log where it counts. Under KVM where there is one. Its kernel is at
# /var/lib/libvirt/boot/guest.bin, where remusdb's agent lets a VM's kernel be (docs/configuration.md).
#
#   sh vm.sh NAME [kvm|qemu]
set -eu
name=$1
kind=qemu cpu=Nehalem
if [ -c /dev/kvm ] && [ "${2-kvm}" = kvm ]; then kind=kvm cpu=qemu64; fi
truncate -s 8M "/var/lib/libvirt/images/$name.raw"
virsh define /dev/stdin << XML
<domain type='$kind'>
  <name>$name</name>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type>
    <loader readonly='yes' type='rom'>/usr/share/qemu/qboot.rom</loader>
    <kernel>/var/lib/libvirt/boot/guest.bin</kernel></os>
  <features><acpi/><apic/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>$cpu</model></cpu>
  <clock offset='utc'/>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='/var/lib/libvirt/images/$name.raw'/><target dev='vda' bus='virtio'/>
    </disk>
    <interface type='bridge'>
      <mac address='52:54:00:77:01:20'/><source bridge='br0'/><model type='virtio'/>
    </interface>
    <serial type='file'><source path='/var/log/libvirt/$name-serial.log'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
XML
virsh start "$name"
