//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
)

const (
	consoleLog = "console.log" // what the guest's kernel and init said
	suiteLog   = "suite.log"   // what the suite said
)

// commandLine is the kernel's. The guest's clock counts the ticks that it has seen (the first three): while this
// machine has no time for the guest its time stands still, and no limit passes that it could have met. What keeps
// speculation in check only costs time here.
const commandLine = "highres=off nohz=off clocksource=jiffies mitigations=off nokaslr console=ttyS0 panic=-1 rcupdate.rcu_cpu_stall_suppress=1"

// machine is a virtual machine without disks or network cards: two processors, as the machines have that the
// suite was written on.
type machine struct {
	vmlinuz, initrd string
	dir             string // for the logs
}

// boot runs the machine until it switches itself off, and returns what the guest wrote to its second serial
// port. When ctx ends the machine is killed; the kernel kills it when this process dies.
func boot(ctx context.Context, m machine) ([]byte, error) {
	log, err := os.Create(filepath.Join(m.dir, suiteLog))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	var out, errors bytes.Buffer
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "4G",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", m.vmlinuz, "-initrd", m.initrd,
		"-append", commandLine,
		"-serial", "file:"+filepath.Join(m.dir, consoleLog),
		"-chardev", "stdio,id=suite,signal=off", "-serial", "chardev:suite",
	)
	cmd.Stdout = io.MultiWriter(&out, log, os.Stdout)
	cmd.Stderr = &errors
	runtime.LockOSThread() // the kernel kills the machine when the thread that started it ends (prctl(2))
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("QEMU: %w: %s (%s has what the guest said)", err, bytes.TrimSpace(errors.Bytes()), m.dir)
	}
	return out.Bytes(), nil
}
