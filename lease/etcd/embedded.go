package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"golang.org/x/sys/unix"
)

const (
	// quota bounds the database. A thousand leases of 200 bytes, renewed daily with hourly compaction,
	// stay below 1 MiB; the rest is room for the history between two compactions.
	quota = 64 << 20

	// A fresh server allocates two 64 MiB segments of its write-ahead log, and may fill its quota.
	freshSpace = 2*64<<20 + quota
	// One that exists needs its next segment, and a snapshot.
	existingSpace = 64<<20 + 16<<20

	startTimeout = 30 * time.Second
	closeTimeout = 10 * time.Second
)

// EmbeddedConfig says where the server inside this process lives.
type EmbeddedConfig struct {
	Dir        string    // data directory, made (0700) if missing
	ClientURLs []url.URL // to listen at, http://ADDRESS:PORT each; what they are may change between starts
	Name       string    // of the single member; "" means "muslin"
	Logger     *slog.Logger

	// SkipSpaceCheck starts the server however little room its disk has.
	SkipSpaceCheck bool
}

// Embedded is a single etcd server inside this process.
type Embedded struct {
	server *embed.Etcd
	urls   []string
	log    *slog.Logger

	failed chan struct{} // closed when the server cannot go on
	mu     sync.Mutex
	err    error // why
	closed chan struct{}
	once   sync.Once

	closing atomic.Bool
}

// StartEmbedded starts a server on its data directory and returns when it answers. Another process can
// use it as soon as that; Close ends it, and so does nothing else but a failure: see Failed.
func StartEmbedded(ctx context.Context, cfg EmbeddedConfig) (*Embedded, error) {
	e, err := startEmbedded(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("start embedded etcd: %w", err)
	}
	return e, nil
}

func startEmbedded(ctx context.Context, cfg EmbeddedConfig) (*Embedded, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Name == "" {
		cfg.Name = "muslin"
	}
	if len(cfg.ClientURLs) == 0 {
		return nil, errors.New("no client URL to listen at")
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w: make its parent writable, or name another place with --state-dir", err)
	}
	if !cfg.SkipSpaceCheck {
		if err := checkSpace(cfg.Dir); err != nil {
			return nil, err
		}
	}
	if err := checkPorts(ctx, cfg.ClientURLs); err != nil {
		return nil, err
	}
	e := &Embedded{log: cfg.Logger, failed: make(chan struct{}), closed: make(chan struct{})}
	for _, u := range cfg.ClientURLs {
		e.urls = append(e.urls, u.String())
	}

	// etcd's own start may end its goroutine (Fatal), panic, or hang; it gets one of its own.
	type started struct {
		server *embed.Etcd
		err    error
	}
	result := make(chan started, 1)
	go func() {
		var s started
		finished := false
		defer func() {
			if r := recover(); r != nil {
				s.err = fmt.Errorf("it panicked: %v", r)
			} else if !finished {
				s.err = e.Err()
			}
			result <- s
		}()
		s.server, s.err = embed.StartEtcd(e.embedConfig(cfg))
		finished = true
	}()
	abandon := func() {
		e.closing.Store(true)
		go func() {
			if s := <-result; s.server != nil {
				stop(s.server)
			}
		}()
	}
	late := time.NewTimer(startTimeout)
	defer late.Stop()
	select {
	case s := <-result:
		if s.err != nil {
			return nil, fmt.Errorf("data directory %s: %w", cfg.Dir, s.err)
		}
		e.server = s.server
	case <-e.failed:
		abandon()
		return nil, fmt.Errorf("data directory %s: %w", cfg.Dir, e.Err())
	case <-late.C:
		abandon()
		return nil, fmt.Errorf("data directory %s: not started after %s: see the log", cfg.Dir, startTimeout)
	case <-ctx.Done():
		abandon()
		return nil, context.Cause(ctx)
	}
	var err error
	select {
	case <-e.server.Server.ReadyNotify():
		return e, nil
	case err = <-e.server.Err():
	case <-e.failed:
		err = e.Err()
	case <-late.C:
		err = fmt.Errorf("not ready after %s: see the log", startTimeout)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err := e.Close(); err != nil {
		cfg.Logger.Warn("the embedded etcd, which did not get ready, does not stop either", "err", err)
	}
	return nil, fmt.Errorf("data directory %s: %w", cfg.Dir, err)
}

// stop ends a server in whatever state it is. One that is not ready must be stopped before it is closed:
// Close waits for its listeners, and they wait for it to get ready.
func stop(server *embed.Etcd) {
	select {
	case <-server.Server.ReadyNotify():
	default:
		server.Server.HardStop()
	}
	server.Close()
}

func (e *Embedded) embedConfig(cfg EmbeddedConfig) *embed.Config {
	c := embed.NewConfig()
	c.Name = cfg.Name
	c.Dir = cfg.Dir
	c.ListenClientUrls, c.AdvertiseClientUrls = cfg.ClientURLs, cfg.ClientURLs
	// A single member has no peer to listen for, but etcd insists on an address. Port 0 takes any free
	// one, so that a second server on this host does not matter.
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, "1h"
	c.QuotaBackendBytes = quota
	c.MaxWalFiles, c.MaxSnapFiles = 2, 2
	c.EnableGRPCGateway = false
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(serverLog(cfg.Logger, e.closing.Load, e.fail))
	return c
}

// fail notes that etcd gave up. It is called from any of etcd's goroutines.
func (e *Embedded) fail(message string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil {
		return
	}
	e.err = fmt.Errorf("embedded etcd has stopped: %s: make room on its disk if that is full, then restart; peers stay as they were until then", message)
	e.log.Error("the embedded etcd cannot go on; traffic is not affected", "err", e.err)
	close(e.failed)
}

// Failed is closed when the server stops on its own account, as on a full disk. Err says why.
func (e *Embedded) Failed() <-chan struct{} { return e.failed }

// Err is nil while the server works.
func (e *Embedded) Err() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}

// ClientURLs is where it listens.
func (e *Embedded) ClientURLs() []string { return e.urls }

// Close stops the server and waits for that, but not for longer than ten seconds: a server that failed
// may hold locks that nobody will ever release.
func (e *Embedded) Close() error {
	e.closing.Store(true)
	e.once.Do(func() {
		go func() {
			defer close(e.closed)
			stop(e.server)
		}()
	})
	late := time.NewTimer(closeTimeout)
	defer late.Stop()
	select {
	case <-e.closed:
		return nil
	case <-late.C:
		return fmt.Errorf("embedded etcd did not stop within %s", closeTimeout)
	}
}

// checkSpace refuses a disk on which etcd would soon end.
func checkSpace(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("ask for free space in %s: %w", dir, err)
	}
	need := uint64(freshSpace)
	if _, err := os.Stat(filepath.Join(dir, "member")); err == nil {
		need = existingSpace
	}
	if free := st.Bavail * uint64(st.Bsize); free < need {
		return fmt.Errorf("data directory %s: %w: %d MiB are free, %d MiB are needed: make room, or name another place with --state-dir",
			dir, syscall.ENOSPC, free>>20, need>>20)
	}
	return nil
}

// checkPorts finds out what etcd would report less clearly.
func checkPorts(ctx context.Context, urls []url.URL) error {
	for _, u := range urls {
		if u.Scheme != "http" {
			return fmt.Errorf("client URL %s: want http://ADDRESS:PORT", u.String())
		}
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", u.Host)
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			return fmt.Errorf("listen at %s: %w: is an etcd running already? Use it with --etcd-endpoints %s, or stop it", u.Host, err, u.String())
		case err != nil:
			return fmt.Errorf("listen at %s: %w", u.Host, err)
		}
		l.Close()
	}
	return nil
}
