package tunnel

import (
	"errors"
	"os"
	"runtime"
	"sync"
)

// gate is where the workers of a VTEP, or of a Port, stand while they are paused, between two batches.
type gate struct {
	mu      sync.Mutex
	changed *sync.Cond // anything of what follows
	shut    bool
	ended   bool // nobody waits any more
	workers int  // that have not left
	waiting int  // of them, at the gate
}

func (g *gate) init() { g.changed = sync.NewCond(&g.mu) }

func (g *gate) change(do func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	do()
	g.changed.Broadcast()
}

// enter notes workers that are about to start.
func (g *gate) enter(workers int) { g.change(func() { g.workers += workers }) }

// work is a worker that was entered: it carries batches until one fails.
func (g *gate) work(batch func() error) error {
	defer g.leave()
	runtime.LockOSThread() // a worker keeps its thread, and so its place in the caches
	for {
		err := batch()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			g.wait()
		} else if err != nil {
			return err
		}
	}
}

// leave notes the end of a worker.
func (g *gate) leave() { g.change(func() { g.workers-- }) }

// set shuts the gate or opens it.
func (g *gate) set(shut bool) { g.change(func() { g.shut = shut }) }

// end lets everybody through for good.
func (g *gate) end() { g.change(func() { g.ended = true }) }

// wait is a worker's stay at the gate, until it opens.
func (g *gate) wait() {
	g.change(func() { g.waiting++ })
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.shut && !g.ended {
		g.changed.Wait()
	}
	g.waiting--
}

// settle returns when every worker stands at the gate, or it is open.
func (g *gate) settle() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.waiting < g.workers && g.shut && !g.ended {
		g.changed.Wait()
	}
}
