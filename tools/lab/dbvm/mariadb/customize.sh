#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# mmdebstrap hook, $1 is the VM's root: MariaDB with the bank in it, started at boot.
set -eu
root=$1
here=$(dirname "$(realpath "$0")")

# The packages of the server alone bring neither its user nor a configuration.
chroot "$root" useradd --system --user-group --home-dir /nonexistent --shell /usr/sbin/nologin mysql
install -d "$root/etc/mysql/mariadb.conf.d"
# To fit 512 MiB. What makes a commit durable is left as it comes: each one is flushed (innodb_flush_log_at_trx_commit=1),
# pages are written twice. The buffer pool's list of pages, read back in the background, is of no use to a VM this short.
cat > "$root/etc/mysql/mariadb.conf.d/99-lab.cnf" <<'CONF'
[mariadbd]
bind_address = *
skip_name_resolve
max_connections = 100
innodb_buffer_pool_size = 64M
innodb_log_file_size = 48M
innodb_checksum_algorithm = full_crc32
innodb_buffer_pool_dump_at_shutdown = OFF
innodb_buffer_pool_load_at_startup = OFF
aria_pagecache_buffer_size = 8M
key_buffer_size = 1M
CONF

# The database, made here and not at each boot.
data=/var/lib/mysql
chroot "$root" install -d -o mysql -g mysql "$data" /run/mysqld
chroot "$root" mariadb-install-db --user=mysql --datadir="$data" --cross-bootstrap --skip-test-db \
    --auth-root-authentication-method=normal > /dev/null
chroot "$root" mariadbd --bootstrap --user=mysql --datadir="$data" --skip-networking < "$here/bank.sql"
[ -s "$root$data/bank/ledger.ibd" ]

install "$here/checksums.sh" "$root/usr/local/sbin/lab-checksums"
cat > "$root/etc/systemd/system/lab-mariadb.service" <<UNIT
[Unit]
Description=MariaDB
Wants=lab-network.service
After=lab-network.service

[Service]
Type=notify
User=mysql
RuntimeDirectory=mysqld
ExecStart=/usr/sbin/mariadbd
LimitMEMLOCK=524288
TimeoutStartSec=300
TimeoutStopSec=300
StandardOutput=journal+console
StandardError=journal+console

[Install]
WantedBy=multi-user.target
UNIT
cat > "$root/etc/systemd/system/lab-checksums.socket" <<'UNIT'
[Unit]
Description=What InnoDB's checksums say, for whoever asks
After=lab-network.service

[Socket]
ListenStream=3307
Accept=yes

[Install]
WantedBy=multi-user.target
UNIT
cat > "$root/etc/systemd/system/lab-checksums@.service" <<'UNIT'
[Service]
ExecStart=/usr/local/sbin/lab-checksums
StandardInput=socket
StandardOutput=socket
UNIT
chroot "$root" systemctl -q enable lab-mariadb.service lab-checksums.socket
