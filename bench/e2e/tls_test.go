//go:build linux

package e2e

import (
	"iter"
	"strings"
	"testing"
)

// With the right CA the daemon starts, by a CA file alone:
//
//	h1 (etcd with TLS, muslin) ── br0
func TestEtcdWithTLS(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	store, ca := startTLSEtcd(t, l.Host(1))
	store.Config(t, vxlanConfig)
	m := startMuslin(t, l.Host(1), "--etcd-endpoints", "https://127.0.0.1:2379", "--etcd-cafile", ca)
	waitHealthy(t, m, true)
	if s := status(t, m).Store; len(s.Endpoints) != 1 {
		t.Errorf("store %+v, want one endpoint", s)
	}
}

// lines are the lines of s that are not empty.
func lines(s string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for line := range strings.Lines(s) {
			if line = strings.TrimSpace(line); line != "" && !yield(line) {
				return
			}
		}
	}
}
