//go:build linux

package fault

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// The member that leads the cluster is killed, and comes back.
func TestEtcdLeaderKilled(t *testing.T) {
	s := newScene(t, 0, clusterOptions{})
	leader, _ := s.cluster.roles(t)
	leader.Proc.Kill()
	s.peersRight(time.Now(), 15*time.Second) // the election takes 2 to 4 s
	leader.Launch(t)
	leader.WaitHealthy(t)
	s.peersRight(time.Now(), 10*time.Second)
	s.untouched()
}

// Two members of three are gone for longer than a lease lives.
func TestEtcdQuorumLost(t *testing.T) {
	const ttl = 10 * time.Second // renewed after 5 s
	s := newScene(t, 0, clusterOptions{}, "--subnet-lease-ttl", ttl.String())
	lost := time.Now()
	for _, m := range s.cluster.members[1:] {
		m.Proc.Kill()
	}
	for i := range s.nodes {
		s.eventually(i, lost, 20*time.Second, func(st *lab.Status) error {
			if st.Store.Healthy {
				return fmt.Errorf("%s believes that all is well", s.nodes[i].Name)
			}
			return s.knowsOthers(i, st)
		})
		s.warned(i, 20*time.Second, "own lease")
	}
	time.Sleep(time.Until(lost.Add(2*ttl + ttl/2))) // the fault's length
	for i := range s.nodes {
		s.eventually(i, time.Now(), time.Second, func(st *lab.Status) error { return s.knowsOthers(i, st) })
		s.logged(i, "store trouble: cannot watch the leases", "store trouble: cannot write our lease")
	}
	for _, m := range s.cluster.members[1:] {
		m.Launch(t)
	}
	s.cluster.members[0].WaitHealthy(t)
	s.peersRight(time.Now(), 10*time.Second)
	s.quiet(5 * time.Second)
	for i := range s.nodes {
		s.logged(i, "store is back: can watch the leases again", "store is back: can write our lease again")
	}
	s.untouched()
}

// cut drops what goes between a host and every etcd, and returns what heals it.
func (s *scene) cut(h *lab.Host) (heal func()) {
	s.Helper()
	lab.RequireTool(s.T, "nft")
	for _, command := range []string{
		"add table ip cut",
		"add chain ip cut out { type filter hook output priority 0; }",
		"add chain ip cut in { type filter hook input priority 0; }",
		"add rule ip cut out tcp dport 2379 drop",
		"add rule ip cut in tcp sport 2379 drop",
	} {
		s.run(h.Node, "nft", command)
	}
	return func() { s.run(h.Node, "nft", "delete table ip cut") }
}

// A node cannot reach etcd, for so long that its lease runs out. A node that joins meanwhile is unknown to it
// until the way is open again; its other peer is not.
func TestEtcdUnreachable(t *testing.T) {
	const ttl = 10 * time.Second
	s := newScene(t, 1, clusterOptions{}, "--subnet-lease-ttl", ttl.String())
	heal := s.cut(s.nodes[0].Host)
	began := time.Now()
	s.eventually(0, began, 30*time.Second, func(st *lab.Status) error {
		if st.Store.Healthy {
			return fmt.Errorf("%s believes that all is well", s.nodes[0].Name)
		}
		return nil
	})
	t.Logf("noticed after %v", time.Since(began).Round(100*time.Millisecond))
	s.warned(1, 20*time.Second, "vanished from the store") // the lease has run out, the node is heard
	s.logged(1, "leases vanished from the store whose nodes are alive")
	time.Sleep(time.Until(began.Add(30 * time.Second))) // the fault's length
	s.join(s.lab.Host(6))
	heal()
	s.peersRight(time.Now(), 15*time.Second)
	s.quiet(10 * time.Second)
	s.logged(0, "store trouble", "store is back")
	s.untouched()
}

// The cluster compacts its history past what a node has seen.
func TestEtcdCompacted(t *testing.T) {
	s := newScene(t, 1, clusterOptions{})
	heal := s.cut(s.nodes[0].Host)
	s.eventually(0, time.Now(), 30*time.Second, func(st *lab.Status) error {
		if st.Store.Healthy {
			return fmt.Errorf("%s believes that all is well", s.nodes[0].Name)
		}
		return nil
	})
	seen := labtest.Status(t, s.nodes[0]).Store.Revision
	s.join(s.lab.Host(6))
	for i := range 50 {
		s.cluster.do(t, "put", "/elsewhere", fmt.Sprint(i))
	}
	now := s.cluster.revision(t)
	if now < seen+50 {
		t.Fatalf("revision %d, and the node has seen %d: the test needs more between them", now, seen)
	}
	s.cluster.do(t, "compaction", fmt.Sprint(now))
	heal()
	s.peersRight(time.Now(), 15*time.Second)
	s.untouched()
}

// A member stops in the middle of everything, with its connections up: the leader, then another one. Then one is
// behind a line of 64 kbit/s.
func TestEtcdSlowMember(t *testing.T) {
	s := newScene(t, 0, clusterOptions{})
	leader, followers := s.cluster.roles(t)
	for _, m := range []*labtest.Etcd{leader, followers[0]} {
		if err := m.Proc.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		// A connection on which nothing comes is given up after 15 s.
		s.peersRight(time.Now(), 25*time.Second)
		if err := m.Proc.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		m.WaitHealthy(t)
		s.peersRight(time.Now(), 10*time.Second)
	}
	lab.RequireTool(t, "tc")
	s.run(followers[1].Host.Node, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "64kbit", "burst", "4kb", "latency", "5s")
	s.peersRight(time.Now(), 20*time.Second)
	s.untouched()
}

// The cluster is stopped and made anew of a snapshot from before a node joined, so that its revision goes back and
// it knows nothing of that node.
func TestEtcdRestored(t *testing.T) {
	s := newScene(t, 1, clusterOptions{})
	snapshot := filepath.Join(s.lab.Dir(), "snapshot.db")
	s.cluster.members[0].Do(t, "snapshot", "save", snapshot)
	s.join(s.lab.Host(6))
	for _, m := range s.nodes {
		labtest.WaitPeers(t, m, 2)
	}
	s.probe(0, 2)
	s.probe(2, 0)
	for i := range 50 {
		s.cluster.do(t, "put", "/elsewhere", fmt.Sprint(i))
	}
	before := s.cluster.revision(t)
	for _, m := range s.cluster.members {
		m.Proc.Kill()
	}
	hosts := s.lab.Hosts()[:members]
	for _, m := range s.cluster.members {
		m.Do(t, append([]string{"snapshot", "restore", snapshot, "--name", m.Host.Name, "--data-dir", dataDir(m.Host, "second")}, clusterArgs(hosts, m.Host, "second")...)...)
		m.Args = memberArgs(hosts, m.Host, "http", "second")
		m.Launch(t)
	}
	s.cluster.members[0].WaitHealthy(t)
	if now := s.cluster.revision(t); now >= before {
		t.Fatalf("revision %d after %d: the store was not set back", now, before)
	}
	s.peersRight(time.Now(), 15*time.Second)
	if got := s.cluster.leases(t); len(got) != 3 {
		t.Errorf("leases %v, want three", got)
	}
	s.quiet(10 * time.Second)
	s.logged(0, "or because it was set back")
	s.logged(2, "our lease was deleted from the store", "we hold our subnet again")
	s.untouched()
}

// The users' logins expire after two seconds, and the daemons write nothing for longer than that.
func TestEtcdLoginExpired(t *testing.T) {
	const life = 2 * time.Second
	s := newScene(t, 0, clusterOptions{
		flags:  func(*lab.Lab, *lab.Host) []string { return []string{"--auth-token-ttl", "2"} },
		muslin: func(*lab.Lab) []string { return []string{"--etcd-username", "root", "--etcd-password", "cloth"} },
		prepare: func(t *testing.T, c *cluster) {
			c.do(t, "user", "add", "root:cloth")
			c.do(t, "user", "grant-role", "root", "root")
			c.do(t, "auth", "enable")
			c.ctl = []string{"--user", "root:cloth"}
			for _, m := range c.members {
				m.Ctl = append(m.Ctl, c.ctl...)
			}
		},
	})
	time.Sleep(3 * life)
	s.peersRight(time.Now(), 10*time.Second) // the watches go on
	for i := range s.nodes {                 // and so does writing
		s.deleteLease(i)
	}
	s.peersRight(time.Now(), 10*time.Second)
	// A server that is started again knows no login at all.
	for _, m := range s.cluster.members {
		m.Proc.Kill()
		m.Launch(t)
		m.WaitHealthy(t)
	}
	s.peersRight(time.Now(), 15*time.Second)
	for i := range s.nodes {
		s.deleteLease(i)
	}
	s.quiet(5 * time.Second)
	s.untouched()
}

// Every certificate is replaced, the authority's too. The servers are started again one by one, since etcd reads
// its authorities at the start; the daemons are not.
func TestEtcdCertificatesRotated(t *testing.T) {
	client := func(l *lab.Lab, flags ...string) []string {
		var all []string
		for i, file := range []string{"ca.pem", "client.pem", "client-key.pem"} {
			all = append(all, flags[i], filepath.Join(l.Dir(), file))
		}
		return all
	}
	issue := func(l *lab.Lab) {
		ca := labtest.NewAuthority(t, l.Dir(), "ca")
		ca.Issue(t, l.Dir(), "client")
		for _, h := range l.Hosts()[:members] {
			ca.Issue(t, h.Dir, "etcd", h.Addr)
		}
	}
	s := newScene(t, 1, clusterOptions{
		scheme: "https",
		flags: func(l *lab.Lab, h *lab.Host) []string {
			if h.Number == 1 {
				issue(l)
			}
			return []string{"--cert-file", filepath.Join(h.Dir, "etcd.pem"), "--key-file", filepath.Join(h.Dir, "etcd-key.pem"),
				"--client-cert-auth", "--trusted-ca-file", filepath.Join(l.Dir(), "ca.pem")}
		},
		ctl:    func(l *lab.Lab) []string { return client(l, "--cacert", "--cert", "--key") },
		muslin: func(l *lab.Lab) []string { return client(l, "--etcd-cafile", "--etcd-certfile", "--etcd-keyfile") },
	})
	issue(s.lab)
	for _, m := range s.cluster.members {
		if err := m.Proc.Stop(); err != nil {
			t.Fatal(err)
		}
		m.Launch(t)
		m.WaitHealthy(t)
	}
	s.peersRight(time.Now(), 15*time.Second)
	s.join(s.lab.Host(6))
	s.peersRight(time.Now(), 10*time.Second)
	for i := range s.nodes {
		s.deleteLease(i) // writes with the new certificates
	}
	s.quiet(5 * time.Second)
	s.untouched()
}
