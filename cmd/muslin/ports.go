package main

import (
	"context"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sync/errgroup"

	"muslin/cmd/muslin/text"
	"muslin/tunnel"
	"muslin/tunnel/host"
	"muslin/tunnel/kernel"
	"muslin/tunnel/underlay"
	"muslin/tunnel/waiter"
)

// Of several networks in one process, those with vxlan on one port of one address have its sockets in common: the VNI tells
// them apart (tunnel.Port, docs/decisions/shared-port.md). The sockets are there as long as one of the networks is.

// ports are those of the process, by what they are bound to. Make it with newPorts.
type ports struct {
	mu  sync.Mutex // held while one is opened or closed
	all map[netip.AddrPort]*sharedPort
}

func newPorts() *ports { return &ports{all: make(map[netip.AddrPort]*sharedPort)} }

// sharedPort is one of them.
type sharedPort struct {
	cfg   underlay.Config
	first string // the network that it was opened for
	conn  *underlay.Conn
	port  *tunnel.Port
	turns *waiter.Turns
	seats int // members

	release func() // gives the receiving workers' processors back
	stop    context.CancelFunc
	ended   chan struct{} // closed when err is why nothing is received any more
	err     error
}

// join makes a network a member of the port that the config names, which is opened for the first one.
func (p *ports) join(name string, node *node, cfg underlay.Config) (*portMember, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	addr := netip.AddrPortFrom(cfg.Local, cfg.Port)
	s := p.all[addr]
	if s == nil {
		var err error
		if s, err = openPort(name, cfg); err != nil {
			return nil, err
		}
		p.all[addr] = s
	}
	err := s.fits(cfg)
	var m *tunnel.Member
	if err == nil {
		m, err = s.port.Join(node.vni)
	}
	if err != nil {
		p.leave(addr, s)
		return nil, fmt.Errorf("UDP port %s, which network %s has opened: %w", addr, s.first, err)
	}
	s.seats++
	return &portMember{Member: m, shared: s, leave: sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		s.seats--
		p.leave(addr, s)
	})}, nil
}

func openPort(name string, cfg underlay.Config) (*sharedPort, error) {
	s := &sharedPort{cfg: cfg, first: name, turns: cfg.Turns, ended: make(chan struct{})}
	var err error
	if s.conn, err = underlay.Open(cfg); err != nil {
		return nil, host.ExplainBind(netip.AddrPortFrom(cfg.Local, cfg.Port), err)
	}
	s.port = tunnel.NewPort(s.conn)
	s.release = keepProcessors(cfg.Queues)
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	go func() {
		defer close(s.ended)
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return s.port.Run(ctx) })
		g.Go(func() error { return s.conn.Run(ctx) })
		s.err = g.Wait()
	}()
	return s, nil
}

// fits makes sure that a network wants of the sockets what they were opened with.
func (s *sharedPort) fits(cfg underlay.Config) error {
	select {
	case <-s.ended:
		return fmt.Errorf("it has failed: %w", s.err)
	default:
	}
	if cfg.Queues != s.cfg.Queues {
		return fmt.Errorf("it has %d queues, and this network is to have %d: give both the same --queues, or this one another Backend.Port", s.cfg.Queues, cfg.Queues)
	}
	for _, f := range kernel.Ladder {
		if cfg.Features.On(f.Name) != s.cfg.Features.On(f.Name) {
			return fmt.Errorf("the feature %s is %s there and %s here: give both networks the same --features and --source-check, or this one another Backend.Port",
				f.Name, text.OnOff(s.cfg.Features.On(f.Name)), text.OnOff(cfg.Features.On(f.Name)))
		}
	}
	return nil
}

// leave closes a port that nobody is a member of. The lock is held.
func (p *ports) leave(addr netip.AddrPort, s *sharedPort) {
	if s.seats > 0 {
		return
	}
	delete(p.all, addr)
	s.stop()
	<-s.ended
	s.release()
}

// portMember is a network's place at a port. It implements outer.
type portMember struct {
	*tunnel.Member
	shared *sharedPort
	leave  func()
}

// Run waits for the end of ctx, or of the port.
func (m *portMember) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-m.shared.ended:
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("the UDP port of this network has failed: %w", m.shared.err)
	}
}

// Close gives the place up, and with the last one the port.
func (m *portMember) Close() error {
	err := m.Member.Close()
	m.leave()
	return err
}
