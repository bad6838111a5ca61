#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Puts an interface into a bridge br0, which gets the address: what a host of VMs has before remusdb comes. For
# systemd-networkd; it holds for all boots.
#
#   sh network.sh INTERFACE ADDRESS/PREFIX
set -eu
interface=$1 address=$2
cd /etc/systemd/network
printf '%s\n' '[NetDev]' Name=br0 Kind=bridge '' '[Bridge]' STP=no ForwardDelaySec=0 > 10-br0.netdev
printf '%s\n' '[Match]' "Name=$interface" '' '[Network]' Bridge=br0 > 20-br0-port.network
printf '%s\n' '[Match]' Name=br0 '' '[Network]' "Address=$address" > 30-br0.network
systemctl restart systemd-networkd
for _ in $(seq 60); do
    ip -4 -o address show dev br0 2> /dev/null | grep -q inet && exit 0
    sleep 1
done
echo "network.sh: br0 did not get $address within 60 s" >&2
exit 1
