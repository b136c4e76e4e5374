package main

import (
	"context"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"sync"

	"muslin/lease/etcd"
	"muslin/tunnel/host"
)

// embeddedServer is the embedded etcd, which can be stopped for a successor and started again.
type embeddedServer struct {
	d     *daemon
	iface host.Interface

	mu     sync.Mutex // held during a start or a stop
	server *etcd.Embedded
}

// urls are where it listens: on loopback, and on the underlay for the other nodes.
func (e *embeddedServer) urls() []url.URL {
	var all []url.URL
	for _, addr := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), e.iface.Addr} {
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

func (e *embeddedServer) stop() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.server == nil {
		return nil
	}
	err := e.server.Close()
	e.server = nil
	return err
}
