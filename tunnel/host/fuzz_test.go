//go:build linux

package host

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"

	"github.com/google/nftables"
)

// FuzzJournal: nothing panics, and a journal that can be read says the same after it was written again.
func FuzzJournal(f *testing.F) {
	f.Add([]byte(`{"version":1,"boot":"b","netns":"net:[1]","tun":{"name":"muslin0","index":7,"up":true,"mtu":1500,"queue_length":500},
		"address":"10.244.1.0/32","routes":[{"prefix":"10.244.0.0/16"},{"prefix":"10.244.1.0/24","blackhole":true}],
		"sysctls":[{"path":"net/ipv4/ip_forward","before":"0","set":"1"}],"firewall":"iptables"}`))
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`{"version":2}`))
	dir := f.TempDir()
	path := journalPath(dir)
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		rewrite := func() []byte {
			j, err := readJournal(dir)
			if err != nil {
				return nil
			}
			if err := j.save(); err != nil {
				t.Fatal(err)
			}
			written, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			return written
		}
		once := rewrite()
		if once == nil {
			return
		}
		if twice := rewrite(); !bytes.Equal(once, twice) {
			t.Fatalf("written as\n%s\nand then as\n%s", once, twice)
		}
	})
}

// FuzzLegacy: no table that a kernel might hand out panics.
func FuzzLegacy(f *testing.F) {
	for _, family := range []legacyFamily{legacy4, legacy6} {
		info := make([]byte, legacyInfoSize)
		info[legacyNameLen] = 1 << 2 // FORWARD, from the first entry on
		rule := make([]byte, family.head+extensionHead+8)
		binary.NativeEndian.PutUint16(rule[family.offsets:], uint16(family.head))
		binary.NativeEndian.PutUint16(rule[family.offsets+2:], uint16(len(rule)))
		binary.NativeEndian.PutUint32(rule[family.head+extensionHead:], 1<<32-1) // drop
		f.Add(info, rule, family.size == 16)
		copy(rule[family.head+2:], "ERROR")
		f.Add(info, rule, family.size == 16)
	}
	f.Fuzz(func(t *testing.T, info, entries []byte, six bool) {
		if len(info) != legacyInfoSize {
			return
		}
		family := &legacy4
		if six {
			family = &legacy6
		}
		family.parse(&nftables.Table{Name: "filter", Family: family.family}, info, entries)
	})
}
