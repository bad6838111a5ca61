#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# mmdebstrap hook, $1 is the VM's root: what must be there before the packages are installed.
set -eu
# An initramfs of the few modules that this one VM needs: it is built faster and boots faster.
install -d "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"
printf 'MODULES=list\nBUSYBOX=n\nCOMPRESS=gzip\nFSTYPE=ext4\n' > "$1/etc/initramfs-tools/conf.d/lab"
printf '%s\n' virtio_pci virtio_blk virtio_net ext4 > "$1/usr/share/initramfs-tools/modules.d/lab"
# PostgreSQL's cluster is made by its own customize.sh, where an error is seen.
install -d "$1/etc/postgresql-common"
echo 'create_main_cluster = false' > "$1/etc/postgresql-common/createcluster.conf"
