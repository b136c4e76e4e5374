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
	"time"
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

// silence is how long the suite may say nothing. An emulated machine of several processors hangs once in a while, with
// all of them busy.
const silence = 8 * time.Minute

// errSilent ends such a machine.
var errSilent = fmt.Errorf("the guest has said nothing for %v and was killed: it hangs", silence)

// listener passes on what the guest says, and ends the machine when that is nothing for too long.
type listener struct {
	io.Writer
	late *time.Timer
}

func (l *listener) Write(b []byte) (int, error) {
	l.late.Reset(silence)
	return l.Writer.Write(b)
}

// boot runs the machine until it switches itself off, and returns what the guest wrote to its second serial
// port. When ctx ends, or the guest is silent, the machine is killed; the kernel kills it when this process dies.
func boot(ctx context.Context, m machine) ([]byte, error) {
	ctx, kill := context.WithCancelCause(ctx)
	defer kill(nil)
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
	late := time.AfterFunc(silence, func() { kill(errSilent) })
	defer late.Stop()
	cmd.Stdout = &listener{io.MultiWriter(&out, log, os.Stdout), late}
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
