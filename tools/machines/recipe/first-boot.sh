#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Run in the image's one boot before it is kept: libvirt asks QEMU what it can do, and keeps the answer. Then what must
# be each machine's own is taken away again.
set -eu
virsh -c qemu:///system capabilities > /dev/null
virsh -c qemu:///system domcapabilities > /dev/null
virsh -c qemu:///system domcapabilities --virttype qemu > /dev/null
rm -f /etc/ssh/ssh_host_*_key* /var/lib/systemd/random-seed
journalctl -q --rotate && journalctl -q --vacuum-time=1s
: > /etc/machine-id
sync
