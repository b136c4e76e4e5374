//go:build linux

package main

import (
	"context"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"muslin/bench/crowd"
	"muslin/bench/lab"
	"muslin/bench/labtest"
)

const (
	manyNodes   = 10_000
	manyChanges = 1000 // a second

	network = "10.0.0.0/8"
)

// config is the network's, with room for 65,536 nodes.
func config(backend string) string {
	return fmt.Sprintf(`{"Network":%q,"SubnetLen":24,"Backend":{"Type":%q}}`, network, backend)
}

// bed is a lab with etcd on host 1, and a crowd that has no leases yet.
type bed struct {
	lab    *lab.Lab
	etcd   *labtest.Etcd
	client *clientv3.Client
	crowd  *crowd.Crowd
}

func newBed(t *testing.T, hosts int, backend string) *bed {
	t.Helper()
	l := labtest.NewLab(t, hosts)
	e := labtest.StartEtcd(t, l.Host(1))
	e.Config(t, config(backend))
	client := labtest.Must(crowd.DialFrom(l.Host(1).Node, labtest.Endpoint(l.Host(1))))(t)
	t.Cleanup(func() { client.Close() })
	c := labtest.Must(crowd.New(crowd.Config{Client: client, Nodes: manyNodes}))(t)
	return &bed{lab: l, etcd: e, client: client, crowd: c}
}

func (b *bed) fill(t *testing.T) {
	t.Helper()
	began := time.Now()
	if err := b.crowd.Fill(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d leases written in %v", manyNodes, time.Since(began).Round(time.Millisecond))
}

// churn changes leases until the returned function is called, which fails the test unless etcd kept up.
func (b *bed) churn(t *testing.T, rate int) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	rate = lab.Modest(rate)
	var churned crowd.Churned
	var err error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		churned, err = b.crowd.Churn(ctx, rate)
	}()
	return func() {
		t.Helper()
		cancel()
		<-ended
		if err != nil || churned.Rate() < 0.95*float64(rate) {
			t.Errorf("churn: %v, %v; want %d a second", churned, err, rate)
		}
		t.Log(churned)
	}
}

func (b *bed) start(t *testing.T, h *lab.Host, flags ...string) *lab.Muslin {
	t.Helper()
	return labtest.LaunchMuslin(t, h, append(flags, "--etcd-endpoints", labtest.Endpoint(b.lab.Host(1)))...)
}

// stop ends a daemon, whose lease stays.
func stop(t *testing.T, m *lab.Muslin) {
	t.Helper()
	if err := m.Stop(); err != nil {
		t.Fatal(err)
	}
}

// busy is the process's share of a core over a time, in percent.
func busy(t *testing.T, p *lab.Proc, over time.Duration) float64 {
	t.Helper()
	before, began := labtest.Must(p.CPU())(t), time.Now()
	time.Sleep(over)
	used := labtest.Must(p.CPU())(t) - before
	return 100 * float64(used) / float64(time.Since(began))
}
