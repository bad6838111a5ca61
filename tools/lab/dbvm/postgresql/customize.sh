#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# mmdebstrap hook, $1 is the VM's root: PostgreSQL with the bank in it, started at boot.
set -eu
root=$1
here=$(dirname "$(realpath "$0")")
version=$(ls "$root/usr/lib/postgresql")
bin=/usr/lib/postgresql/$version/bin
data=/var/lib/postgresql/$version/main
conf=/etc/postgresql/$version/main

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
chroot "$root" systemctl -q enable lab-postgresql.service
chroot "$root" systemctl -q mask postgresql.service
