#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Inside of the VM, started for each connection to port 3307: what InnoDB's own checksums say of every tablespace. The
# server is stopped for it, so that all of its pages are in the files, and started again. Last line: how many there were.
set -u
cd /var/lib/mysql || exit
journalctl -q -o cat -u lab-mariadb.service -g '\[ERROR\]' | sed 's/^/error log: /'
systemctl stop lab-mariadb.service || echo 'the server does not stop'
count=0
for file in ibdata1 undo[0-9]* */*.ibd; do
    [ -e "$file" ] || continue
    count=$((count + 1))
    said=$(innochecksum "$file" 2>&1) || echo "$file: $said" | tr '\n' ' ' | sed 's/$/\n/'
done
echo "checked $count"
systemctl start --no-block lab-mariadb.service
