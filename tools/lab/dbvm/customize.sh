#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# mmdebstrap hook, $1 is the VM's root: turns an installed Debian into the lab's VM. What its DBMS needs is done by the
# customize.sh in the folder of that, after this one.
set -eu
root=$1

echo lab-db > "$root/etc/hostname"
echo '/dev/vda / ext4 defaults 0 0' > "$root/etc/fstab"

cat > "$root/etc/systemd/system/lab-network.service" <<'UNIT'
[Unit]
Description=Static addresses
DefaultDependencies=no
Before=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=ip link set lo up
ExecStart=ip address add 10.77.0.10/24 dev eth0
ExecStart=ip address add fd77::10/64 dev eth0 nodad
ExecStart=ip link set eth0 up

[Install]
WantedBy=sysinit.target
UNIT
chroot "$root" systemctl -q enable lab-network.service
chroot "$root" systemctl -q set-default multi-user.target
# Every unit costs boot time in emulation; none of these does anything for this VM.
chroot "$root" systemctl -q mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer e2scrub_reap.service fstrim.timer getty.target systemd-timesyncd.service \
    systemd-networkd.service systemd-resolved.service systemd-journal-flush.service systemd-update-utmp.service \
    systemd-update-utmp-runlevel.service systemd-user-sessions.service systemd-logind.service systemd-pstore.service \
    systemd-binfmt.service systemd-machine-id-commit.service systemd-firstboot.service systemd-hwdb-update.service \
    sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount \
    dev-hugepages.mount dev-mqueue.mount proc-sys-fs-binfmt_misc.automount modprobe@.service \
    systemd-tmpfiles-clean.timer systemd-repart.service systemd-boot-system-token.service
chroot "$root" systemd-machine-id-setup > /dev/null
