//go:build linux

package main

import (
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"muslin/lease"
)

// What is new between two writings is written at the end, not lost with it.
func TestRememberedAtTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), memoryName)
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		attrs := lease.Attrs{PublicIP: netip.MustParseAddr("192.0.2.1"), BackendType: lease.BackendUDP}
		own := func(subnet string) lease.Lease {
			p := netip.MustParsePrefix(subnet)
			return lease.Lease{Key: lease.Key(p), Subnet: p, Attrs: attrs}
		}
		known := new(atomic.Pointer[lease.Memory])
		m := lease.Memory{Prefix: "/coreos.com/network", Config: []byte(`{"Network":"10.244.0.0/16"}`), Lease: own("10.244.1.0/24")}
		r := newRememberer(path, slog.New(slog.DiscardHandler))
		known.Store(&m)
		r.know = known.Load
		done := make(chan error, 1)
		go func() { done <- r.run(ctx) }()
		r.touch()
		time.Sleep(time.Second) // written, and waiting
		next := m
		next.Lease = own("10.244.7.0/24")
		known.Store(&next)
		r.touch()
		time.Sleep(time.Second)
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
	got, err := lease.ReadMemory(path)
	if err != nil || got.Subnet() != netip.MustParsePrefix("10.244.7.0/24") {
		t.Errorf("remembered is %+v, %v", got, err)
	}
}
