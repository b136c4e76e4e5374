//go:build linux

package host

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// runWhile runs beside while Run runs, and ends Run after it. Run stays on this thread, whose namespace it
// works in; beside is on another and gets a way to run commands in that namespace.
func runWhile(t *testing.T, s *State, beside func(in func(string) string)) error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	in := sameNamespace(t)
	go func() {
		defer cancel()
		beside(in)
	}()
	return s.Run(ctx)
}

func TestRunPutsBack(t *testing.T) {
	for _, tool := range bothTools {
		t.Run(tool.name, func(t *testing.T) {
			newHost(t)
			openTestTUN(t, "muslin0")
			before := snapshot(t)
			c := config(t.TempDir())
			c.UseNFTables = tool.nft
			c.Resync = 200 * time.Millisecond
			s, err := Setup(c)
			if err != nil {
				t.Fatal(err)
			}
			rules := "iptables -D FORWARD 2; iptables -t nat -F MUSLIN-POSTRTG"
			look := "iptables-save | grep -c -- '-A.*MUSLIN'"
			whole := "10"
			if tool.nft {
				rules, look, whole = "nft flush table ip muslin", "nft list table ip muslin | grep -c counter", "8"
			}
			err = runWhile(t, s, func(in func(string) string) {
				for _, d := range []struct{ damage, look, want string }{
					{"ip route del 10.244.0.0/16", "ip route show 10.244.0.0/16", "dev muslin0"},
					{"ip route del blackhole 10.244.5.0/24", "ip route show proto 218", "blackhole"},
					{"ip addr flush dev muslin0", "ip addr show muslin0; ip route", "10.244.5.0/32"},
					{"ip link set muslin0 down", "ip link show muslin0; ip route", "10.244.0.0/16 dev muslin0"},
					{"sysctl -qw net.ipv4.ip_forward=0", "sysctl -n net.ipv4.ip_forward", "1"},
					{rules, look, whole},
				} {
					in(d.damage)
					eventuallyIn(t, in, d.look, d.want)
				}
			})
			if err != nil {
				t.Errorf("Run() = %v", err)
			}
			checkSetUp(t, "0") // neither all nor default is strict
			if err := s.Undo(); err != nil {
				t.Fatal(err)
			}
			wantSame(t, before)
		})
	}
}

// Without waiting for the period: the events alone bring it back.
func TestRunHearsOfRemoval(t *testing.T) {
	newHost(t)
	openTestTUN(t, "muslin0")
	c := config(t.TempDir())
	c.Resync = time.Hour
	s, err := Setup(c)
	if err != nil {
		t.Fatal(err)
	}
	err = runWhile(t, s, func(in func(string) string) {
		for range 3 {
			in("ip route del 10.244.0.0/16")
			eventuallyIn(t, in, "ip route show 10.244.0.0/16", "dev muslin0")
		}
		in("ip link set muslin0 down")
		eventuallyIn(t, in, "ip route show 10.244.0.0/16", "dev muslin0")
		in("ip addr del 10.244.5.0/32 dev muslin0")
		eventuallyIn(t, in, "ip addr show muslin0", "10.244.5.0/32")
	})
	if err != nil {
		t.Errorf("Run() = %v", err)
	}
	if err := s.Undo(); err != nil {
		t.Fatal(err)
	}
}

func TestRunEndsWithTheTUN(t *testing.T) {
	newHost(t)
	f := openTestTUN(t, "muslin0")
	c := config(t.TempDir())
	c.Resync = time.Hour
	s, err := Setup(c)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	err = func() error {
		defer close(ended)
		return runWhile(t, s, func(func(string) string) {
			f.Close()
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
			}
		})
	}()
	if !errors.Is(err, ErrTUNGone) || !strings.Contains(err.Error(), "muslin0") {
		t.Errorf("Run() = %v, want ErrTUNGone", err)
	}
	if err := s.Undo(); err != nil {
		t.Fatal(err)
	}
}

func eventuallyIn(t *testing.T, in func(string) string, look, want string) {
	t.Helper()
	var last string
	for end := deadline(); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if last = in(look); strings.Contains(last, want) {
			return
		}
	}
	t.Errorf("%s never showed %q, last:\n%s", look, want, last)
}

// Who asks does not wait while rules are put in, which takes seconds where iptables' lock is held or the machine is busy.
func TestWarningsDoNotWait(t *testing.T) {
	s := &State{config: config(t.TempDir()), log: orDiscard(nil), journal: &journal{}, firewallWarnings: []string{"a"}}
	s.obstacles.Store(&[]string{"b"})
	s.mu.Lock() // as convergeFirewall does while the program runs
	defer s.mu.Unlock()
	said := make(chan []string, 1)
	go func() {
		s.Features()
		said <- append(s.Warnings(), s.ObstacleWarnings()...)
	}()
	select {
	case got := <-said:
		if strings.Join(got, " ") != "a b" {
			t.Errorf("%q", got)
		}
	case <-time.After(5 * time.Second):
		t.Error("it waits until the rules are in")
	}
}
