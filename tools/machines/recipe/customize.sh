#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# mmdebstrap hook, $1 is the machine's root, $2 the public key that may log in: a Debian that is to become a host of VMs.
# remusdb is not in it, nor is anything set for it: what it needs is what the story (or vagrant/) does, as a user would.
set -eu
root=$1

echo machine > "$root/etc/hostname"
echo '/dev/vda / ext4 defaults 0 1' > "$root/etc/fstab"
: > "$root/etc/machine-id" # each machine makes its own at its first boot
rm -f "$root"/etc/ssh/ssh_host_*_key*
install -d -m 700 "$root/root/.ssh"
install -m 600 "$2" "$root/root/.ssh/authorized_keys"
# Of their own, made at the first boot: a copied one would let each machine pass for the other.
cat > "$root/etc/systemd/system/ssh-host-keys.service" <<'UNIT'
[Unit]
Description=Makes this machine's ssh host key
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
Before=ssh.service ssh.socket

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key

[Install]
WantedBy=multi-user.target
UNIT
cat > "$root/etc/systemd/network/80-dhcp.network" <<'NETWORK'
[Match]
Name=eth*

[Network]
DHCP=ipv4
NETWORK
install -d "$root/var/log/journal" # what a machine logged before it was killed is read after its next boot
chroot "$root" systemctl -q enable systemd-networkd.service ssh-host-keys.service
chroot "$root" systemctl -q set-default multi-user.target
# Housekeeping by the calendar, which would fall into a run.
chroot "$root" systemctl -q mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer systemd-networkd-wait-online.service
