#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# mmdebstrap hook, $1 is the machine's root: what must be there before the packages are installed.
set -eu
# An initramfs of the few modules that lead to the root disk; all others are loaded from there, as on any Debian.
install -d "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"
printf 'MODULES=list\nBUSYBOX=n\nCOMPRESS=gzip\nFSTYPE=ext4\n' > "$1/etc/initramfs-tools/conf.d/machines"
printf '%s\n' virtio_pci virtio_blk virtio_net ext4 > "$1/usr/share/initramfs-tools/modules.d/machines"
