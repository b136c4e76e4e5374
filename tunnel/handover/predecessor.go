//go:build linux

package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

// Predecessor is a daemon that can be replaced. Its methods are called one at a time.
type Predecessor interface {
	// Offer says what there is. An error is told to the successor, and ends the handover.
	Offer(Hello) (Offer, error)

	// Release stops a part, so that a successor can begin where it stopped, and says what has changed of
	// it since the offer. An error means that it goes on.
	Release(part string) (changed any, err error)

	// Resume goes on with a part that was released.
	Resume(part string) error

	// GoOn is told that there is no successor after all, after the parts that were released were resumed.
	GoOn()
}

// Departure is what a predecessor has left to say.
type Departure struct {
	Waited time.Duration // by the packets, from when they were released until the successor had taken them
	conn   conn
}

// Left tells the successor that everything here is closed. It is said last, or not at all: the end of the
// process says the same.
func (d *Departure) Left() {
	_ = d.conn.send(&message{Kind: left}) // a successor that has gone on already does not listen
	d.conn.unix.Close()
}

// Give hands a daemon over to whoever is at the other end. After an error everything goes on as before, and
// the connection is closed.
func Give(c *net.UnixConn, p Predecessor, limits Limits) (*Departure, error) {
	g := giver{conn: conn{c}, p: p, limits: limits}
	if err := g.give(); err != nil {
		// It may be about to start, or have started, what goes on here. Said first, it stops soonest.
		_ = g.conn.send(&message{Kind: abort, Reason: err.Error()}) // it may be gone
		c.Close()
		for _, part := range slices.Backward(g.released) {
			if resumeErr := p.Resume(part); resumeErr != nil {
				err = errors.Join(err, fmt.Errorf("resume the %s: %w", part, resumeErr))
			}
		}
		if g.offered {
			p.GoOn()
		}
		return nil, err
	}
	return &Departure{g.waited, g.conn}, nil
}

type giver struct {
	conn     conn
	p        Predecessor
	limits   Limits
	offered  bool
	released []string
	waited   time.Duration
}

func (g *giver) give() error {
	m, err := g.conn.expect(hello, g.limits.Prepare)
	if err != nil {
		return err
	}
	var h Hello
	if err := json.Unmarshal(m.Body, &h); err != nil {
		return fmt.Errorf("a hello that makes no sense: %w", err)
	}
	parts, err := g.offer(h)
	if err != nil {
		return err
	}
	if _, err := g.conn.expect(ready, g.limits.Prepare); err != nil {
		return err
	}
	for _, part := range parts {
		limit := g.limits.Part
		if part == Packets {
			limit = g.limits.Packets
		}
		if err := g.handOver(part, limit); err != nil {
			return fmt.Errorf("hand over the %s: %w", part, err)
		}
	}
	return nil
}

func (g *giver) offer(h Hello) (parts []string, err error) {
	if h.Protocol != Protocol {
		return nil, fmt.Errorf("the running daemon speaks handover %d, and this one, %s, speaks %d: stop the one and start the other", Protocol, h.Version, h.Protocol)
	}
	o, err := g.p.Offer(h)
	if err != nil {
		return nil, err
	}
	g.offered = true
	defer o.Close()
	body, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	m := &message{Kind: offer, Body: body}
	for _, f := range o.Files {
		m.Names, m.files = append(m.Names, f.Name), append(m.files, f.File)
	}
	return o.Parts, g.conn.say(m)
}

func (g *giver) handOver(part string, limit time.Duration) error {
	changed, err := g.p.Release(part)
	if err != nil {
		return err
	}
	g.released = append(g.released, part)
	began := time.Now()
	body, err := json.Marshal(changed)
	if err != nil {
		return err
	}
	if err := g.conn.say(&message{Kind: yours, Part: part, Body: body}); err != nil {
		return err
	}
	_, err = g.conn.expect(taken, limit)
	if part == Packets {
		g.waited = time.Since(began)
	}
	return err
}
