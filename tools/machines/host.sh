#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes a Debian 13 a host of remusdb, as README's "On your own hosts" says, with what lies beside this file: the .deb,
# each host's certificates. Run as root on each host; may be run again.
#
#   sh host.sh NAME PEER PEER_ADDRESS [SETTINGS]
#
# SETTINGS: a folder with host.toml and agent.toml, each appended to what is written here.
set -eu
name=$1 peer=$2 peer_address=$3 settings=${4-}
here=$(dirname "$(realpath "$0")")

DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$here"/remusdb_*.deb
cp "$here/tls/$name"/* /etc/remusdb/tls/
cat > /etc/remusdb/host.toml << TOML
[host]
name = "$name"

[peers.$peer]
address = "$peer_address"

TOML
cat > /etc/remusdb/agent.toml << TOML
[agent]
name = "$name"

[primaries.$peer]

TOML
if [ -n "$settings" ]; then
    for file in host agent; do cat "$settings/$file.toml" >> "/etc/remusdb/$file.toml"; done
fi
remusdb config check /etc/remusdb/host.toml
remusdb config check /etc/remusdb/agent.toml

systemctl -q enable remusdb-agent remusdb-host remusdb-evacuate
systemctl restart remusdb-agent remusdb-host
systemctl start remusdb-evacuate
systemctl try-restart libvirtd # once: it then asks remusdb's hook before it starts a VM
