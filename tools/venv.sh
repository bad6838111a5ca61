#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes .venv, with what requirements.lock pins, for `make check`. Any Linux with Python 3.11 or later; no root, and
# nothing outside of this folder is touched. Safe to run again: at once when nothing is to do. Talks on stderr only.
set -eu
cd "$(dirname "$0")/.."

say() { echo "venv: $*" >&2; }
fail() {
    say "$1"
    [ -z "${2-}" ] || say "  what to do: $2"
    exit 1
}

# The system's own Python first: headers of others are often missing.
find_python() {
    for python in ${BASE_PYTHON-/usr/bin/python3 python3 python3.13 python3.12 python3.11}; do
        command -v "$python" > /dev/null || continue
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || continue
        command -v "$python"
        return
    done
    fail "no Python 3.11 or later was found" "install one, or name it: make check BASE_PYTHON=/path/to/python3"
}

# libvirt-python comes as source alone: it is compiled against the headers of this machine's libvirt.
# remusdb/native is compiled in any case, so that no numpy works in its place unseen.
can_compile() {
    packages="Debian, Ubuntu: apt install gcc pkg-config libvirt-dev python3-dev; Fedora: dnf install gcc pkgconf libvirt-devel python3-devel"
    command -v "${CC:-cc}" > /dev/null || command -v gcc > /dev/null || fail "there is no C compiler" "$packages"
    if ! .venv/bin/python -c 'import libvirt' 2> /dev/null; then
        command -v pkg-config > /dev/null || fail "pkg-config is not installed" "$packages"
        pkg-config --exists libvirt || fail "the headers of libvirt are not installed" "$packages"
    fi
    header=$("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
    [ -e "$header" ] || fail "the headers of $1 are not installed: there is no $header" "$packages"
}

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@" >&2; }

# One requirement of the lock, with its hashes.
pinned() { awk -v name="$1" '/^[^ #]/ { on = index($0, name "==") == 1 } on' requirements.lock; }

python=$(find_python)
stamp=.venv/remusdb-stamp
wanted="$(cat tools/venv.sh pyproject.toml requirements.lock remusdb/native/*.[ch] | sha256sum) $("$python" -VV | tr '\n' ' ')"
if [ "$(cat "$stamp" 2> /dev/null)" != "$wanted" ]; then
    say "making the virtual environment .venv with $python"
    rm -f "$stamp"
    # A .venv of another Python, or one that was cut short, is made again.
    if ! .venv/bin/python -m pip --version > /dev/null 2>&1 || [ "$(.venv/bin/python -VV)" != "$("$python" -VV)" ]; then
        rm -rf .venv
    fi
    [ -d .venv ] || "$python" -m venv .venv >&2 \
        || fail "$python cannot make a virtual environment" "Debian, Ubuntu: apt install python3-venv"
    lock=$(mktemp)
    trap 'rm -f "$lock"' EXIT
    # What is built here is built by the lock's setuptools, not by one that pip picks without asking for its hash.
    pinned setuptools > "$lock"
    pip install -q --require-hashes --no-deps -r "$lock"
    can_compile "$python"
    pip install -q --require-hashes --no-deps --no-build-isolation -r requirements.lock
    pip install -q --no-deps --no-build-isolation -e .
    .venv/bin/python -c 'import remusdb.native.kernels' \
        || fail "remusdb/native was not compiled" ".venv/bin/python -m pip install -v --no-deps --no-build-isolation -e . says why"
    echo "$wanted" > "$stamp"
fi
