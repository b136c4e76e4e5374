package etcd_test

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muslin/lease/etcd"
)

// A start that is given up, at whatever moment, must not hold up the process's end.
func TestEmbeddedStartCancelled(t *testing.T) {
	t.Parallel()
	cancelled, slow := 0, 0
	for delay := 20 * time.Millisecond; delay <= 1500*time.Millisecond; delay = delay * 5 / 4 {
		ctx, cancel := context.WithTimeout(t.Context(), delay)
		begun := time.Now()
		e, err := etcd.StartEmbedded(ctx, etcd.EmbeddedConfig{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler),
			ClientURLs: []url.URL{clientURL(t)[0], clientURL(t)[0]}})
		took := time.Since(begun)
		cancel()
		if err == nil {
			if err := e.Close(); err != nil {
				t.Error(err)
			}
			continue
		}
		cancelled++
		t.Logf("given up after %s: returned after %s: %v", delay, took, err)
		if !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "did not stop") {
			t.Errorf("given up after %s: %v", delay, err)
		}
		if took > delay+200*time.Millisecond {
			slow++
		}
		if took > delay+3*time.Second {
			t.Errorf("given up after %s, but returned after %s", delay, took)
		}
	}
	if slow*2 > cancelled { // a busy machine may be slow now and then
		t.Errorf("%d of %d returned late: does the end of a start wait for its success?", slow, cancelled)
	}
	if cancelled == 0 {
		t.Error("every start was faster than the shortest delay: the test proves nothing")
	}
}

// What etcd always says about a server such as ours is no news to an operator.
func TestEmbeddedStartsQuietly(t *testing.T) {
	var log logged
	dir := filepath.Join(t.TempDir(), "etcd")
	for range 2 {
		e := startEmbedded(t, etcd.EmbeddedConfig{Dir: dir, ClientURLs: []url.URL{clientURL(t)[0], clientURL(t)[0]}, Logger: log.logger()})
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if text := log.String(); text != "" {
		t.Errorf("the log of two plain starts:\n%s", text)
	}
}
