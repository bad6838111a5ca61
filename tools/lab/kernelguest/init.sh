#!/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of a kernelguest (tools/lab/kernelguest): this machine's files, read-only, under another kernel.
# What is written goes into memory and is gone with the guest.
b=/busybox
repo=$($b sed 's/.*repo=\([^ ]*\).*/\1/' /job/cmdline)
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
for module in /modules/*.ko; do
    $b insmod "$module" || $b echo "GUEST: $module does not load"
done
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host
for at in proc:/proc sysfs:/sys devtmpfs:/dev cgroup2:/sys/fs/cgroup tmpfs:/tmp tmpfs:/run; do
    $b mount -t "${at%%:*}" none "/host${at#*:}"
done
for link in fd: stdin:/0 stdout:/1 stderr:/2; do
    $b ln -s "/proc/self/fd${link#*:}" "/host/dev/${link%%:*}"
done
$b mkdir -p /host/dev/pts /host/dev/shm /over
$b mount -t devpts none /host/dev/pts
$b mount -t tmpfs none /host/dev/shm
$b mount -t tmpfs none /over
$b mkdir /over/upper /over/work
$b mount -t overlay -o "lowerdir=/host$repo/build,upperdir=/over/upper,workdir=/over/work" none "/host$repo/build"
$b tar -x -f /job/python.tar -C /over
for folder in /over/usr/lib/python* "/over$repo/.venv/lib/"python*; do
    $b mount --bind "$folder" "/host${folder#/over}"
done
$b ip link set lo up
$b date -s "$($b cat /job/date)" > /dev/null
$b cp /job/command /host/tmp/job
$b umount /proc
$b cat > /host/tmp/init << END
export PATH=$repo/.venv/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp PYTHONDONTWRITEBYTECODE=1
cd $repo
sh /tmp/job < /dev/null
echo "GUEST: the job ended with \$?"
sync
echo o > /proc/sysrq-trigger
sleep 60
END
# Not chroot: who enters a mount namespace by nsenter starts from that namespace's root.
exec $b switch_root -c /dev/console /host /bin/sh /tmp/init
