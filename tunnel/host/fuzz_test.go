//go:build linux

package host

import (
	"bytes"
	"os"
	"testing"
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
