#!/bin/busybox sh
# The guest's only script: makes the machine what a freshly booted Debian is, as far as the suite can tell, runs
# the suite, and switches the machine off. Messages of the kernel and of this script go to the first serial port,
# what the host reads to the second.
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /root /mnt /var/run /var/tmp /var/lib
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs tmpfs /run
exec </dev/null >/dev/console 2>&1
ln -s /proc/self/fd /dev/fd
. /etc/muslin-vm

while read -r module; do
	modprobe "$module" || echo "no module $module"
done </etc/modules
echo /usr/bin/modprobe >/proc/sys/kernel/modprobe
ip link set lo up
# On a machine that is this slow the kernel would complain of its own slowness.
echo 0 >/proc/sys/kernel/watchdog 2>/dev/null

say() { echo "== $*" >/dev/ttyS1; }
stty -F /dev/ttyS1 raw
say "kernel $(uname -r)"
say features
muslin features --output json >/dev/ttyS1
say suite
mkdir -p /muslin/bench/e2e
cd /muslin/bench/e2e
e2e.test -test.v -test.timeout "$LIMIT" ${RUN:+-test.run "$RUN"} >/dev/ttyS1 2>&1
status=$?
say "uptime $(cut -d. -f1 /proc/uptime)"
say "status $status"
dmesg | grep -E 'BUG|WARNING|Oops|Call Trace' | head -20
sync
poweroff -f
