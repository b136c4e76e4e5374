# Becomes a systemd that sees nothing of the machine that it could change. It runs in fresh mount, PID, IPC, UTS and
# cgroup namespaces, in the network namespace of a host of the lab.
#
# boot.sh DIR: an empty directory for the new root; DIR.install, what `make install` installed below /usr/local; and
# DIR.etc, what goes over the machine's /etc.
#
# The new root is a tmpfs. Of the machine it has /usr alone, for reading, and a copy of a few files of /etc.
# systemd looks for units, and for generators of units, in two directories that hold nothing but what this test put
# there: the machine's own services (one of which empties /tmp) are not even known.
set -eu
root=$1

mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir -p dev etc home old proc root run sys tmp usr var/lib var/log var/tmp
chmod 1777 tmp var/tmp
mount --bind /usr usr
mount -o remount,bind,ro usr
mount --bind "$root.install" usr/local
mount -o remount,bind,ro usr/local
for link in bin sbin lib lib32 lib64 libx32; do
	[ -L /$link ] && cp -P /$link .
done
cp -a /etc/alternatives /etc/ld.so.cache /etc/nsswitch.conf etc/
cp -a "$root.etc/." etc/
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n' > etc/passwd
printf 'root:x:0:\nnogroup:x:65534:\n' > etc/group

mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/hugepages dev/mqueue dev/net dev/pts dev/shm
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mknod -m 666 dev/tty c 5 0
ln -s pts/ptmx dev/ptmx
mknod -m 666 dev/net/tun c 10 200 # as udev makes it
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount --bind proc/sys/net proc/sys/net # which belongs to the network namespace
mount -o remount,bind,ro proc/sys
[ ! -e proc/sysrq-trigger ] || mount --bind dev/null proc/sysrq-trigger
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run

pivot_root . old
umount -l old
cd /
rmdir old
# From here on the machine's file systems are out of reach. If they are not, go no further.
if [ -e "$root" ] || [ -e /old ] || grep -v -E ' /usr(/local)? ' /proc/self/mounts | grep -v -E '^(tmpfs|proc|sysfs|cgroup2) '; then
	echo "boot.sh: the new root still sees the machine" >&2
	exit 1
fi

systemd-sysusers muslin.conf
systemd-tmpfiles --create muslin.conf
exec env -i PATH="$PATH" container=lab \
	SYSTEMD_UNIT_PATH=/etc/systemd/system:/usr/local/lib/systemd/system \
	SYSTEMD_GENERATOR_PATH=/etc/systemd/none SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/etc/systemd/none \
	setpriv --bounding-set=-sys_module,-sys_time,-sys_boot,-sys_rawio \
	/lib/systemd/systemd --system --log-target=console --show-status=no
