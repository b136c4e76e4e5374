//go:build linux

package main

import (
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"muslin/tunnel/host"
)

// hinderedServer is a server and a listener that has its port.
func hinderedServer(t *testing.T) (*embeddedServer, net.Listener) {
	t.Helper()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { busy.Close() })
	port := uint16(busy.Addr().(*net.TCPAddr).Port)
	opts := &options{log: slog.New(slog.DiscardHandler), flags: &runFlags{stateDir: t.TempDir(), embeddedPort: port}}
	return &embeddedServer{d: newDaemon(opts), iface: host.Interface{Addr: netip.MustParseAddr("127.0.0.2")}}, busy
}

// The process that was to take the embedded etcd over may still hold its port when we are to go on.
func TestEmbeddedResumes(t *testing.T) {
	e, busy := hinderedServer(t)
	defer e.stop()
	if err := e.resume(); err == nil {
		t.Fatal("it started on a port that is taken")
	}
	busy.Close()
	end := time.Now().Add(20 * time.Second)
	for {
		c, err := net.Dial("tcp", e.urls()[1].Host)
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatalf("it does not run again: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err := e.stop(); err != nil {
		t.Error(err)
	}
}

// One that is stopped for good meanwhile does not come back.
func TestEmbeddedGivesUp(t *testing.T) {
	e, busy := hinderedServer(t)
	if err := e.resume(); err == nil {
		t.Fatal("it started on a port that is taken")
	}
	if err := e.stop(); err != nil {
		t.Fatal(err)
	}
	busy.Close()
	time.Sleep(resumeEvery + resumeEvery/2)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.server != nil {
		t.Error("it runs again after it was stopped")
	}
}
