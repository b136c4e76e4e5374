package tunnel

import (
	"context"
	"testing"
	"time"

	"muslin/tunnel/fib"
)

// A VTEP that stands still loses nothing of what it has taken, takes nothing more, and goes on where it
// stopped.
func TestPauseWhileTrafficFlows(t *testing.T) {
	for _, framing := range framingNames {
		a, b, _ := join(t, framing, 2)
		pauses := 0
		exchange(t, a, b, 300, func(i int) {
			if i%20 != 0 {
				return
			}
			// Both directions of an exchange end in one place, which must be emptied for a worker to
			// finish its batch.
			for _, e := range []*end{a, b} {
				if err := e.Pause(); err != nil {
					t.Fatal(err)
				}
				if err := e.Resume(); err != nil {
					t.Fatal(err)
				}
			}
			pauses++
		})
		if pauses < 10 {
			t.Errorf("%d pauses", pauses)
		}
	}
}

// What comes while a VTEP stands still is carried afterwards, and not before.
func TestPausedCarriesNothing(t *testing.T) {
	x := newBenchOf(t, nodeA, "vxlan", 3)
	x.SetTable(fib.New([]*fib.Peer{nodeB.peer()}))
	sent := make(chan []outer, 64)
	for _, q := range x.underlay.queues {
		q.onSend = func(ds []outer) { sent <- ds }
	}
	if err := x.Pause(); err != nil { // before Run, too
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- x.Run(ctx) }()
	for range 2 {
		if err := x.Pause(); err != nil {
			t.Fatal(err)
		}
		for _, q := range x.device.queues {
			q.in <- []inner{{p: udpPacket(t, "10.1.0.5", "10.2.0.5", "x")}}
		}
		select {
		case <-sent:
			t.Fatal("a paused VTEP has sent a packet")
		case <-time.After(20 * time.Millisecond):
		}
		if err := x.Resume(); err != nil {
			t.Fatal(err)
		}
		for range x.device.queues {
			within(t, "a packet after Resume", sent)
		}
	}
	cancel()
	if err := within(t, "the end of Run", done); err != nil {
		t.Error(err)
	}
}

// A paused VTEP ends as one that runs, and then nobody waits for its workers.
func TestRunEndsWhilePaused(t *testing.T) {
	x := newBenchOf(t, nodeA, "vxlan", 3)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- x.Run(ctx) }()
	if err := x.Pause(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := within(t, "the end of Run", done); err != nil {
		t.Error(err)
	}
	if err := x.Pause(); err != nil {
		t.Error(err)
	}
}
