//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// StopTimeout is how long a process may take to end after SIGTERM before it gets SIGKILL, before Patience.
const StopTimeout = 8 * time.Second

// forker starts processes from one thread that lives as long as the lab. The kernel sends the signal of
// PR_SET_PDEATHSIG when the *thread* that forked ends (prctl(2)), and Go's threads come and go.
type forker struct {
	work chan func()
	done chan struct{}
}

func newForker() *forker {
	f := &forker{work: make(chan func()), done: make(chan struct{})}
	go func() {
		runtime.LockOSThread()
		defer close(f.done)
		for fn := range f.work {
			fn()
		}
	}()
	return f
}

// start starts cmd in a process group of its own, to be killed when this process dies.
func (f *forker) start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	result := make(chan error, 1)
	f.work <- func() { result <- cmd.Start() }
	return <-result
}

// close ends the thread, and thereby whatever it started that is still alive.
func (f *forker) close() {
	close(f.work)
	<-f.done
}

// Proc is a process in a namespace of the lab.
type Proc struct {
	Name string // of its log
	Log  string // path of the file with its standard output and error

	cmd  *exec.Cmd
	done chan struct{}
}

// ErrClosed says that the lab is gone.
var ErrClosed = errors.New("the lab is closed")

// start runs args; the log is appended to, so that a restarted process has one log.
func (l *Lab) start(name string, env, args []string) (*Proc, error) {
	if err := l.enter(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer l.running.Done()
	p := &Proc{Name: name, Log: filepath.Join(l.dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: log: %w", name, err)
	}
	defer log.Close()
	p.cmd = exec.Command(args[0], args[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = append(os.Environ(), env...)

	if err := l.fork.start(p.cmd); err != nil {
		return nil, fmt.Errorf("start %s: %s: %w", name, commandLine(args), err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // the outcome is in ProcessState
	}()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.procs = append(l.procs, p)
	return p, nil
}

// PID is the process, which is also its process group.
func (p *Proc) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Proc) Done() <-chan struct{} { return p.done }

// Running reports whether the process has not ended yet.
func (p *Proc) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Wait returns the exit status: 0 to 255, or 128 and the signal's number as a shell has it. The error is
// ctx's.
func (p *Proc) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.done:
		return p.exitStatus(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for %s: %w; its log:\n%s", p.Name, context.Cause(ctx), p.Output())
	}
}

func (p *Proc) exitStatus() int {
	s := p.cmd.ProcessState
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return s.ExitCode()
}

// Signal sends a signal to the process's group. A process that has ended is not an error.
func (p *Proc) Signal(sig syscall.Signal) error {
	if !p.Running() {
		return nil
	}
	if err := syscall.Kill(-p.PID(), sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %v to %s: %w", sig, p.Name, err)
	}
	return nil
}

// Stop ends the process group by SIGTERM, after StopTimeout by SIGKILL, and waits for it. Having to kill
// is an error.
func (p *Proc) Stop() error {
	limit := Patience(StopTimeout)
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(limit):
	}
	p.Kill()
	return fmt.Errorf("%s did not end within %v of SIGTERM and was killed; its log:\n%s", p.Name, limit, p.Output())
}

// Kill ends the process group by SIGKILL and waits for it.
func (p *Proc) Kill() {
	_ = p.Signal(syscall.SIGKILL)
	<-p.done
}

// Output is what the process has written until now.
func (p *Proc) Output() string {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// WaitOutput waits until the log holds text. A process that ends without it is an error.
func (p *Proc) WaitOutput(ctx context.Context, text string) error {
	for {
		running := p.Running()
		if strings.Contains(p.Output(), text) {
			return nil
		}
		if !running {
			return fmt.Errorf("%s ended (status %d) without saying %q; its log:\n%s", p.Name, p.exitStatus(), text, p.Output())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to say %q: %w; its log:\n%s", p.Name, text, context.Cause(ctx), p.Output())
		case <-p.done:
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// ExitError is a command that ended with a status other than 0.
type ExitError struct {
	Command string // as it can be typed again
	Status  int    // as Proc.Wait has it
	Output  string // standard error, for Run standard output as well
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: exit status %d: %s", e.Command, e.Status, strings.TrimSpace(e.Output))
}

// enter makes Close wait until the caller calls running.Done.
func (l *Lab) enter() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	l.running.Add(1)
	return nil
}

// run runs a command to its end and returns its standard output and error together.
func (l *Lab) run(ctx context.Context, args []string) (string, error) {
	var output strings.Builder
	err := l.runInto(ctx, args, &output, &output)
	return output.String(), err
}

// runInto runs a command to its end; stdout and stderr may be the same. An *ExitError holds what went to
// stderr. When ctx ends, the command's process group is killed.
func (l *Lab) runInto(ctx context.Context, args []string, stdout, stderr *strings.Builder) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", commandLine(args), context.Cause(ctx))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.life, cancel)()

	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // a grandchild that left the group may hold the pipe

	if err := l.enter(); err != nil {
		return fmt.Errorf("%s: %w", commandLine(args), err)
	}
	defer l.running.Done()
	if err := l.fork.start(cmd); err != nil {
		return fmt.Errorf("%s: %w", commandLine(args), err)
	}
	err := cmd.Wait()
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w: %s", commandLine(args), context.Cause(ctx), strings.TrimSpace(stderr.String()))
	}
	if err != nil {
		p := Proc{cmd: cmd}
		return &ExitError{Command: commandLine(args), Status: p.exitStatus(), Output: stderr.String()}
	}
	return nil
}
