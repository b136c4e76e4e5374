//go:build linux

package host

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"unsafe"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// The rules of iptables-legacy are read from the kernel itself, as that program reads them, and put into the terms of
// nftables, in which obstacle.go follows a packet through them. A host has them with or without the program: a
// container may have put them in.

// legacyTables names the tables of iptables-legacy that this namespace has. The kernel makes one when it is first
// asked for it; none are there where nobody uses iptables-legacy, or where the kernel has no ip_tables.
func legacyTables(six bool) ([]string, error) {
	name := "ip_tables_names"
	if six {
		name = "ip6_tables_names"
	}
	f, err := procNet(name)
	if err != nil {
		return nil, fmt.Errorf("list the tables of iptables-legacy: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("list the tables of iptables-legacy: %w", err)
	}
	return strings.Fields(string(b)), nil
}

// hasLegacy reports whether anybody has asked for a table of iptables-legacy. The kernel tells nobody of changes there.
func (c SetupConfig) hasLegacy() bool {
	for _, h := range c.halves() {
		if tables, err := legacyTables(h.network.Addr().Is6()); err == nil && len(tables) > 0 {
			return true
		}
	}
	return false
}

// legacyFamily is how one of the two has its rules: struct ipt_entry and struct ip6t_entry of
// linux/netfilter_ipv4/ip_tables.h and linux/netfilter_ipv6/ip6_tables.h, in bytes.
type legacyFamily struct {
	family             nftables.TableFamily
	domain, level      int
	address            addressField
	size               int // of an address
	devices            int // offset of both names and both masks
	protocol           int // 16 bits
	flags, invert      int
	asks, leap, unsure byte // flags: a protocol is asked for, goto instead of jump, and what is asked for beside that
	offsets            int  // of the target and of the next entry, 16 bits each
	head               int  // of all, before the matches
}

var (
	legacy4 = legacyFamily{
		family: nftables.TableFamilyIPv4, domain: unix.AF_INET, level: unix.IPPROTO_IP,
		address: fields4, size: 4, devices: 16, protocol: 80, flags: 82, invert: 83, leap: 0x02, unsure: 0x01,
		offsets: 88, head: 112, // 96, and two counters of 64 bits
	}
	legacy6 = legacyFamily{
		family: nftables.TableFamilyIPv6, domain: unix.AF_INET6, level: unix.IPPROTO_IPV6,
		address: fields6, size: 16, devices: 64, protocol: 128, flags: 131, invert: 132, asks: 0x01, leap: 0x04, unsure: 0x02,
		offsets: 140, head: roundUp(148, wordAlign) + 16,
	}
)

// wordAlign is how C aligns 64 bits.
var wordAlign = map[bool]int{true: 4, false: 8}[runtime.GOARCH == "386"]

func roundUp(n, to int) int { return (n + to - 1) / to * to }

// What x_tables calls IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES, and their structures: a name of 32 bytes first, and
// in ipt_getinfo the hooks that are there, the chains' first and last entries by the hook, and the size of all.
const (
	soGetInfo, soGetEntries = 64, 65

	legacyNameLen   = 32
	legacyInfoSize  = legacyNameLen + 4 + 5*4 + 5*4 + 4 + 4
	legacyFirst     = legacyNameLen + 4
	legacySizeField = legacyInfoSize - 4
	extensionHead   = 32 // struct xt_entry_match and xt_entry_target: size, a name of 29 bytes, revision
)

// Bits of the byte that says which conditions are turned round (linux/netfilter/x_tables.h and the two above).
const (
	invertIn, invertOut, invertSource, invertDestination, invertProtocol = 0x01, 0x02, 0x08, 0x10, 0x40
)

// readLegacy reads one table: its base chains, and a walk that has all its rules.
func readLegacy(six bool, name string) ([]*nftables.Chain, *walk, error) {
	f := &legacy4
	if six {
		f = &legacy6
	}
	info, entries, err := f.entries(name)
	if err != nil {
		return nil, nil, fmt.Errorf("read the iptables-legacy table %s: %w", name, err)
	}
	table := &nftables.Table{Name: name, Family: f.family}
	chains, w := f.parse(table, info, entries)
	return chains, w, nil
}

// entries asks the kernel for a table. Any socket of the family may ask, with CAP_NET_ADMIN.
func (f *legacyFamily) entries(name string) (info, entries []byte, err error) {
	fd, err := unix.Socket(f.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(fd)
	head := roundUp(legacyNameLen+4, wordAlign)
	for range 5 {
		info = make([]byte, legacyInfoSize)
		copy(info, name)
		if err := getOption(fd, f.level, soGetInfo, info); err != nil {
			return nil, nil, err
		}
		size := binary.NativeEndian.Uint32(info[legacySizeField:])
		all := make([]byte, head+int(size))
		copy(all, name)
		binary.NativeEndian.PutUint32(all[legacyNameLen:], size)
		err = getOption(fd, f.level, soGetEntries, all)
		if err == nil {
			return info, all[head:], nil
		}
		if !errors.Is(err, unix.EAGAIN) { // it has changed in between
			break
		}
	}
	return nil, nil, err
}

func getOption(fd, level, name int, b []byte) error {
	size := uint32(len(b))
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	if e != 0 {
		return e
	}
	return nil
}

// parse takes a table apart. A base chain begins where its hook's first entry is, any other one behind an entry with the
// target ERROR, which has its name; each ends before the next one.
func (f *legacyFamily) parse(table *nftables.Table, info, entries []byte) ([]*nftables.Chain, *walk) {
	w := &walk{rules: make(map[string][]*nftables.Rule)}
	starts := make(map[uint32]*nftables.Chain) // by offset
	var chains []*nftables.Chain
	for hook, name := range map[*nftables.ChainHook]string{nftables.ChainHookInput: "INPUT", nftables.ChainHookForward: "FORWARD", nftables.ChainHookOutput: "OUTPUT", nftables.ChainHookPrerouting: "PREROUTING", nftables.ChainHookPostrouting: "POSTROUTING"} {
		if binary.NativeEndian.Uint32(info[legacyNameLen:])&(1<<*hook) == 0 {
			continue
		}
		chain := &nftables.Chain{Name: name, Table: table, Hooknum: hook, Type: nftables.ChainTypeFilter}
		starts[binary.NativeEndian.Uint32(info[legacyFirst+4**hook:])] = chain
		chains = append(chains, chain)
	}
	f.each(entries, func(at uint32, e []byte) {
		if name, data := f.target(e); name == "ERROR" {
			chain := &nftables.Chain{Name: text(data), Table: table}
			starts[at+uint32(len(e))] = chain
			chains = append(chains, chain)
		}
	})
	var in *nftables.Chain
	f.each(entries, func(at uint32, e []byte) {
		if chain := starts[at]; chain != nil {
			in = chain
		}
		if name, _ := f.target(e); in == nil || name == "ERROR" {
			return
		}
		key := chainKey(table, in.Name)
		w.rules[key] = append(w.rules[key], &nftables.Rule{Exprs: f.exprs(e, at, starts)})
	})
	return chains, w
}

// each goes through the entries, with their offsets.
func (f *legacyFamily) each(entries []byte, do func(at uint32, e []byte)) {
	for at := 0; at+f.head+extensionHead <= len(entries); {
		next := int(binary.NativeEndian.Uint16(entries[at+f.offsets+2:]))
		if next < f.head+extensionHead || at+next > len(entries) {
			return
		}
		do(uint32(at), entries[at:at+next])
		at += next
	}
}

// target is the entry's, by name, and its data.
func (f *legacyFamily) target(e []byte) (name string, data []byte) {
	at := int(binary.NativeEndian.Uint16(e[f.offsets:]))
	if at < f.head || at+extensionHead > len(e) {
		return "?", nil
	}
	return text(e[at+2 : at+31]), e[at+extensionHead:]
}

// text is what stands before the first NUL.
func text(b []byte) string {
	before, _, _ := bytes.Cut(b, []byte{0})
	return string(before)
}

// exprs are an entry's conditions and verdict.
func (f *legacyFamily) exprs(e []byte, at uint32, starts map[uint32]*nftables.Chain) []expr.Any {
	var out []expr.Any
	flags, invert := e[f.flags], e[f.invert]
	compare := func(load expr.Any, mask, data []byte, inverted bool) {
		out = append(out, load)
		if mask != nil {
			out = append(out, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))})
		}
		op := expr.CmpOpEq
		if inverted {
			op = expr.CmpOpNeq
		}
		out = append(out, &expr.Cmp{Op: op, Register: 1, Data: data})
	}
	for i, offset := range []uint32{f.address.source, f.address.destination} {
		if mask := e[(2+i)*f.size : (3+i)*f.size]; !isZero(mask) {
			load := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.address.length}
			compare(load, mask, e[i*f.size:(i+1)*f.size], invert&[]byte{invertSource, invertDestination}[i] != 0)
		}
	}
	for i, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		name, mask := e[f.devices+i*unix.IFNAMSIZ:][:unix.IFNAMSIZ], e[f.devices+(2+i)*unix.IFNAMSIZ:][:unix.IFNAMSIZ]
		if n := bytes.IndexByte(append(bytes.Clone(mask), 0), 0); n > 0 {
			if name[n-1] == 0 {
				n = len(name) // no wildcard: nothing may follow
			}
			compare(&expr.Meta{Key: key, Register: 1}, nil, name[:n], invert&[]byte{invertIn, invertOut}[i] != 0)
		}
	}
	if protocol := binary.NativeEndian.Uint16(e[f.protocol:]); protocol != 0 && flags&f.asks == f.asks {
		compare(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, nil, []byte{byte(protocol)}, invert&invertProtocol != 0)
	}
	if flags&f.unsure != 0 {
		out = append(out, &expr.Limit{}) // whether it matches cannot be told
	}
	end := min(int(binary.NativeEndian.Uint16(e[f.offsets:])), len(e))
	for m := f.head; m+extensionHead <= end; {
		size := int(binary.NativeEndian.Uint16(e[m:]))
		if size < extensionHead || m+size > end {
			break
		}
		match := &expr.Match{Name: text(e[m+2 : m+31]), Rev: uint32(e[m+31])}
		match.Info, _ = xt.Unmarshal(match.Name, xt.TableFamily(f.family), match.Rev, e[m+extensionHead:m+size])
		out = append(out, match)
		m += size
	}
	return append(out, f.verdict(e, at, starts)...)
}

// verdict is the target in nftables' terms. One of the kernel's own has an empty name; what it says is negative and one
// less than minus the verdict's number (-5: return), or the offset of the entry to go on with.
func (f *legacyFamily) verdict(e []byte, at uint32, starts map[uint32]*nftables.Chain) []expr.Any {
	name, data := f.target(e)
	if name != "" || len(data) < 4 {
		return []expr.Any{&expr.Target{Name: name}}
	}
	verdict := &expr.Verdict{Kind: expr.VerdictQueue}
	switch n := int32(binary.NativeEndian.Uint32(data)); {
	case n == -1:
		verdict.Kind = expr.VerdictDrop
	case n == -2:
		verdict.Kind = expr.VerdictAccept
	case n == -5:
		verdict.Kind = expr.VerdictReturn
	case n < 0:
	case uint32(n) == at+uint32(len(e)):
		return nil // a rule that only counts
	case starts[uint32(n)] != nil:
		verdict.Kind, verdict.Chain = expr.VerdictJump, starts[uint32(n)].Name
		if e[f.flags]&f.leap != 0 {
			verdict.Kind = expr.VerdictGoto
		}
	}
	return []expr.Any{verdict}
}

func isZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }
