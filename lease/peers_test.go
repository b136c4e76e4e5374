package lease

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"muslin/tunnel/fib"
)

// tables collects what a Watcher or Static hands out.
type tables struct {
	mu  sync.Mutex
	all []*fib.Table
}

func (s *tables) add(t *fib.Table) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, t)
}

func (s *tables) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

// last is the newest table in words, sorted by subnet.
func (s *tables) last() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) == 0 {
		return "none"
	}
	var out []string
	for _, p := range s.all[len(s.all)-1].Peers() {
		out = append(out, fmt.Sprintf("%s>%s", p.Subnet, p.PublicIP))
	}
	return strings.Join(out, " ")
}

func (s *tables) peer(subnet string) *fib.Peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[len(s.all)-1].Lookup(netip.MustParsePrefix(subnet).Addr())
}

func testNode(t *testing.T, backend string) Node {
	n := Node{Subnet: netip.MustParsePrefix("10.244.1.0/24"), PublicIP: netip.MustParseAddr("192.0.2.1"), Backend: backend, Network: netip.MustParsePrefix("10.244.0.0/16")}
	if backend == BackendVXLAN {
		n.VNI = vni(t, 1)
	}
	return n
}

func watching(t *testing.T, store Store, node Node) (*Watcher, *tables, *logBuffer, func()) {
	t.Helper()
	got, log := new(tables), new(logBuffer)
	w := NewWatcher(WatcherConfig{Store: store, Node: node, OnTable: got.add, Logger: log.logger()})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	settle(time.Second)
	return w, got, log, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func vxlanValue(ip string, vni int, mac string) string {
	return fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":%d,"VtepMAC":%q}}`, ip, vni, mac)
}

func TestWatcherPeers(t *testing.T) {
	entries := map[string]string{
		"10.244.1.0-24":                   vxlanValue("192.0.2.1", 1, macA), // ours
		"10.244.2.0-24":                   vxlanValue("192.0.2.2", 1, macB),
		"10.244.3.0-24":                   `{"PublicIP":"192.0.2.3","PublicIPv6":null}`,
		"10.244.4.0-24":                   `{"PublicIP":"192.0.2.4","PublicIPv6":null,"BackendType":"host-gw"}`,
		"10.244.5.0-24":                   vxlanValue("192.0.2.5", 2, macB),
		"10.244.6.0-24":                   vxlanValue("192.0.2.1", 1, macB), // our PublicIP
		"10.244.7.0-24":                   `{"PublicIP":null}`,
		"10.244.8.0-24":                   "garbage",
		"10.244.12.0-24":                  vxlanValue("10.244.200.1", 1, macB),                                                          // reached through the overlay itself
		"10.244.13.0-24":                  `{"PublicIP":"192.0.2.20","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":-1}}`, // udp does not look there
		"10.99.0.0-24":                    vxlanValue("192.0.2.9", 1, macB),
		"10.0.0.0-8":                      vxlanValue("192.0.2.9", 1, macB),
		"zoo":                             vxlanValue("192.0.2.9", 1, macB),
		"0.0.0.0-0&2001:db8::-64":         vxlanValue("192.0.2.9", 1, macB),
		"10.244.10.0-24&2001:db8:1::-64":  vxlanValue("192.0.2.10", 1, macB),
		"10.244.2.128-25":                 vxlanValue("192.0.2.11", 1, macB), // inside the second
		"10.244.1.64-26":                  vxlanValue("192.0.2.12", 1, macB), // inside ours
		"10.244.11.0-24":                  vxlanValue("192.0.2.13", 1, macB),
		"10.244.11.0-24&2001:db8:11::-64": vxlanValue("192.0.2.14", 1, macB), // the same subnet, newer
	}
	common := map[string]int{SkipKey: 1, SkipIPv6: 1, SkipOutside: 2, SkipPublicIP: 1, SkipCircular: 1}
	for _, test := range []struct {
		backend, peers string
		skipped        map[string]int
	}{
		{BackendVXLAN, "10.244.1.64/26>192.0.2.12 10.244.2.0/24>192.0.2.2 10.244.2.128/25>192.0.2.11 10.244.10.0/24>192.0.2.10 10.244.11.0/24>192.0.2.14",
			map[string]int{SkipBackend: 2, SkipVNI: 1, SkipDouble: 1, SkipValue: 3}},
		{BackendHostGW, "10.244.4.0/24>192.0.2.4", map[string]int{SkipBackend: 8, SkipValue: 3}},
		{BackendUDP, "10.244.1.64/26>192.0.2.12 10.244.2.0/24>192.0.2.2 10.244.2.128/25>192.0.2.11 10.244.3.0/24>192.0.2.3 10.244.4.0/24>192.0.2.4 10.244.5.0/24>192.0.2.5 10.244.10.0/24>192.0.2.10 10.244.11.0/24>192.0.2.14 10.244.13.0/24>192.0.2.20", map[string]int{SkipDouble: 1, SkipValue: 2}},
	} {
		t.Run(test.backend, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := NewMemStore()
				keys := make([]string, 0, len(entries))
				for key := range entries {
					keys = append(keys, key)
				}
				slices.Sort(keys)
				for _, key := range keys {
					m.PutRaw(key, entries[key], TTL)
				}
				w, got, log, stop := watching(t, m, testNode(t, test.backend))
				defer stop()
				if got.last() != test.peers {
					t.Errorf("peers:\n got %s\nwant %s", got.last(), test.peers)
				}
				s := w.Status()
				for why, n := range common {
					if s.Skipped[why] != n {
						t.Errorf("skipped for %s: %d, want %d", why, s.Skipped[why], n)
					}
				}
				for why, n := range test.skipped {
					if s.Skipped[why] != n {
						t.Errorf("skipped for %s: %d, want %d", why, s.Skipped[why], n)
					}
				}
				if !s.Healthy || s.Revision != m.revision || s.Peers != len(strings.Fields(test.peers)) {
					t.Errorf("status %+v", s)
				}
				if n := len(w.Leases()); n != 15 {
					t.Errorf("%d leases could be read", n)
				}
				// Everything again, and a renewal: nothing is said twice.
				before := log.String()
				for range 3 {
					for _, key := range keys {
						m.PutRaw(key, entries[key], TTL)
					}
					settle(time.Second)
				}
				if after := log.String(); after != before || strings.Count(before, "level=") < 8 {
					t.Errorf("log at first:\n%s\nthen:\n%s", before, strings.TrimPrefix(after, before))
				}
			})
		})
	}
}

func TestWatcherFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		w, got, log, stop := watching(t, m, testNode(t, BackendVXLAN))
		defer stop()
		if got.count() != 1 || got.last() != "" {
			t.Fatalf("an empty store: %d tables, %s", got.count(), got.last())
		}
		check := func(what, want string) {
			t.Helper()
			settle(10 * time.Second)
			if got.last() != want {
				t.Errorf("%s: got %s, want %s\n%s", what, got.last(), want, log.String())
			}
		}
		m.PutRaw("10.244.2.0-24", vxlanValue("192.0.2.2", 1, macA), TTL)
		check("added", "10.244.2.0/24>192.0.2.2")
		counters := got.peer("10.244.2.0/24").Counters
		counters.TxPackets.Add(7)
		m.PutRaw("10.244.2.0-24", vxlanValue("192.0.2.2", 1, macB), TTL)
		check("another MAC", "10.244.2.0/24>192.0.2.2")
		if p := got.peer("10.244.2.0/24"); p.MAC != mac(t, macB) || p.Counters != counters || p.Counters.TxPackets.Load() != 7 {
			t.Errorf("after a change of MAC: %+v", p)
		}
		m.PutRaw("10.244.2.0-24", vxlanValue("192.0.2.22", 1, macB), TTL)
		check("another PublicIP", "10.244.2.0/24>192.0.2.22")
		if p := got.peer("10.244.2.0/24"); p.Counters == counters {
			t.Error("another node counts on the counters of the one before")
		}
		if err := m.DeleteLease(t.Context(), "10.244.2.0-24", Any); err != nil {
			t.Fatal(err)
		}
		check("deleted", "")
		m.PutRaw("10.244.2.0-24", vxlanValue("192.0.2.2", 1, macB), TTL)
		check("back again", "10.244.2.0/24>192.0.2.2")
		if p := got.peer("10.244.2.0/24"); p.Counters != counters {
			t.Error("the counters of a peer that came back are lost")
		}

		// An outage keeps the peers; the changes in it arrive afterwards, although compacted away.
		before := got.count()
		m.Fail(ErrUnavailable)
		settle(time.Hour)
		if s := w.Status(); s.Healthy || s.LastError == "" || got.count() != before {
			t.Errorf("during the outage: %+v, %d tables more", s, got.count()-before)
		}
		m.PutRaw("10.244.3.0-24", vxlanValue("192.0.2.3", 1, macA), 48*time.Hour)
		m.mu.Lock()
		m.remove("10.244.2.0-24")
		m.mu.Unlock()
		m.Compact()
		m.Fail(nil)
		check("after the outage", "10.244.3.0/24>192.0.2.3")
		if s := w.Status(); !s.Healthy || s.LastError != "" || s.Revision != m.revision {
			t.Errorf("after the outage: %+v", s)
		}
		if log.count("store trouble") != 1 || log.count("store is back") != 1 {
			t.Errorf("log:\n%s", log.String())
		}

		// A burst makes few tables.
		before = got.count()
		for i := range 1000 {
			m.PutRaw(fmt.Sprintf("10.244.%d.0-24", 4+i%200), vxlanValue("192.0.2.4", 1, macA), TTL)
		}
		settle(time.Second)
		if n := got.count() - before; n < 1 || n > 3 {
			t.Errorf("1000 changes made %d tables", n)
		}
		settle(72 * time.Hour)
		check("all expired", "")
	})
}

func TestRosterForgetsStrangers(t *testing.T) {
	r := newRoster(testNode(t, BackendUDP), new(logBuffer).logger())
	for i := range 3 * strangers {
		r.replace([]Entry{{Key: "10.244.2.0-24", Value: fmt.Appendf(nil, `{"PublicIP":"198.51.%d.%d"}`, i/250, i%250)}})
		r.update()
	}
	if n := len(r.counters); n > strangers+1 || n == 0 {
		t.Errorf("%d counters kept", n)
	}
}

const peersFile = `{
  "10.244.1.0-24": {"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"be:e3:93:3d:62:d0"}},
  "10.244.2.0-24": {"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"76:0a:15:7b:a4:2c"}}
}
`

func TestStaticFollowsItsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "peers.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write(peersFile)
	got, log := new(tables), new(logBuffer)
	s, err := NewStatic(StaticConfig{Path: path, PublicIP: netip.MustParseAddr("192.0.2.1"), Poll: 5 * time.Millisecond, OnTable: got.add, Logger: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	if own := s.Own(); own.Key != "10.244.1.0-24" || own.Attrs.MAC != mac(t, macA) {
		t.Fatalf("own lease %+v", own)
	}
	if text, err := MarshalPeersFile(s.Leases()); err != nil || strings.ReplaceAll(string(text), " ", "") != strings.ReplaceAll(peersFile, " ", "") {
		t.Errorf("written back: %s, %v", text, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: tables %d, %s, status %+v\n%s", what, got.count(), got.last(), s.Status(), log.String())
			}
		}
	}
	eventually("first", func() bool { return got.last() == "10.244.2.0/24>192.0.2.2" && s.Status().Healthy })
	counters := got.peer("10.244.2.0/24").Counters
	write(strings.Replace(peersFile, macB, macA, 1))
	eventually("changed", func() bool { return got.peer("10.244.2.0/24").MAC == mac(t, macA) })
	if got.peer("10.244.2.0/24").Counters != counters {
		t.Error("the counters are lost")
	}
	n := got.count()
	for _, bad := range []string{"{", strings.Replace(peersFile, "10.244.1.0-24", "10.244.9.0-24", 1)} {
		write(bad)
		eventually("bad", func() bool { return !s.Status().Healthy })
		if got.count() != n || log.count("the peers stay as they were") == 0 {
			t.Errorf("a bad file changed the peers, or was not logged")
		}
		write(peersFile)
		eventually("mended", func() bool { return s.Status().Healthy })
		n = got.count()
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	eventually("removed", func() bool { return !s.Status().Healthy })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestStaticRefuses(t *testing.T) {
	dir := t.TempDir()
	for i, test := range []struct{ in, want string }{
		{`{}`, "no lease"},
		{`[]`, "JSON object"},
		{"{\n \"zoo\": {}}", "line 2, column"},
		{"{\n \"10.244.1.0-24\": {\"PublicIP\":null}}", "line 2, column 17: lease 10.244.1.0-24: lease value: PublicIP is missing or null"},
		{strings.Replace(peersFile, "10.244.2.0", "10.244.1.0", 1), "is there already, at line 2"},
		{strings.Replace(peersFile, "192.0.2.1", "192.0.2.7", 1), "no lease has our PublicIP 192.0.2.1 (there are 192.0.2.7, 192.0.2.2)"},
		{strings.Replace(peersFile, "192.0.2.2", "192.0.2.1", 1), "both have our PublicIP"},
		{`{"0.0.0.0-0&2001:db8::-64":{"PublicIP":"192.0.2.1"}}`, "no IPv4 subnet"},
		{`{"10.244.1.0-24":{"PublicIP":"192.0.2.1","BackendType":"ipip"}}`, `backend "ipip"`},
	} {
		path := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(path, []byte(test.in), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := NewStatic(StaticConfig{Path: path, PublicIP: netip.MustParseAddr("192.0.2.1")})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s:\n got %v\nwant %s", test.in, err, test.want)
		}
	}
	if _, err := NewStatic(StaticConfig{Path: filepath.Join(dir, "missing")}); err == nil || !strings.Contains(err.Error(), "--peers-file") {
		t.Errorf("missing file: %v", err)
	}
}

// Whoever asks for the table between a change and its handing out, as a status does, does not take the change away from
// those that it is handed out to.
func TestWatcherTableAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		w, got, _, stop := watching(t, m, testNode(t, BackendHostGW))
		defer stop()
		m.PutRaw("10.244.4.0-24", `{"PublicIP":"192.0.2.4","PublicIPv6":null,"BackendType":"host-gw"}`, TTL)
		synctest.Wait()
		if got.last() != "" || len(w.Table().Peers()) != 1 {
			t.Fatalf("handed out %q, and the table has %d peers: the rest of this test shows nothing", got.last(), len(w.Table().Peers()))
		}
		settle(time.Second)
		if got.last() != "10.244.4.0/24>192.0.2.4" {
			t.Errorf("handed out %q", got.last())
		}
	})
}
