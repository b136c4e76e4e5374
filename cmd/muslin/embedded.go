package main

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"muslin/lease/etcd"
	"muslin/tunnel/host"
)

// embeddedServer is the embedded etcd, which can be stopped for a successor and started again.
type embeddedServer struct {
	d     *daemon
	iface host.Interface

	mu     sync.Mutex // held during a start or a stop
	server *etcd.Embedded

	giveUp context.CancelFunc // ends what resume goes on with; nil: it never had to
}

// resumeEvery is how often a start that failed is tried again.
const resumeEvery = time.Second

// urls are where it listens: on loopback, and on the underlay for the other nodes.
func (e *embeddedServer) urls() []url.URL {
	var all []url.URL
	outer := e.iface.Addr
	if !outer.IsValid() {
		outer = e.iface.Addr6
	}
	for _, addr := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), outer} {
		all = append(all, url.URL{Scheme: "http", Host: netip.AddrPortFrom(addr, e.d.opts.flags.embeddedPort).String()})
	}
	return all
}

// start does nothing when it runs already.
func (e *embeddedServer) start(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.server != nil {
		return nil
	}
	server, err := etcd.StartEmbedded(ctx, etcd.EmbeddedConfig{
		Dir:        filepath.Join(e.d.opts.flags.stateDir, "etcd"),
		ClientURLs: e.urls(),
		Logger:     e.d.log,
	})
	if err != nil {
		return err
	}
	e.d.log.Warn("the embedded etcd serves everybody who reaches it, without a password: keep the port to the nodes",
		"endpoints", strings.Join(server.ClientURLs(), ","))
	e.server = server
	e.d.view.set(func(v *viewState) { v.embedded = server })
	return nil
}

// resume starts a server again that was stopped for a successor in vain. After an error, such as a port that the other
// process has not let go yet, it goes on trying until stop.
func (e *embeddedServer) resume() error {
	ctx, giveUp := context.WithCancel(context.Background())
	e.giveUp = giveUp
	err := e.start(ctx)
	if err == nil {
		return nil
	}
	go func() {
		for wait(ctx, resumeEvery); ctx.Err() == nil; wait(ctx, resumeEvery) {
			if e.start(ctx) == nil {
				e.d.log.Info("the embedded etcd runs again")
				return
			}
		}
	}()
	return fmt.Errorf("%w; trying again every %v", err, resumeEvery)
}

func (e *embeddedServer) stop() error {
	if e.giveUp != nil {
		e.giveUp()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.server == nil {
		return nil
	}
	err := e.server.Close()
	e.server = nil
	return err
}
