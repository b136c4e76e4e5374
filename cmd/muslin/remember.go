package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"muslin/lease"
	"muslin/tunnel/host"
)

// A daemon that was here before knows the network: the config, its lease, the peers. It starts from that, and
// asks etcd meanwhile (docs/decisions/restart.md).

// memoryName is the file in the state directory.
const memoryName = "network.json"

func (d *daemon) memoryPath() string { return filepath.Join(d.opts.flags.stateDir, memoryName) }

// recall is what the daemon that we replace knows, or else what was known here last; nil: nothing.
func (d *daemon) recall() *lease.Memory {
	if d.place.from != nil {
		return d.place.about.Memory
	}
	m, err := lease.ReadMemory(d.memoryPath())
	if err != nil {
		d.log.Warn("starting without what was known of the network", "err", err)
	}
	return m
}

// remembered is the source that the memory makes, for a node that it holds for; errNoMemory: there is none.
func (d *daemon) remembered(m *lease.Memory, iface host.Interface) (*source, *node, error) {
	if m == nil || d.opts.flags.peersFile != "" {
		return nil, nil, errNoMemory
	}
	cfg, err := lease.ParseConfig(m.Config)
	if err != nil {
		return nil, nil, err
	}
	if d.opts.wantConfig != nil {
		if wanted, err := lease.ParseConfig(d.opts.wantConfig); err != nil || !cfg.Means(wanted) {
			return nil, nil, errors.Join(errors.New("the flags describe another network"), err)
		}
	}
	src, err := d.dialStore(iface)
	if err != nil {
		return nil, nil, err
	}
	src.config, src.raw, src.memory = cfg, m.Config, m
	node, err := d.newNode(src, iface)
	if err == nil {
		err = m.Holds(d.opts.flags.store.prefix, node.attrs(), time.Now())
	}
	if err != nil {
		src.close()
		return nil, nil, err
	}
	return src, node, nil
}

var errNoMemory = errors.New("nothing is remembered")

// catchUp asks the store for what a start from memory did not wait for: whether it is there at all, and whether
// the network's config is still the same.
func (d *daemon) catchUp(ctx context.Context, src *source) error {
	const retry = 10 * time.Second
	said := ""
	for ctx.Err() == nil {
		err := d.compareConfig(ctx, src)
		switch {
		case err == nil || ctx.Err() != nil:
			return nil
		case errors.Is(err, lease.ErrOutdated) && d.place.from == nil:
			return err
		case err.Error() != said:
			said = err.Error()
			d.log.Error("carrying packets by what is remembered of the network: the store does not confirm it", "err", err, "again_every", retry)
		}
		wait(ctx, retry)
	}
	return nil
}

func (d *daemon) compareConfig(ctx context.Context, src *source) error {
	if src.embedded != nil && d.place.from == nil {
		if err := src.embedded.start(ctx); err != nil {
			return err
		}
	}
	cfg, _, err := d.storedConfig(ctx, src.store, func(string) {})
	if err != nil {
		return err
	}
	if !cfg.Means(src.config) {
		return fmt.Errorf("%w: the network's config has changed", lease.ErrOutdated)
	}
	return nil
}

// forget removes what is remembered.
func (d *daemon) forget() error {
	if err := os.Remove(d.memoryPath()); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("forget what was known of the network: %w", err)
	}
	return nil
}

// memory is what this node knows now.
func (m *membership) memory(src *source) *lease.Memory {
	return &lease.Memory{
		Prefix: src.prefix,
		Config: src.raw,
		Lease:  m.keeper.Status().Lease,
		Leases: m.watcher.Leases(),
	}
}

const (
	// rememberSoon is how long a change waits for others before it is written down.
	rememberSoon = 100 * time.Millisecond
	// rememberEvery is how often at most it is written.
	rememberEvery = 5 * time.Second
)

// rememberer keeps the memory's file up to date.
type rememberer struct {
	path    string
	log     *slog.Logger
	know    func() *lease.Memory
	changed chan struct{} // holds one token while something may be new
	written []byte
	failed  bool // the last time
}

func newRememberer(path string, log *slog.Logger) *rememberer {
	return &rememberer{path: path, log: log, changed: make(chan struct{}, 1)}
}

// touch says that something may be new. It never blocks.
func (r *rememberer) touch() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

func (r *rememberer) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			select {
			case <-r.changed:
				r.write()
			default:
			}
			return nil
		case <-r.changed:
		}
		wait(ctx, rememberSoon) // at the end it is written at once
		r.write()
		wait(ctx, rememberEvery)
	}
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func (r *rememberer) write() {
	content, err := json.Marshal(r.know())
	if err == nil && bytes.Equal(content, r.written) {
		return
	}
	if err == nil {
		err = lease.WriteMemory(r.path, content)
	}
	if err == nil {
		r.written = content
	} else if !r.failed {
		r.log.Error("the next start will wait for etcd", "err", err)
	}
	r.failed = err != nil
}
