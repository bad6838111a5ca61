#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# `make vagrant-demo`: both hosts up, a VM protected, its host killed, the failover shown, all destroyed again.
# The box is there (make vagrant-box). README.md beside this says what of it was run.
set -eu
cd "$(dirname "$0")"
vm=counter

say() { echo "vagrant-demo: $*" >&2; }
on() { host=$1; shift; vagrant ssh "$host" -c "$*" 2> /dev/null; }
# wait_for SECONDS WHAT COMMAND...
wait_for() {
    left=$1 what=$2
    shift 2
    until "$@"; do
        left=$((left - 2))
        [ "$left" -gt 0 ] || { say "it does not come: $what"; exit 1; }
        sleep 2
    done
}
is_protected() { on alpha remusdb status $vm --json | grep -q '"state": *"protected"'; }
runs_on_beta() { on beta virsh domstate $vm | grep -q running; }

vagrant box add --force --provider libvirt --name remusdb-host ../build/vagrant/remusdb-host.box
trap 'vagrant destroy -f; vagrant box remove --force --provider libvirt remusdb-host' EXIT
trap 'exit 130' INT TERM
vagrant up --provider libvirt --no-parallel

say "a VM on alpha, protected to beta"
for host in alpha beta; do on $host install -D -m 644 /root/remusdb/guest.bin /var/lib/libvirt/boot/guest.bin; done
on alpha sh /root/remusdb/vm.sh $vm
on alpha remusdb check $vm --to beta
on alpha remusdb protect $vm --to beta
wait_for 120 "the VM is protected" is_protected
on alpha remusdb status $vm

say "alpha loses power"
virsh -c qemu:///system destroy "$(basename "$PWD")_alpha"
wait_for 60 "beta runs the VM" runs_on_beta
on beta remusdb history $vm
say "beta runs it"
