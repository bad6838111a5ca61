#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# libvirt asks this before it starts a VM: one that another host may own does not start here, whoever wants it.
# libvirt runs it as `remusdb VM OPERATION SUB-OPERATION EXTRA`. Nothing of remusdb need be there.
LC_ALL=C
export LC_ALL
STATE_DIR=/var/lib/remusdb

case "$2 $3" in
    "prepare begin") refused="fenced armed" ;;
    "migrate begin") refused="fenced armed seeding protected standby promoting" ;; # a VM that comes from elsewhere
    *) exit 0 ;; # a failure would not keep the VM from starting; at "reconnect" it would kill one that runs
esac

# The file's name as remusdb writes it (remusdb/names.py): all but a few characters as %XX.
quoted='' rest=$1
while [ -n "$rest" ]; do
    after=${rest#?}
    char=${rest%"$after"}
    case $char in
        [A-Za-z0-9_.~\ -]) quoted=$quoted$char ;;
        *) quoted=$quoted$(printf '%%%02X' "$(($(printf %d "'$char") & 255))") ;;
    esac
    rest=$after
done
case $quoted in .*) quoted=%2E${quoted#.} ;; esac
[ "${#quoted}" -le 160 ] || quoted=%=$(printf %s "$1" | sha256sum | cut -c 1-32)
file=$STATE_DIR/vms/$quoted.json
[ -e "$file" ] || exit 0

role='' armed='' owner='' peer=''
while IFS= read -r line; do
    value=${line#*\": }
    value=${value%,}
    value=${value#\"}
    value=${value%\"}
    case $line in
        '  "role": '*) role=$value ;;
        '  "armed": true'*) armed=yes ;;
        '  "owner": '*) owner=$value ;;
        '  "peer": '*) peer=$value ;;
    esac
done <"$file"
[ "$role $armed" = "protected yes" ] && role=armed

case " $refused " in
    *" ${role:-fenced} "*) ;; # a file that says no role cannot be read: nobody knows who owns the VM
    *) exit 0 ;;
esac
case $role in
    fenced) why="host ${owner:-(not known)} owns this VM now" ;;
    armed) why="host ${peer:-(not known)} may have taken this VM over; remusdb finds out once both hosts are connected" ;;
    "") why="$file cannot be read, so it is not known who owns this VM" ;;
    *) why="remusdb has this VM in its care ($role)" ;;
esac
echo "remusdb: $why. If you are sure that the VM runs nowhere, move $file away and start it again." >&2
exit 1
