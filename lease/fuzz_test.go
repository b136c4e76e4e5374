package lease

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
)

// FuzzMemory: a memory that can be read is the same after it was written again, and what it holds can be acted on
// or refused, without a panic.
func FuzzMemory(f *testing.F) {
	f.Add([]byte(`{"version":1,"prefix":"/coreos.com/network","config":{"Network":"10.244.0.0/16"},
		"lease":{"key":"10.244.1.0-24","revision":7,"expires":"2026-11-26T12:00:00Z","reserved":false},
		"leases":{"10.244.1.0-24":{"PublicIP":"192.0.2.1","PublicIPv6":null},"10.244.2.0-24":{"PublicIP":"192.0.2.2","PublicIPv6":null}}}`))
	f.Add([]byte(`{"version":1,"lease":{"key":"0.0.0.0-0&::-0"},"leases":{"0.0.0.0-0&::-0":{"PublicIP":"192.0.2.1"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var m, again Memory
		if json.Unmarshal(data, &m) != nil {
			return
		}
		written, err := json.Marshal(m)
		if err != nil {
			return // a config that is none, or a time that JSON has no form for
		}
		if err := json.Unmarshal(written, &again); err != nil {
			t.Fatalf("cannot read what was written: %v\n%s", err, written)
		}
		rewritten, err := json.Marshal(again)
		if err != nil || !bytes.Equal(rewritten, written) {
			t.Fatalf("written as\n%s\nand then, %v, as\n%s", written, err, rewritten)
		}
		if !m.Lease.Subnet.IsValid() && !m.Lease.Subnet6.IsValid() || len(m.Entries()) != len(m.Leases) {
			t.Fatalf("%+v", m)
		}
		_ = m.Holds(m.Prefix, m.Lease.Attrs, m.Lease.Expires)
	})
}

// FuzzRoster: change upon change, of keys and values that anybody could have written, gives what all entries at
// once give.
func FuzzRoster(f *testing.F) {
	f.Add("10.244.2.0-24", vxlanValue("192.0.2.2", 1, macA), "10.244.2.0-25", vxlanValue("192.0.2.3", 1, macB), "10.244.2.0-24", `{"PublicIP":"192.0.2.9"}`, uint8(0))
	f.Add("10.244.2.0-24&2001:db8::-64", vxlanValue("192.0.2.2", 1, macA), "10.244.2.0-24", vxlanValue("192.0.2.2", 1, macA), "zoo", "garbage", uint8(5))
	f.Add("10.244.1.0-24", vxlanValue("10.244.7.1", 1, macA), "0.0.0.0-0&::-0", vxlanValue("192.0.2.2", 2, macA), "10.0.0.0-8", vxlanValue("192.0.2.2", 1, macA), uint8(0xff))
	f.Add("10.244.2.0-24&2001:db8:2::-64", flannelDual, "0.0.0.0-0&2001:db8:2::-64", flannelSix, "10.244.2.0-24", vxlanValue("192.0.2.2", 1, macB), uint8(0x3f))
	f.Fuzz(func(t *testing.T, key1, value1, key2, value2, key3, value3 string, how uint8) {
		for _, node := range append(testNodes(t, BackendVXLAN), testNodes(t, BackendUDP)...) {
			r := newRoster(node, slog.New(slog.DiscardHandler))
			entries := map[string]Entry{}
			compare := func() {
				table, _ := r.update()
				peers, skipped := slowRoster(node, entries)
				if got := peersOf(table); !slices.Equal(got, peers) {
					t.Fatalf("peers\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(peers, "\n"))
				}
				if !maps.Equal(r.skipped, skipped) {
					t.Fatalf("skipped %v, want %v", r.skipped, skipped)
				}
			}
			for i, e := range []Entry{{Key: key1, Value: []byte(value1)}, {Key: key2, Value: []byte(value2)}, {Key: key3, Value: []byte(value3)}} {
				e.Revision, e.Reserved = int64(i), how>>i&1 == 1
				r.set(e)
				entries[e.Key] = e
				compare()
				if how>>(3+i)&1 == 1 {
					r.remove(key1)
					delete(entries, key1)
					compare()
				}
			}
		}
	})
}

// FuzzPeersFile: what can be read as a peers file is the same leases after it was written again.
func FuzzPeersFile(f *testing.F) {
	f.Add([]byte(`{"10.244.1.0-24":{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"be:e3:93:3d:62:d0"}}}`))
	f.Add([]byte(`{"10.244.1.0-24&2001:db8::-64":{"PublicIP":"192.0.2.1"},"0.0.0.0-0&::-0":{"PublicIP":"192.0.2.2","BackendData":{"a":[1,{"b":null}]}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		leases := parsePeers(t, data)
		if leases == nil {
			return
		}
		written, err := MarshalPeersFile(leases)
		if err != nil {
			t.Fatal(err)
		}
		again := parsePeers(t, written)
		if len(again) != len(leases) {
			t.Fatalf("%d leases come back as %d:\n%s", len(leases), len(again), written)
		}
		for _, l := range leases {
			i := slices.IndexFunc(again, func(a Lease) bool { return a.Key == l.Key })
			if i < 0 || again[i].Subnet != l.Subnet || again[i].Subnet6 != l.Subnet6 || jsonOf(t, again[i].Attrs) != jsonOf(t, l.Attrs) {
				t.Fatalf("%+v is not in\n%s", l, written)
			}
		}
	})
}

// parsePeers is nil for what is no peers file.
func parsePeers(t *testing.T, data []byte) (leases []Lease) {
	entries, err := ParsePeersFile(data)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		l, err := ParseLease(e)
		if err != nil {
			t.Fatal(err)
		}
		leases = append(leases, l)
	}
	return leases
}

func jsonOf(t *testing.T, a Attrs) string {
	b, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
