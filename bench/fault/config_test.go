//go:build linux

package fault

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// The network's config is changed, spoilt and deleted while daemons run. They say so, and go on; a daemon that is
// started again takes the new one.
func TestConfigChanged(t *testing.T) {
	s := newScene(t, 0, clusterOptions{})
	host := s.nodes[0].Host
	setUp := func() string {
		return s.run(host.Node, "ip", "-4", "-o", "addr", "show") + s.run(host.Node, "ip", "-4", "route", "show", "table", "all") +
			s.run(host.Node, "nft", "--stateless", "list", "ruleset")
	}
	lab.RequireTool(t, "nft")
	before := setUp()
	for _, c := range []struct{ config, words string }{
		{`{"Network":"10.245.0.0/16","Backend":{"Type":"vxlan"}}`, "Network: 10.244.0.0/16, now 10.245.0.0/16"},
		{`{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}`, "Backend.Type: vxlan, now udp"},
		{`{"Network":`, "is broken"},
	} {
		changed := time.Now()
		s.cluster.config(t, c.config)
		for i := range s.nodes {
			s.warned(i, 5*time.Second, c.words)
			s.logged(i, c.words)
		}
		t.Logf("noticed after %v", time.Since(changed).Round(10*time.Millisecond))
	}
	s.cluster.do(t, "del", labtest.Prefix+"/config")
	for i := range s.nodes {
		s.warned(i, 5*time.Second, "the network's config was deleted", labtest.VXLANConfig)
	}
	s.peersRight(time.Now(), 5*time.Second)
	if err := s.nodes[0].WaitReady(t.Context()); err != nil {
		t.Error(err)
	}
	if after := setUp(); after != before {
		t.Errorf("something was torn down. Before:\n%s\nafter:\n%s", before, after)
	}
	s.cluster.config(t, labtest.VXLANConfig)
	s.quiet(5 * time.Second)
	s.logged(0, "is the one again that this node runs with")
	s.untouched()

	// Now for good, and the daemon is started again. It begins with what it remembers, until the store has told it.
	s.cluster.config(t, `{"Network":"10.245.0.0/16","Backend":{"Type":"vxlan"}}`)
	s.warned(0, 5*time.Second, "does not fit the new one")
	if err := s.nodes[0].Stop(); err != nil {
		t.Fatal(err)
	}
	s.nodes[0] = labtest.StartMuslin(t, host, s.cluster.flags()...)
	s.eventually(0, time.Now(), 5*time.Second, func(st *lab.Status) error {
		if got := st.Node.Subnet.String(); !strings.HasPrefix(got, "10.245.") {
			return fmt.Errorf("started again it has %s", got)
		}
		return nil
	})
}
