#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs what remusdb's lab and the tests with QEMU and namespaces need on Debian 12 or 13: system packages, and then
# .venv (tools/venv.sh). Needs root. Safe to run again: under a second when nothing is to do. Talks on stderr only.
set -eu
cd "$(dirname "$0")/.."

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }

packages="qemu-system-x86 qemu-utils seabios ovmf mtools libvirt-daemon libvirt-daemon-driver-qemu
libvirt-daemon-driver-storage libvirt-clients libvirt-dev
pkg-config gcc binutils libc6-dev python3-dev python3-venv mmdebstrap iproute2 nftables nbdkit nbdkit-plugin-python
libnbd-bin postgresql-client e2fsprogs util-linux etcd-server openssh-client openssh-server busybox-static kmod systemd
chromium chromium-driver prometheus"
least_qemu=1:10.0 # what the checkpoint mechanism was measured on; Debian 12 itself has 7.2

installed() {
    # shellcheck disable=SC2086 # a list
    for status in $(dpkg-query -W -f '${db:Status-Status}\n' $packages 2> /dev/null || echo missing); do
        [ "$status" = installed ] || return 1
    done
    dpkg --compare-versions "$(dpkg-query -W -f '${Version}' qemu-system-x86)" ge "$least_qemu"
}

# Debian 12 gets QEMU and libvirt from its backports suite, on the mirror that apt uses already.
# shellcheck disable=SC2016 # apt's own words
add_backports() {
    [ -z "$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Codename: bookworm-backports')" ] || return 0
    uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1)
    [ -n "$uri" ] || fail "apt has no source for bookworm: cannot tell where its backports are"
    say "adding bookworm-backports from $uri"
    cat > /etc/apt/sources.list.d/remusdb-backports.sources << SOURCE
Types: deb
URIs: $uri
Suites: bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCE
    apt-get update -qq >&2
}

# The lab runs an etcd, sshds and a Prometheus of its own. Debian's packages start one for the machine too. A Prometheus
# would listen on every address: it is not started, nor at the next boot. With systemd etcd's may be (it listens on
# loopback only), but without systemd its init script can fail, and the package with it: there none is started.
# shellcheck disable=SC2016 # what is written is a script
without_starting() {
    policy=/usr/sbin/policy-rc.d
    unwanted="prometheus"
    [ -d /run/systemd/system ] || unwanted="etcd | ssh | prometheus"
    if [ -e "$policy" ]; then
        "$@"
        return
    fi
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\ncase $1 in %s) exit 101 ;; *.service) exec "$0" "${1%%.service}" ;; esac\n' "$unwanted" > "$policy"
    chmod +x "$policy"
    "$@"
    rm -f "$policy"
    trap - EXIT
}

install_packages() {
    say "installing system packages"
    suite=$VERSION_CODENAME
    apt-get update -qq >&2 # before apt is asked for sources: it only knows their codenames from what it fetched
    if [ "$suite" = bookworm ]; then
        suite=bookworm-backports
        add_backports
    fi
    had_prometheus=$(dpkg-query -W -f '${db:Status-Status}' prometheus 2> /dev/null || true)
    # shellcheck disable=SC2086
    without_starting env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y -o DPkg::Lock::Timeout=120 --no-install-recommends -t "$suite" $packages >&2
    if [ "$had_prometheus" != installed ] && [ -d /run/systemd/system ]; then
        systemctl --quiet disable prometheus.service
    fi
    installed || fail "some of these are still missing, or QEMU is older than $least_qemu: $packages"
}

[ "$(id -u)" = 0 ] || fail "this installs system packages and needs root; \`make check\` does not"
# shellcheck source=/dev/null
. /etc/os-release
case ${VERSION_CODENAME-} in
    bookworm | trixie) ;;
    *) fail "this is ${PRETTY_NAME-an unknown system}; Debian 12 (bookworm) or 13 (trixie) is needed" ;;
esac
# Debian 13 has no Vagrant: there the test of vagrant/ makes itself a small Debian 12 (tools/machines/validate.py).
[ "$VERSION_CODENAME" != bookworm ] || packages="$packages vagrant vagrant-libvirt"
installed || install_packages
# The VM's image is built from apt's own sources; apt knows their codenames only from lists that it fetched.
# shellcheck disable=SC2016
[ -n "$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' "Codename: $VERSION_CODENAME")" ] || apt-get update -qq >&2
tools/venv.sh
