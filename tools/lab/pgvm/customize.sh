#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# mmdebstrap hook, $1 is the VM's root: turns an installed Debian into the lab's database VM.
set -eu
root=$1
here=$(dirname "$(realpath "$0")")
version=$(ls "$root/usr/lib/postgresql")
bin=/usr/lib/postgresql/$version/bin
data=/var/lib/postgresql/$version/main
conf=/etc/postgresql/$version/main

echo lab-pg > "$root/etc/hostname"
echo '/dev/vda / ext4 defaults 0 0' > "$root/etc/fstab"

# Data checksums, so that a page which a failover mangled is an error in the database and not a wrong answer.
chroot "$root" pg_createcluster --encoding=UTF8 --locale=C.UTF-8 "$version" main -- --no-sync --data-checksums > /dev/null
cat >> "$root$conf/postgresql.conf" <<'CONF'
listen_addresses = '*'
max_connections = 100
shared_buffers = 64MB
huge_pages = off
max_wal_size = 256MB
jit = off
ssl = off
CONF
cat >> "$root$conf/pg_hba.conf" <<'CONF'
host all all 10.77.0.0/24 trust
host all all fd77::/64 trust
CONF

# The database, made here and not at each boot. There is no /dev/shm in this chroot.
run() { chroot "$root" runuser -u postgres -- "$@"; }
run "$bin/pg_ctl" -s -w -D "$data" \
    -o "-c config_file=$conf/postgresql.conf -c listen_addresses= -c dynamic_shared_memory_type=mmap -c fsync=off" start
trap 'run "$bin/pg_ctl" -s -D "$data" -m fast stop || true' EXIT
run psql -q -v ON_ERROR_STOP=1 -c 'CREATE DATABASE bank'
run psql -q -v ON_ERROR_STOP=1 -d bank < "$here/bank.sql"
trap - EXIT
run "$bin/pg_ctl" -s -w -D "$data" -m fast stop

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
# Debian's own unit goes through a Perl wrapper, which costs seconds in emulation.
cat > "$root/etc/systemd/system/lab-postgresql.service" <<UNIT
[Unit]
Description=PostgreSQL
Wants=lab-network.service
After=lab-network.service

[Service]
Type=notify
User=postgres
RuntimeDirectory=postgresql
ExecStart=$bin/postgres -D $data -c config_file=$conf/postgresql.conf
KillSignal=SIGINT
StandardOutput=journal+console
StandardError=journal+console

[Install]
WantedBy=multi-user.target
UNIT
chroot "$root" systemctl -q enable lab-network.service lab-postgresql.service
chroot "$root" systemctl -q set-default multi-user.target
# Every unit costs boot time in emulation; none of these does anything for this VM.
chroot "$root" systemctl -q mask postgresql.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer e2scrub_reap.service fstrim.timer getty.target systemd-timesyncd.service \
    systemd-networkd.service systemd-resolved.service systemd-journal-flush.service systemd-update-utmp.service \
    systemd-update-utmp-runlevel.service systemd-user-sessions.service systemd-logind.service systemd-pstore.service \
    systemd-binfmt.service systemd-machine-id-commit.service systemd-firstboot.service systemd-hwdb-update.service \
    sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount \
    dev-hugepages.mount dev-mqueue.mount proc-sys-fs-binfmt_misc.automount modprobe@.service \
    systemd-tmpfiles-clean.timer systemd-repart.service systemd-boot-system-token.service
chroot "$root" systemd-machine-id-setup > /dev/null
