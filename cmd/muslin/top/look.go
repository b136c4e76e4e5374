package top

import (
	"net/netip"
	"time"

	"muslin/cmd/muslin/control"
)

// What is asked for at a look. An answer with ten thousand peers takes the daemon a tenth of a second, and us as long to read: the
// node, the drops and the peers on the screen are asked for each time, and all peers as seldom as makes that a small part of the
// time. Of those that are not on the screen the rates are then of a longer time, and so is the order.

// share is what part of the time all peers together may take: a fiftieth.
const share = 50

// fewPeers may all be watched: so many requests go out in a second (package pulse).
const fewPeers = 50

// look is what to ask for now.
func (m *model) look() control.Look {
	look := control.Look{Peers: control.AllPeers, Watch: control.AllPeers}
	if m.last == nil {
		return look
	}
	if len(m.last.peers) > fewPeers {
		look.Watch = m.seen()
	}
	if m.now.Sub(m.whole) < share*m.took && !m.stale {
		look.Peers = m.seen()
	}
	return look
}

// seen are the peers on the screen.
func (m *model) seen() (some control.Peers) {
	add := func(subnet string) {
		if s, err := netip.ParsePrefix(subnet); err == nil {
			some.Subnets = append(some.Subnets, s)
		}
	}
	switch t := m.tables[panePeers]; {
	case m.pane != panePeers || m.help || m.picture == nil:
	case m.detail != nil:
		add(m.detailed)
	default:
		for _, row := range t.order[min(t.top, len(t.order)):min(t.top+m.height, len(t.order))] {
			add(m.picture.peers[row].Subnet)
		}
	}
	return some
}

// complete adds to a status that has some of the peers the others, as they were last. It says whether it is known who they are.
func (m *model) complete(s *sample) bool {
	if len(s.status.Peers) >= s.status.Counts.Total || m.last == nil {
		return true // all of them, or the daemon is of a version that has no others
	}
	if m.last.Counts.Total != s.status.Counts.Total || !same(m.last.Status, s.status) {
		return false
	}
	fresh := make(map[string]*control.PeerStatus, len(s.status.Peers))
	for i := range s.status.Peers {
		fresh[s.status.Peers[i].Subnet] = &s.status.Peers[i]
	}
	all, seen := make([]control.PeerStatus, len(m.last.peers)), make([]time.Time, len(m.last.peers))
	for i := range m.last.peers {
		old := &m.last.peers[i]
		all[i], seen[i] = *old.PeerStatus, old.seen
		if p := fresh[old.Subnet]; p != nil {
			all[i], seen[i] = *p, s.at
		}
	}
	s.status.Peers, s.seen = all, seen
	return true
}
