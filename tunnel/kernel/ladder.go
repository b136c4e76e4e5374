package kernel

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The features of the data path, by the names that --features, status and metrics use.
const (
	MMsg        = "mmsg"
	SourcePorts = "source-ports"
	OuterECN    = "outer-ecn"
	UDPGSO      = "udp-gso"
	UDPGRO      = "udp-gro"
	EarlyFilter = "early-filter"
	TUNDrain    = "tun-drain"
	MultiQueue  = "multi-queue"
	TUNNAPI     = "tun-napi"
	TUNVnet     = "tun-vnet"
	TUNTSO      = "tun-tso"
	TUNUSO      = "tun-uso"
	TUNTCPGRO   = "tun-tcp-gro"
	TUNUDPGRO   = "tun-udp-gro"
	BusyPoll    = "busy-poll"
)

// Rung is one feature of the ladder.
type Rung struct {
	Name  string
	Needs string // the feature that it stands on; empty: none
	Since string // the Linux version that brought it; for people to read
	Buys  string // what it is good for, in half a sentence
}

// Ladder lists every feature, each behind the one that it needs. Without any of them muslin moves one
// packet a call, through library code alone, on any kernel that Go runs on.
var Ladder = []Rung{
	{Name: MMsg, Since: "3.0", Buys: "many datagrams in one system call (sendmmsg, recvmmsg)"},
	{Name: SourcePorts, Since: "any", Buys: "flows spread over several outer source ports, for ECMP and receive queues"},
	{Name: OuterECN, Since: "3.13", Buys: "congestion marks cross the tunnel (RFC 6040)"},
	{Name: UDPGSO, Needs: MMsg, Since: "4.18", Buys: "a run of datagrams leaves as one, cut by the NIC or late in the stack"},
	{Name: UDPGRO, Needs: MMsg, Since: "5.12", Buys: "a run of datagrams arrives as one"},
	{Name: EarlyFilter, Since: "any", Buys: "the kernel drops strangers' datagrams before they cost the daemon anything"},
	{Name: TUNDrain, Since: "any", Buys: "one wake-up takes every packet that waits in the TUN device"},
	{Name: MultiQueue, Needs: TUNDrain, Since: "3.9", Buys: "several workers, each with a queue of the TUN device and a socket"},
	{Name: TUNVnet, Needs: TUNDrain, Since: "2.6.27", Buys: "checksums and segmentation cross the TUN device as they would a NIC"},
	{Name: TUNTSO, Needs: TUNVnet, Since: "2.6.27", Buys: "the host hands over TCP in superpackets of up to 64 KiB"},
	{Name: TUNUSO, Needs: TUNTSO, Since: "6.2", Buys: "the host hands over UDP (QUIC) in superpackets"},
	{Name: TUNTCPGRO, Needs: TUNVnet, Since: "2.6.27", Buys: "the host gets TCP in superpackets"},
	{Name: TUNUDPGRO, Needs: TUNVnet, Since: "6.2", Buys: "the host gets runs of equal UDP datagrams in one call"},
	{Name: TUNNAPI, Needs: TUNDrain, Since: "5.12", Buys: "where superpackets cannot be written, the kernel joins TCP segments itself"},
	{Name: BusyPoll, Needs: TUNDrain, Since: "any", Buys: "answers come sooner: while packets take turns, workers wait for the next one awake"},
}

// Features is which features may be used, and why the others may not. The zero value allows all. It is a
// value: Without returns a changed copy.
type Features struct {
	off map[string]string // name to reason
}

// ParseFeatures reads --features: "auto" (all that work) or "none", then "-name" to leave one out and
// "name" to take one in again with all that it needs. "-udp-gso,-tun-uso" means auto without the two.
func ParseFeatures(s string) (Features, error) {
	var f Features
	for i, item := range strings.Split(s, ",") {
		item = strings.TrimSpace(item)
		switch name, minus := strings.CutPrefix(item, "-"); {
		case item == "auto" && i == 0:
		case item == "none" && i == 0:
			for _, r := range Ladder {
				f = f.Without(r.Name, "--features=none")
			}
		case rung(name) == nil:
			return Features{}, fmt.Errorf("--features: %q: want auto or none first, then -NAME to leave out or NAME to take in, of %s", item, strings.Join(FeatureNames(), ", "))
		case minus:
			f = f.Without(name, "left out by --features")
		default:
			f = f.with(name)
		}
	}
	return f, nil
}

// FeatureNames lists the names of Ladder, in its order.
func FeatureNames() []string {
	var names []string
	for _, r := range Ladder {
		names = append(names, r.Name)
	}
	return names
}

func rung(name string) *Rung {
	if i := slices.IndexFunc(Ladder, func(r Rung) bool { return r.Name == name }); i >= 0 {
		return &Ladder[i]
	}
	return nil
}

// On reports whether the feature may be used: neither it nor one that it needs was taken out.
func (f Features) On(name string) bool { return f.Why(name) == "" }

// Why is the reason why a feature may not be used, empty where it may.
func (f Features) Why(name string) string {
	if why, off := f.off[name]; off {
		return why
	}
	if r := rung(name); r != nil && r.Needs != "" && !f.On(r.Needs) {
		return "needs " + r.Needs + ", which is off"
	}
	return ""
}

// Without takes a feature out, for a reason that a person will read. The first reason stays.
func (f Features) Without(name, reason string) Features {
	if _, off := f.off[name]; off {
		return f
	}
	off := maps.Clone(f.off)
	if off == nil {
		off = make(map[string]string)
	}
	off[name] = reason
	return Features{off}
}

func (f Features) with(name string) Features {
	off := maps.Clone(f.off)
	for r := rung(name); r != nil; r = rung(r.Needs) {
		delete(off, r.Name)
	}
	return Features{off}
}

// Feature is the state of one for status: whether it is on, and what that buys or why it is off.
func (f Features) Feature(name string) Feature {
	if why := f.Why(name); why != "" {
		return Feature{Name: name, Reason: why}
	}
	return Feature{Name: name, On: true, Reason: rung(name).Buys}
}

// Caution names a feature that kernels of this release may have broken in a way that no test can see without
// the NIC in question, and says how; both are empty where none is known. It is for people: the version decides
// nothing, as distributions carry faults and their repairs to other releases.
//
// From Linux 7.0 (b10b446ce7ad) to 7.1.4 runs of UDP datagrams that are cut half by the kernel and half by the
// NIC (tx-gso-partial in ethtool -k) may leave with wrong UDP lengths and checksums.
func Caution(release string) (feature, what string) {
	var major, minor, patch int
	_, _ = fmt.Sscanf(release, "%d.%d.%d", &major, &minor, &patch) // what is not there is 0
	if major == 7 && (minor == 0 || minor == 1 && patch < 5) {
		return UDPGSO, "Linux 7.0 to 7.1.4 may spoil what it cuts for a NIC with tx-gso-partial (ethtool -k): where peers receive little, compare with --features=-" + UDPGSO
	}
	return "", ""
}
