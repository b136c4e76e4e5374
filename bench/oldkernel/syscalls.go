//go:build linux && (amd64 || arm64)

package main

import "golang.org/x/sys/unix"

// syscalls are the system calls that Linux got after 3.2, the oldest kernel that a Go 1.26 binary runs on; the
// versions are those of each call's manual page, and of syscalls(2) where a call has none. An older kernel says
// ENOSYS. sendmmsg (3.0) and recvmmsg (2.6.33) are not among them: every kernel that Go runs on has them.
var syscalls = []struct {
	name   string
	number uintptr
	since  version
}{
	{"kcmp", unix.SYS_KCMP, version{3, 5}},
	{"finit_module", unix.SYS_FINIT_MODULE, version{3, 8}},
	{"sched_setattr", unix.SYS_SCHED_SETATTR, version{3, 14}},
	{"sched_getattr", unix.SYS_SCHED_GETATTR, version{3, 14}},
	{"renameat2", unix.SYS_RENAMEAT2, version{3, 15}},
	{"seccomp", unix.SYS_SECCOMP, version{3, 17}},
	{"getrandom", unix.SYS_GETRANDOM, version{3, 17}},
	{"memfd_create", unix.SYS_MEMFD_CREATE, version{3, 17}},
	{"bpf", unix.SYS_BPF, version{3, 18}},
	{"execveat", unix.SYS_EXECVEAT, version{3, 19}},
	{"membarrier", unix.SYS_MEMBARRIER, version{4, 3}},
	{"userfaultfd", unix.SYS_USERFAULTFD, version{4, 3}},
	{"mlock2", unix.SYS_MLOCK2, version{4, 4}},
	{"copy_file_range", unix.SYS_COPY_FILE_RANGE, version{4, 5}},
	{"preadv2", unix.SYS_PREADV2, version{4, 6}},
	{"pwritev2", unix.SYS_PWRITEV2, version{4, 6}},
	{"pkey_mprotect", unix.SYS_PKEY_MPROTECT, version{4, 9}},
	{"pkey_alloc", unix.SYS_PKEY_ALLOC, version{4, 9}},
	{"pkey_free", unix.SYS_PKEY_FREE, version{4, 9}},
	{"statx", unix.SYS_STATX, version{4, 11}},
	{"io_pgetevents", unix.SYS_IO_PGETEVENTS, version{4, 18}},
	{"rseq", unix.SYS_RSEQ, version{4, 18}},
	{"pidfd_send_signal", unix.SYS_PIDFD_SEND_SIGNAL, version{5, 1}},
	{"io_uring_setup", unix.SYS_IO_URING_SETUP, version{5, 1}},
	{"io_uring_enter", unix.SYS_IO_URING_ENTER, version{5, 1}},
	{"io_uring_register", unix.SYS_IO_URING_REGISTER, version{5, 1}},
	{"open_tree", unix.SYS_OPEN_TREE, version{5, 2}},
	{"move_mount", unix.SYS_MOVE_MOUNT, version{5, 2}},
	{"fsopen", unix.SYS_FSOPEN, version{5, 2}},
	{"fsconfig", unix.SYS_FSCONFIG, version{5, 2}},
	{"fsmount", unix.SYS_FSMOUNT, version{5, 2}},
	{"fspick", unix.SYS_FSPICK, version{5, 2}},
	{"pidfd_open", unix.SYS_PIDFD_OPEN, version{5, 3}},
	{"clone3", unix.SYS_CLONE3, version{5, 3}},
	{"openat2", unix.SYS_OPENAT2, version{5, 6}},
	{"pidfd_getfd", unix.SYS_PIDFD_GETFD, version{5, 6}},
	{"faccessat2", unix.SYS_FACCESSAT2, version{5, 8}},
	{"close_range", unix.SYS_CLOSE_RANGE, version{5, 9}},
	{"process_madvise", unix.SYS_PROCESS_MADVISE, version{5, 10}},
	{"epoll_pwait2", unix.SYS_EPOLL_PWAIT2, version{5, 11}},
	{"mount_setattr", unix.SYS_MOUNT_SETATTR, version{5, 12}},
	{"landlock_create_ruleset", unix.SYS_LANDLOCK_CREATE_RULESET, version{5, 13}},
	{"quotactl_fd", unix.SYS_QUOTACTL_FD, version{5, 14}},
	{"memfd_secret", unix.SYS_MEMFD_SECRET, version{5, 14}},
	{"process_mrelease", unix.SYS_PROCESS_MRELEASE, version{5, 15}},
	{"futex_waitv", unix.SYS_FUTEX_WAITV, version{5, 16}},
	{"set_mempolicy_home_node", unix.SYS_SET_MEMPOLICY_HOME_NODE, version{5, 17}},
	{"cachestat", unix.SYS_CACHESTAT, version{6, 5}},
	{"fchmodat2", unix.SYS_FCHMODAT2, version{6, 6}},
	{"futex_wake", unix.SYS_FUTEX_WAKE, version{6, 7}},
	{"futex_wait", unix.SYS_FUTEX_WAIT, version{6, 7}},
	{"futex_requeue", unix.SYS_FUTEX_REQUEUE, version{6, 7}},
	{"statmount", unix.SYS_STATMOUNT, version{6, 8}},
	{"listmount", unix.SYS_LISTMOUNT, version{6, 8}},
	{"mseal", unix.SYS_MSEAL, version{6, 10}},
}

func syscallRows() []row {
	var rows []row
	for _, s := range syscalls {
		rows = append(rows, row{name: s.name, since: s.since, source: s.name + "(2)", call: on(s.number), errno: unix.ENOSYS})
	}
	return rows
}
