//go:build linux

package fault

import (
	"fmt"
	"testing"
	"time"

	"muslin/bench/crowd"
	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// A daemon that starts among 10,000 leases knows all of them within 3 seconds, in no more than 150 MB, with one
// route. `make scale` measures what else there is to know.
func TestTenThousandLeases(t *testing.T) {
	const nodes, mostStart, mostMemory = 10_000, 3 * time.Second, 150e6
	l := labtest.NewLab(t, 2)
	e := labtest.StartEtcd(t, l.Host(1), "--unsafe-no-fsync")
	e.Config(t, `{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"vxlan"}}`)
	client := labtest.Must(crowd.DialFrom(l.Host(1).Node, labtest.Endpoint(l.Host(1))))(t)
	defer client.Close()
	c := labtest.Must(crowd.New(crowd.Config{Client: client, Nodes: nodes}))(t)
	if err := c.Fill(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	m := labtest.StartMuslin(t, l.Host(2), "--etcd-endpoints", labtest.Endpoint(l.Host(1)))
	labtest.WaitPeers(t, m, nodes)
	if took := time.Since(began); took > lab.Patience(mostStart) {
		t.Errorf("%d peers after %v, more than %v", nodes, took, mostStart)
	} else {
		t.Logf("%d peers after %v", nodes, took.Round(time.Millisecond))
	}
	memory := labtest.Must(m.Memory())(t)
	t.Logf("resident memory %.0f MB, %.0f MB at most", float64(memory.Resident)/1e6, float64(memory.Peak)/1e6)
	if memory.Peak > mostMemory {
		t.Errorf("resident memory was %d bytes, more than %.0f", memory.Peak, mostMemory)
	}
	routes := labtest.Must(m.Host.Output(t.Context(), "ip", "-4", "route", "show", "dev", "muslin0"))(t)
	if want := fmt.Sprintf("10.0.0.0/8 proto 218 scope link src %s \n", labtest.Status(t, m).Node.Subnet.Addr()); routes != want {
		t.Errorf("routes into the overlay:\n%swant\n%s", routes, want)
	}
}
