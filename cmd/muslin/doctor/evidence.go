package doctor

import (
	"net/netip"
	"time"

	"muslin/cmd/muslin/doctor/wire"
	"muslin/encap"
)

// evidence is what is known of a peer that does not answer over the overlay, and of the path to it. It is judged by
// judge.go and gathered by suspects.go and tries.go.
type evidence struct {
	peer, own half
	port      uint16 // the overlay's
	local     bool   // own.outer is an address of this host
	carried   bool   // something here carries the overlay: a daemon, or flannel's device
	rumours   bool   // the daemon has dropped what may be the peer's

	silence string // of which kind its silence is; and those of that kind that are not looked into
	alike   []half

	// By the host's own routes.
	route routed

	host   wire.Answer // echo of the underlay, to the PublicIP
	alive  bool        // it answers a TCP connection
	knocks map[uint16]wire.Knock
	closed wire.Knock // at a UDP port where nobody will listen

	made      wire.Knock    // datagrams made by hand
	misshapen *wire.Refusal // of one that no open or closed port answers
	counted   counted

	seen   []sighting // of the peer's, and in the peer's name
	left   int        // datagrams to it that were seen leaving
	answer bool       // one made by hand was answered at an interface of ours
	bare   bool       // one was answered past the overlay: it has got there
	muslin bool       // the node runs muslin, which asks a peer that it does not hear every 10 s
	anyMAC bool       // only one to every MAC was answered

	unchecked bool // one without any checksum was answered
	spoilt    bool // and what has arrived there was not what was sent

	heard    time.Time     // by the daemon, last; zero: never since it started
	oneSided bool          // the daemon hears it, and none of a minute's requests was answered
	deaf     time.Duration // how long the daemon has asked it and heard nothing; 0: it is not known
	waited   time.Duration
	age      time.Duration // since its lease was written or renewed, at most; 0: it is not known

	judged *said // in the end
}

// sighting is one kind, with how often it was seen.
type sighting struct {
	wire.Sighting
	n int
}

// routed is the kernel's way to a PublicIP.
type routed struct {
	err     error
	device  string
	index   int        // of the device
	gateway netip.Addr // invalid: it is on the link
	overlay bool       // by a device of the overlay
	failed  bool       // on the link nobody has the address (ARP, neighbour discovery)
	found   encap.MAC  // somebody has
}

// counted is what this host counted of the peer meanwhile.
type counted struct {
	known bool
	rx    uint64            // packets of the peer that the overlay took in
	drops map[string]uint64 // by reason, of all peers
}

// up reports whether the host is there, by any sign of it.
func (e *evidence) up() bool {
	return e.host.Got > 0 || e.alive || e.closed.Refused.Port() && e.closed.Refused.By == e.peer.outer || e.came() > 0 ||
		e.made.Refused.Port() && e.made.Refused.By == e.peer.outer || e.made.Refused.Prohibited() && e.made.Refused.By == e.peer.outer
}

// came is how many datagrams of the peer's were seen.
func (e *evidence) came() int {
	n := 0
	for _, s := range e.seen {
		if !s.Out && s.Src == e.peer.outer {
			n += s.n
		}
	}
	return n
}

// lately is a little more than what a peer's muslin takes between two requests to one that it does not hear (package pulse).
const lately = 12 * time.Second

// recent reports whether the daemon heard the peer a moment ago.
func (e *evidence) recent() bool { return !e.heard.IsZero() && time.Since(e.heard) < lately }

// silentFor is how long nothing of the peer's has come, as far as it is known.
func (e *evidence) silentFor() time.Duration { return max(e.waited, e.deaf) }
