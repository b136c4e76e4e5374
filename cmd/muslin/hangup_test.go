package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hangupChild makes the test binary a program that says what becomes of SIGHUP.
const hangupChild = "MUSLIN_TEST_HANGUP"

// SIGHUP asks for the settings to be read again, with a terminal and without; where the terminal is gone it is the end,
// but for a program that nohup has started.
func TestHangup(t *testing.T) {
	if os.Getenv(hangupChild) != "" {
		h := takeHangups()
		ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
		defer stop()
		fmt.Println("begun")
		h.run(ctx, func() { fmt.Println("reload") }, func() { fmt.Println("gone"); os.Exit(0) })
		return
	}
	for name, c := range map[string]struct {
		terminal bool
		trap     string
		after    string // what is said when the terminal goes
	}{
		"a terminal":    {true, "", "gone"},
		"under nohup":   {true, "trap '' HUP; ", "reload"},
		"none":          {false, "", ""},
		"none, ignored": {false, "trap '' HUP; ", ""},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("sh", "-c", c.trap+`exec /proc/`+fmt.Sprint(os.Getpid())+`/exe -test.run='^TestHangup$'`)
			cmd.Env = append(os.Environ(), hangupChild+"=1")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			var terminal *os.File
			if c.terminal {
				var slave *os.File
				terminal, slave = openTerminal(t)
				defer slave.Close()
				cmd.Stdin, cmd.SysProcAttr.Setctty = slave, true
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				cmd.Process.Kill()
				cmd.Wait()
			}()
			lines := bufio.NewScanner(out)
			expect := func(want string) {
				t.Helper()
				if !lines.Scan() || lines.Text() != want {
					t.Fatalf("said %q, want %q", lines.Text(), want)
				}
			}
			expect("begun")
			for range 2 {
				if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
					t.Fatal(err)
				}
				expect("reload")
			}
			if c.terminal {
				terminal.Close()
				expect(c.after)
			}
		})
	}
}

// openTerminal makes a pseudo-terminal (pty(7)). It hangs up when terminal is closed.
func openTerminal(t *testing.T) (terminal, slave *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	terminal = os.NewFile(uintptr(fd), "ptmx")
	t.Cleanup(func() { terminal.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return terminal, slave
}
