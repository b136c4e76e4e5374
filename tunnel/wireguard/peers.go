package wireguard

import (
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"muslin/tunnel/fib"
)

// peer is what the engine is told of one: a key and what is behind it.
type peer struct {
	endpoint netip.AddrPort
	subnets  []netip.Prefix // sorted
}

func (p *peer) equal(q *peer) bool {
	return p.endpoint == q.endpoint && slices.Equal(p.subnets, q.subnets)
}

// SetPeers implements tunnel.Underlay. A peer that is new, or has moved, is known to the engine before the table is in
// use, and one that is gone is forgotten after.
func (u *Underlay) SetPeers(t *fib.Table, use func()) {
	u.peering.Lock()
	defer u.peering.Unlock()
	wanted := u.wanted(t)
	var set, gone strings.Builder
	for _, key := range slices.SortedFunc(maps.Keys(wanted), compareKeys) {
		p, old := wanted[key], u.peers[key]
		if _, known := u.peers[key]; !known || !p.equal(&old) {
			u.describe(&set, key, p, known && p.endpoint == old.endpoint)
		}
	}
	for key := range u.peers {
		if _, stays := wanted[key]; !stays {
			fmt.Fprintf(&gone, "public_key=%s\nremove=true\n", hex.EncodeToString(key[:]))
		}
	}
	u.tell(set.String())
	use()
	u.tell(gone.String())
	u.peers = wanted
}

// describe writes a peer as the engine wants it (https://www.wireguard.com/xplatform/). An endpoint that stays is left
// out: the engine may know a better one, from which the peer's datagrams came.
func (u *Underlay) describe(to *strings.Builder, key fib.PublicKey, p peer, stays bool) {
	fmt.Fprintf(to, "public_key=%s\n", hex.EncodeToString(key[:]))
	if !u.cfg.PSK.IsZero() {
		fmt.Fprintf(to, "preshared_key=%s\n", hex.EncodeToString(u.cfg.PSK[:]))
	}
	if !stays {
		fmt.Fprintf(to, "endpoint=%s\n", p.endpoint)
	}
	fmt.Fprintf(to, "persistent_keepalive_interval=%d\nreplace_allowed_ips=true\n", u.cfg.Keepalive/time.Second)
	for _, s := range p.subnets {
		fmt.Fprintf(to, "allowed_ip=%s\n", s)
	}
}

func (u *Underlay) tell(changes string) {
	if changes == "" {
		return
	}
	if err := u.dev.IpcSet(changes); err != nil {
		u.cfg.Logger.Error("WireGuard's engine does not take a change of the peers", "err", err)
	}
}

// wanted is the table by key. Of several nodes that have one key, as hosts made from one image do, only the one with the
// lowest subnet is reached.
func (u *Underlay) wanted(t *fib.Table) map[fib.PublicKey]peer {
	wanted := make(map[fib.PublicKey]peer, len(t.Peers()))
	said := make(map[fib.PublicKey]string)
	for _, p := range t.Peers() { // sorted by subnet
		if p.Key.IsZero() {
			continue
		}
		endpoint := netip.AddrPortFrom(p.PublicIP, u.cfg.Port)
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
		if u.said[key] != who {
			u.cfg.Logger.Error("two peers have one WireGuard key: only the first is reached; if one was made from the other's image, delete the file of the key there and start its daemon again", "key", key, "peers", who)
		}
	}
	u.said = said
	return wanted
}

// keys are the peers' now.
func (u *Underlay) keys() []fib.PublicKey {
	u.peering.Lock()
	defer u.peering.Unlock()
	return slices.Collect(maps.Keys(u.peers))
}

// Shared is who shares a key with another peer and is not reached, in a sentence; empty: nobody.
func (u *Underlay) Shared() string {
	u.peering.Lock()
	defer u.peering.Unlock()
	var all []string
	for _, key := range slices.SortedFunc(maps.Keys(u.said), compareKeys) {
		all = append(all, fmt.Sprintf("%s have the key %s", u.said[key], key))
	}
	if len(all) == 0 {
		return ""
	}
	return "peers share a WireGuard key, and only the first of each is reached: " + strings.Join(all, "; ") + "; delete the file of the key on the others, and start their daemons again"
}

func compareKeys(a, b fib.PublicKey) int { return slices.Compare(a[:], b[:]) }
