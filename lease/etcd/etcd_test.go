package etcd_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"muslin/lease"
	"muslin/lease/etcd"
	"muslin/lease/storetest"
)

// realServer is an etcd process of the test's own.
type realServer struct {
	t      *testing.T
	url    string
	dir    string
	flags  []string
	cmd    *exec.Cmd
	output bytes.Buffer
}

// etcdBinary skips a test on a machine without etcd, but not in CI.
func etcdBinary(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("etcd")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("no etcd server installed, and CI must run this test")
		}
		t.Skip("no etcd server installed: apt-get install etcd-server")
	}
	return path
}

// freePort asks the kernel for one.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// startReal starts Debian's etcd on loopback. Extra flags are for TLS.
func startReal(t *testing.T, scheme string, flags ...string) *realServer {
	t.Helper()
	s := &realServer{t: t, url: scheme + "://" + freePort(t), dir: t.TempDir(), flags: flags}
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *realServer) start() {
	s.t.Helper()
	args := append([]string{
		"--name", "test", "--data-dir", s.dir,
		"--listen-client-urls", s.url, "--advertise-client-urls", s.url,
		"--listen-peer-urls", "http://127.0.0.1:0", "--initial-advertise-peer-urls", "http://127.0.0.1:0",
		"--initial-cluster", "test=http://127.0.0.1:0", "--unsafe-no-fsync", "--logger", "zap",
	}, s.flags...)
	s.cmd = exec.Command(etcdBinary(s.t), args...)
	s.output.Reset()
	s.cmd.Stdout, s.cmd.Stderr = &s.output, &s.output
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "etcd listens at "+s.url, func() bool {
		c, err := net.Dial("tcp", strings.SplitAfter(s.url, "://")[1])
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
}

func (s *realServer) stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
	if s.t.Failed() {
		out := s.output.String()
		s.t.Logf("the end of etcd's output:\n%s", out[max(0, len(out)-2000):])
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func dial(t *testing.T, cfg etcd.Config) *etcd.Store {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s, err := etcd.Dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// rawClient does what somebody who is not muslin does.
func rawClient(t *testing.T, url string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// harness gives every conformance test a prefix of its own on one server.
func harness(url string) func(*testing.T) storetest.Harness {
	n := 0
	return func(t *testing.T) storetest.Harness {
		n++
		prefix := fmt.Sprintf("/conformance/%d", n)
		raw := rawClient(t, url)
		return storetest.Harness{
			Store: dial(t, etcd.Config{Endpoints: []string{url}, Prefix: prefix}),
			PutRaw: func(t *testing.T, key, value string) {
				if _, err := raw.Put(t.Context(), prefix+"/subnets/"+key, value); err != nil {
					t.Fatal(err)
				}
			},
			RemoveConfig: func(t *testing.T) {
				if _, err := raw.Delete(t.Context(), prefix+"/config"); err != nil {
					t.Fatal(err)
				}
			},
			Compact: func(t *testing.T) {
				r, err := raw.Get(t.Context(), "x")
				if err == nil {
					_, err = raw.Compact(t.Context(), r.Header.Revision)
				}
				if err != nil {
					t.Fatal(err)
				}
			},
			ShortTTL: 2 * time.Second,
		}
	}
}

func TestRealServerConforms(t *testing.T) {
	t.Parallel()
	storetest.Run(t, harness(startReal(t, "http").url))
}

func TestEmbeddedServerConforms(t *testing.T) {
	t.Parallel()
	e := startEmbedded(t, etcd.EmbeddedConfig{Dir: t.TempDir(), ClientURLs: clientURL(t)})
	storetest.Run(t, harness(e.ClientURLs()[0]))
}

func clientURL(t *testing.T) []url.URL {
	return []url.URL{{Scheme: "http", Host: freePort(t)}}
}

func startEmbedded(t *testing.T, cfg etcd.EmbeddedConfig) *etcd.Embedded {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	e, err := etcd.StartEmbedded(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil && e.Err() == nil {
			t.Error(err)
		}
	})
	return e
}

// logged collects log lines.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

const network = `{"Network":"10.244.0.0/16","SubnetMin":"10.244.1.0","SubnetMax":"10.244.20.0","Backend":{"Type":"vxlan"}}`

func TestEmbeddedSurvivesRestartAtAnotherAddress(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "etcd")
	ctx := t.Context()
	first := startEmbedded(t, etcd.EmbeddedConfig{Dir: dir, ClientURLs: clientURL(t)})
	s := dial(t, etcd.Config{Endpoints: first.ClientURLs()})
	if created, err := lease.EnsureConfig(ctx, s, []byte(network)); err != nil || !created {
		t.Fatalf("EnsureConfig: %v, %v", created, err)
	}
	value := `{"PublicIP":"192.0.2.1","PublicIPv6":null}`
	if _, err := s.PutLease(ctx, "10.244.1.0-24", []byte(value), lease.TTL, lease.Absent); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if first.Err() != nil {
		t.Errorf("an orderly end counts as a failure: %v", first.Err())
	}

	second := startEmbedded(t, etcd.EmbeddedConfig{Dir: dir, ClientURLs: clientURL(t), Name: "renamed"})
	if second.ClientURLs()[0] == first.ClientURLs()[0] {
		t.Fatal("the address is the same: the test proves nothing")
	}
	s = dial(t, etcd.Config{Endpoints: second.ClientURLs()})
	raw, _, err := s.Config(ctx)
	if err != nil || string(raw) != network {
		t.Fatalf("config after the restart: %s, %v", raw, err)
	}
	if entries, _, err := s.List(ctx); err != nil || len(entries) != 1 || entries[0].Reserved {
		t.Fatalf("leases after the restart: %v, %v", entries, err)
	}
	if left, err := s.TimeToLive(ctx, "10.244.1.0-24"); err != nil || left < 23*time.Hour {
		t.Fatalf("time to live after the restart: %s, %v", left, err)
	}
}

func TestEmbeddedRefusals(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		cfg  etcd.EmbeddedConfig
		want []string
	}{
		{"port taken", etcd.EmbeddedConfig{Dir: t.TempDir(), ClientURLs: []url.URL{{Scheme: "http", Host: taken.Addr().String()}}},
			[]string{taken.Addr().String(), "address already in use", "--etcd-endpoints"}},
		{"a file in the way", etcd.EmbeddedConfig{Dir: filepath.Join(file, "etcd"), ClientURLs: clientURL(t)}, []string{"not a directory", "--state-dir"}},
		{"no URL", etcd.EmbeddedConfig{Dir: t.TempDir()}, []string{"no client URL"}},
		{"https", etcd.EmbeddedConfig{Dir: t.TempDir(), ClientURLs: []url.URL{{Scheme: "https", Host: "127.0.0.1:1"}}}, []string{"want http://"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.cfg.Logger = slog.New(slog.DiscardHandler)
			e, err := etcd.StartEmbedded(t.Context(), test.cfg)
			if err == nil {
				_ = e.Close()
				t.Fatal("started")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
		})
	}
}

// needRoot is for tests that mount.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("needs root to mount a tmpfs, and CI must run this test")
	}
	t.Skip("needs root to mount a tmpfs")
}

func smallDisk(t *testing.T, size string) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("cannot mount a tmpfs, and CI must run this test: %v", err)
		}
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestEmbeddedRefusesSmallDisk(t *testing.T) {
	_, err := etcd.StartEmbedded(t.Context(), etcd.EmbeddedConfig{Dir: smallDisk(t, "32m"), ClientURLs: clientURL(t)})
	if err == nil || !strings.Contains(err.Error(), "make room") || !strings.Contains(err.Error(), "32 MiB are free") {
		t.Fatalf("got %v", err)
	}
}

// A full disk must end the server, not the process: this test's process is the daemon's stand-in.
func TestEmbeddedOutlivesFullDisk(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, "160m")
	var log logged
	e := startEmbedded(t, etcd.EmbeddedConfig{Dir: filepath.Join(dir, "etcd"), ClientURLs: clientURL(t), SkipSpaceCheck: true, Logger: log.logger()})
	s := dial(t, etcd.Config{Endpoints: e.ClientURLs(), Timeout: time.Second})
	ctx := t.Context()
	if err := s.CheckConnection(ctx); err != nil {
		t.Fatal(err)
	}

	ballast, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer ballast.Close()
	for block := make([]byte, 1<<16); ; {
		if _, err := ballast.Write(block); err != nil {
			break
		}
	}
	raw := rawClient(t, e.ClientURLs()[0])
	big := strings.Repeat("x", 1<<20)
	deadline := time.Now().Add(60 * time.Second)
	for n := 0; e.Err() == nil; n++ {
		if time.Now().After(deadline) {
			t.Fatal("the full disk was never noticed")
		}
		limited, cancel := context.WithTimeout(ctx, time.Second)
		_, _ = raw.Put(limited, fmt.Sprintf("/ballast/%d", n), big)
		cancel()
	}
	<-e.Failed()
	t.Log("Err:", e.Err())
	if !strings.Contains(e.Err().Error(), "no space left on device") || !strings.Contains(e.Err().Error(), "make room") {
		t.Errorf("the reason does not show: %v", e.Err())
	}
	if !strings.Contains(log.String(), "the embedded etcd cannot go on") {
		t.Error("nothing in the log")
	}
	if err := s.PutConfig(ctx, []byte(network), lease.Any); err == nil {
		t.Error("the store still takes writes")
	}
	begun := time.Now()
	t.Log("Close:", e.Close())
	if took := time.Since(begun); took > 12*time.Second {
		t.Errorf("Close took %s", took)
	}
}

// clientAll makes a Get from "\x00" one of every key.
func clientAll() []clientv3.OpOption { return []clientv3.OpOption{clientv3.WithFromKey()} }
