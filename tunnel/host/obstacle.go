//go:build linux

package host

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// An accept ends one base chain's evaluation, a drop or reject a packet's life: what another owner's chain on the
// same hook drops, no rule of ours brings through. Such chains are found by reading the ruleset as the kernel would,
// with a packet of which only what matters here is known (specimen.go), and named. Nothing is changed.
//
// What is found is certain: where a rule asks for what is not known of the packet, both answers are followed, and a
// chain that might let it pass is not named. What iptables-legacy has is not in nftables and is read apart (legacy.go).

// obstacle is a base chain of another owner that drops what the overlay has to get through.
type obstacle struct {
	table  *nftables.Table
	legacy bool         // the table is iptables-legacy's
	docker bool         // it asks the chain DOCKER-USER before all else
	chain  string       // the base chain
	at     string       // the chain in which the verdict fell
	reject bool         // with an answer to the sender
	input  bool         // the datagrams of the underlay; else what is forwarded
	six    bool         // packets of IPv6
	what   string       // the packets, where they are forwarded
	peer   netip.Prefix // only what goes to or comes from that one; invalid: all
}

// direction is the place and the packets, without the peer.
func (o *obstacle) direction() string {
	return fmt.Sprint(o.legacy, " ", chainKey(o.table, o.chain), " ", o.input, o.six, " ", o.what)
}

// obstacles are those of this moment; and those for single peers, where there are none for all.
func (c SetupConfig) obstacles(peers ...netip.Prefix) ([]obstacle, error) {
	chains, w, err := readNFTables()
	if err != nil && !isWithoutNFTables(err) { // which has no obstacles there
		return nil, err
	}
	var found []obstacle
	if w != nil {
		defer w.conn.CloseLasting()
		if found, err = c.among(chains, w, peers); err != nil {
			return nil, err
		}
	}
	for _, h := range c.halves() {
		more, err := c.legacyObstacles(h.network.Addr().Is6(), peers)
		if err != nil {
			return nil, err
		}
		found = append(found, more...)
	}
	return found, nil
}

func (c SetupConfig) legacyObstacles(six bool, peers []netip.Prefix) ([]obstacle, error) {
	tables, err := legacyTables(six)
	if err != nil {
		return nil, nil // no ip_tables in this kernel; or it is not ours to see
	}
	var found []obstacle
	for _, name := range tables {
		if name == "nat" {
			continue // no place to drop
		}
		chains, w, err := readLegacy(six, name)
		if err != nil {
			return nil, err
		}
		more, err := c.among(chains, w, peers)
		if err != nil {
			return nil, err
		}
		found = append(found, more...)
	}
	return found, nil
}

// isWithoutNFTables reports whether a kernel has no nf_tables: EPROTONOSUPPORT where it has no nfnetlink either, and
// else what that says of a subsystem that nobody has registered (net/netfilter/nfnetlink.c), EINVAL to a question and
// EOPNOTSUPP to a batch.
func isWithoutNFTables(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)
}

func readNFTables() ([]*nftables.Chain, *walk, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, nil, fmt.Errorf("open nftables: %w", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		conn.CloseLasting()
		return nil, nil, fmt.Errorf("list nftables chains: %w", err)
	}
	return chains, &walk{conn: conn, rules: make(map[string][]*nftables.Rule), sets: make(map[string][]nftables.SetElement)}, nil
}

// among are the obstacles among some chains, which the walk can read.
func (c SetupConfig) among(chains []*nftables.Chain, w *walk, peers []netip.Prefix) ([]obstacle, error) {
	forward, input := c.specimens()
	found, err := amongFor(chains, w, forward, input)
	if err != nil {
		return nil, err
	}
	said := make(map[string]bool)
	for i := range found {
		said[found[i].direction()] = true
	}
	for _, peer := range peers {
		one := c
		one.Network, one.Network6 = netip.Prefix{}, netip.Prefix{}
		if peer.Addr().Is4() {
			one.Network = peer
		} else {
			one.Network6 = peer
		}
		forward, _ := one.specimens()
		more, err := amongFor(chains, w, forward, nil)
		if err != nil {
			return nil, err
		}
		for _, o := range more {
			if !said[o.direction()] {
				o.peer = peer
				found = append(found, o)
			}
		}
	}
	return found, nil
}

func amongFor(chains []*nftables.Chain, w *walk, forward, input []specimen) ([]obstacle, error) {
	var found []obstacle
	for _, chain := range chains {
		if chain.Hooknum == nil || chain.Type != nftables.ChainTypeFilter {
			continue
		}
		for _, s := range passing(chain, forward, input) {
			if !s.meets(chain.Table.Family) {
				continue
			}
			o, drops, err := w.base(chain, &s)
			if err == nil && !drops && !s.outer {
				s = s.ofTCP()
				o, drops, err = w.base(chain, &s)
			}
			if err != nil {
				return nil, err
			}
			if !drops {
				continue
			}
			o.input, o.six, o.what = s.outer, s.six, s.what
			o.legacy = w.conn == nil
			o.docker = w.leadsTo(chain, dockerUser)
			found = append(found, o)
		}
	}
	return found, nil
}

// passing are the packets that a base chain sees, as it sees them.
func passing(chain *nftables.Chain, forward, input []specimen) []specimen {
	switch *chain.Hooknum {
	case *nftables.ChainHookForward:
		return forward
	case *nftables.ChainHookInput:
		return input
	case *nftables.ChainHookPrerouting:
		early := chain.Table.Name == "raw"
		if chain.Priority != nil {
			early = *chain.Priority <= *nftables.ChainPriorityConntrack
		}
		return arriving(slices.Concat(forward, input), early)
	case *nftables.ChainHookPostrouting:
		return leaving(forward)
	}
	return nil
}

// meets reports whether a table's chains see the packet.
func (s *specimen) meets(family nftables.TableFamily) bool {
	switch family {
	case nftables.TableFamilyINet:
		return true
	case nftables.TableFamilyIPv4:
		return !s.six
	case nftables.TableFamilyIPv6:
		return s.six
	}
	return false
}

// walk reads each chain and set once.
type walk struct {
	conn  *nftables.Conn // nil: all rules are there
	rules map[string][]*nftables.Rule
	sets  map[string][]nftables.SetElement
}

// ways is what may become of a packet in a chain.
type ways int

const (
	accepted ways = 1 << iota
	dropped
	through // it comes out at the end, or returns
)

// maxDepth is the kernel's limit on jumps (NFT_JUMP_STACK_SIZE).
const maxDepth = 16

// base reports whether a base chain drops the packet for certain.
func (w *walk) base(chain *nftables.Chain, s *specimen) (obstacle, bool, error) {
	o := obstacle{table: chain.Table, chain: chain.Name}
	out, err := w.follow(&o, chain.Name, s, 0)
	if err != nil {
		return o, false, err
	}
	if out&through != 0 && chain.Policy != nil && *chain.Policy == nftables.ChainPolicyDrop {
		out, o.at, o.reject = out&^through|dropped, chain.Name, false
	}
	return o, out == dropped, nil
}

func (w *walk) follow(o *obstacle, chain string, s *specimen, depth int) (ways, error) {
	if depth > maxDepth {
		return accepted, nil
	}
	rules, err := w.list(o.table, chain)
	if err != nil {
		return 0, err
	}
	var out ways
	for _, r := range rules {
		matches, verdict, reject, err := w.ask(o.table, r, s)
		if err != nil {
			return 0, err
		}
		if matches == no || verdict == nil {
			continue
		}
		var then ways
		switch verdict.Kind {
		case expr.VerdictDrop:
			then, o.at, o.reject = dropped, chain, reject
		case expr.VerdictContinue, expr.VerdictBreak:
			continue
		case expr.VerdictReturn:
			then = through
		case expr.VerdictJump, expr.VerdictGoto:
			if then, err = w.follow(o, verdict.Chain, s, depth+1); err != nil {
				return 0, err
			}
			if verdict.Kind == expr.VerdictJump && then&through != 0 {
				out |= then &^ through
				continue
			}
		default: // queued to a program, stolen: it may come back
			then = accepted
		}
		if out |= then; matches == yes {
			return out, nil
		}
	}
	return out | through, nil
}

// leadsTo reports whether a chain, which was read before, begins with a jump to another one.
func (w *walk) leadsTo(chain *nftables.Chain, to string) bool {
	rules := w.rules[chainKey(chain.Table, chain.Name)]
	return len(rules) > 0 && slices.ContainsFunc(rules[0].Exprs, func(e expr.Any) bool {
		v, ok := e.(*expr.Verdict)
		return ok && v.Kind == expr.VerdictJump && v.Chain == to
	})
}

func chainKey(table *nftables.Table, chain string) string {
	return fmt.Sprint(table.Family, " ", table.Name, " ", chain)
}

func (w *walk) list(table *nftables.Table, chain string) ([]*nftables.Rule, error) {
	key := chainKey(table, chain)
	if r, ok := w.rules[key]; ok || w.conn == nil {
		return r, nil
	}
	r, err := w.conn.GetRules(table, &nftables.Chain{Name: chain})
	if err != nil {
		return nil, fmt.Errorf("list nftables chain %s: %w", chain, err)
	}
	w.rules[key] = r
	return r, nil
}

// ask reports whether a rule matches, and its verdict; nil: it has none.
func (w *walk) ask(table *nftables.Table, r *nftables.Rule, s *specimen) (matches tri, verdict *expr.Verdict, reject bool, err error) {
	matches = yes
	registers := make(map[uint32]value)
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Meta:
			if !e.SourceRegister {
				registers[e.Register] = s.meta(e.Key)
			}
		case *expr.Ct:
			if !e.SourceRegister {
				registers[e.Register] = s.conntrack(e.Key)
			}
		case *expr.Payload:
			if e.OperationType == expr.PayloadLoad {
				registers[e.DestRegister] = s.part(e.Base, e.Offset, e.Len)
			}
		case *expr.Bitwise:
			registers[e.DestRegister] = registers[e.SourceRegister].masked(e.Mask, e.Xor)
		case *expr.Cmp:
			matches = matches.and(registers[e.Register].compare(e.Op, e.Data))
		case *expr.Range:
			in := registers[e.Register].within(e.FromData, e.ToData)
			if e.Op == expr.CmpOpNeq {
				in = in.not()
			}
			matches = matches.and(in)
		case *expr.Lookup:
			found, mapped, err := w.lookUp(table, e, registers[e.SourceRegister])
			if err != nil {
				return no, nil, false, err
			}
			matches = matches.and(found)
			if mapped != nil {
				verdict = mapped
			}
		case *expr.Match:
			matches = matches.and(s.xtables(e))
		case *expr.Target:
			switch e.Name {
			case "REJECT":
				verdict, reject = &expr.Verdict{Kind: expr.VerdictDrop}, true
			case "LOG", "NFLOG", "MARK", "CONNMARK", "TCPMSS", "CT", "NOTRACK", "AUDIT", "TRACE", "CLASSIFY":
			default:
				verdict = &expr.Verdict{Kind: expr.VerdictQueue}
			}
		case *expr.Reject:
			verdict, reject = &expr.Verdict{Kind: expr.VerdictDrop}, true
		case *expr.Verdict:
			verdict = e
		case *expr.Queue:
			verdict = &expr.Verdict{Kind: expr.VerdictQueue}
		case *expr.Counter, *expr.Log, *expr.Notrack, *expr.Objref:
		case *expr.Immediate:
			registers[e.Register] = known(e.Data)
		default: // limits and what else decides by more than a packet
			matches = matches.and(maybe)
		}
		if matches == no {
			return no, nil, false, nil
		}
	}
	return matches, verdict, reject, nil
}

// lookUp asks a set or, for a verdict, a map.
func (w *walk) lookUp(table *nftables.Table, e *expr.Lookup, v value) (tri, *expr.Verdict, error) {
	key := fmt.Sprint(table.Family, " ", table.Name, " ", e.SetName)
	elements, ok := w.sets[key]
	if !ok {
		var err error
		if elements, err = w.conn.GetSetElements(&nftables.Set{Table: table, Name: e.SetName}); err != nil {
			return no, nil, fmt.Errorf("list nftables set %s: %w", e.SetName, err)
		}
		w.sets[key] = elements
	}
	found, which := search(elements, v)
	if e.Invert {
		found = found.not()
	}
	switch {
	case !e.IsDestRegSet:
		return found, nil, nil
	case found == no:
		return no, nil, nil
	case found == yes && which != nil && which.VerdictData != nil:
		return yes, which.VerdictData, nil
	}
	return maybe, &expr.Verdict{Kind: expr.VerdictQueue}, nil // any of its verdicts
}

// search looks for a value among the elements of a set. An interval begins at one element and ends before another,
// which stand in no order that can be relied on.
func search(elements []nftables.SetElement, v value) (tri, *nftables.SetElement) {
	answer := no
	intervals := slices.ContainsFunc(elements, func(e nftables.SetElement) bool { return e.IntervalEnd })
	for i := range elements {
		e := &elements[i]
		if e.IntervalEnd {
			continue
		}
		var hit tri
		switch end := intervalEnd(elements, e.Key); {
		case e.KeyEnd != nil: // of a concatenation
			hit = maybe
		case end != nil:
			hit = v.within(e.Key, end).and(v.compare(expr.CmpOpLt, end))
		case intervals: // up to the highest
			hit = v.compare(expr.CmpOpGte, e.Key)
		default:
			hit = v.equals(e.Key)
		}
		if hit == yes {
			return yes, e
		}
		answer = max(answer, hit)
	}
	return answer, nil
}

// intervalEnd is the lowest end above a key; nil: there is none.
func intervalEnd(elements []nftables.SetElement, key []byte) []byte {
	var end []byte
	for _, e := range elements {
		if k := string(e.Key); e.IntervalEnd && k > string(key) && (end == nil || k < string(end)) {
			end = e.Key
		}
	}
	return end
}

// xtables asks a match of iptables over nftables.
func (s *specimen) xtables(m *expr.Match) tri {
	switch info := m.Info.(type) {
	case *xt.ConntrackMtinfo1:
		return conntrackState(info.MatchFlags, info.InvertFlags, uint16(info.StateMask))
	case *xt.ConntrackMtinfo2:
		return conntrackState(info.MatchFlags, info.InvertFlags, info.StateMask)
	case *xt.ConntrackMtinfo3:
		return conntrackState(info.MatchFlags, info.InvertFlags, info.StateMask)
	case *xt.Udp:
		return s.xtPorts(info)
	}
	if m.Name == "comment" {
		return yes
	}
	return maybe
}

func conntrackState(flags, inverted, mask uint16) tri {
	if flags&^uint16(xt.ConntrackStateAlias) != uint16(xt.ConntrackState) {
		return maybe
	}
	answer := no
	if mask&ctStateNew != 0 {
		answer = yes
	}
	if inverted&uint16(xt.ConntrackState) != 0 {
		answer = answer.not()
	}
	return answer
}

func (s *specimen) xtPorts(u *xt.Udp) tri {
	port := func(offset uint32, span [2]uint16, inverted bool) tri {
		bytes := func(n uint16) []byte { return []byte{byte(n >> 8), byte(n)} }
		in := s.part(expr.PayloadBaseTransportHeader, offset, 2).within(bytes(span[0]), bytes(span[1]))
		if inverted {
			return in.not()
		}
		return in
	}
	return port(0, u.SrcPorts, u.InvFlags&xt.UdpInvSrcPorts != 0).and(port(2, u.DstPorts, u.InvFlags&xt.UdpInvDestPorts != 0))
}
