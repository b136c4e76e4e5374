package wireguard

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"muslin/tunnel/fib"
)

// peer is what WireGuard is told of one: a key and what is behind it.
type peer struct {
	endpoint netip.AddrPort
	subnets  []netip.Prefix // sorted
}

func (p *peer) equal(q *peer) bool {
	return p.endpoint == q.endpoint && slices.Equal(p.subnets, q.subnets)
}

// change is one to tell. Where the endpoint is not new it is left alone: WireGuard may know a better one, from which the
// peer's datagrams came.
type change struct {
	key fib.PublicKey
	peer
	moved bool // endpoint is new
}

// members are the peers by key, as they follow the table.
type members struct {
	port  uint16                // of a peer that names none
	inner func(netip.Addr) bool // whose subnets count; nil: all
	log   *slog.Logger

	mu    sync.Mutex
	peers map[fib.PublicKey]peer
	said  map[fib.PublicKey]string // what was said of a key that several peers have

	shared atomic.Pointer[string] // the same as a sentence: who asks does not wait while the device takes a change
}

// follow makes the table's peers the members. It has those told that are new, or have moved, before the table is put to
// use, and those that are gone after.
func (m *members) follow(t *fib.Table, set func([]change), use func(), forget func([]fib.PublicKey)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	wanted := m.wanted(t)
	var changes []change
	var gone []fib.PublicKey
	for _, key := range slices.SortedFunc(maps.Keys(wanted), compareKeys) {
		p := wanted[key]
		if old, known := m.peers[key]; !known || !p.equal(&old) {
			changes = append(changes, change{key, p, p.endpoint != old.endpoint})
		}
	}
	for key := range m.peers {
		if _, stays := wanted[key]; !stays {
			gone = append(gone, key)
		}
	}
	if len(changes) > 0 {
		set(changes)
	}
	use()
	if len(gone) > 0 {
		forget(gone)
	}
	m.peers = wanted
}

// wanted is the table by key. Of several nodes that have one key, as hosts made from one image do, only the one with the
// lowest subnet is reached.
func (m *members) wanted(t *fib.Table) map[fib.PublicKey]peer {
	wanted := make(map[fib.PublicKey]peer, len(t.Peers()))
	said := make(map[fib.PublicKey]string)
	for _, p := range t.Peers() { // sorted by subnet
		if p.Key.IsZero() || m.inner != nil && !m.inner(p.Subnet.Addr()) {
			continue
		}
		endpoint := netip.AddrPortFrom(p.PublicIP, m.port)
		if p.Port != 0 {
			endpoint = netip.AddrPortFrom(p.PublicIP, p.Port)
		}
		w, double := wanted[p.Key]
		if double && w.endpoint.Addr() != p.PublicIP {
			said[p.Key] = fmt.Sprintf("%s and %s", w.endpoint.Addr(), p.PublicIP)
			continue
		}
		w.endpoint = endpoint
		w.subnets = append(w.subnets, p.Subnet)
		wanted[p.Key] = w
	}
	for key, who := range said {
		if m.said[key] != who {
			m.log.Error("two peers have one WireGuard key: only the first is reached; if one was made from the other's image, delete the file of the key there and start its daemon again", "key", key, "peers", who)
		}
	}
	m.said = said
	sentence := shared(said)
	m.shared.Store(&sentence)
	return wanted
}

// keys are the peers' now.
func (m *members) keys() []fib.PublicKey {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Keys(m.peers))
}

// Shared is who shares a key with another peer and is not reached, in a sentence; empty: nobody.
func (m *members) Shared() string {
	if s := m.shared.Load(); s != nil {
		return *s
	}
	return ""
}

func shared(said map[fib.PublicKey]string) string {
	var all []string
	for _, key := range slices.SortedFunc(maps.Keys(said), compareKeys) {
		all = append(all, fmt.Sprintf("%s have the key %s", said[key], key))
	}
	if len(all) == 0 {
		return ""
	}
	return "peers share a WireGuard key, and only the first of each is reached: " + strings.Join(all, "; ") + "; delete the file of the key on the others, and start their daemons again"
}

func compareKeys(a, b fib.PublicKey) int { return slices.Compare(a[:], b[:]) }
