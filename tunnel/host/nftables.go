//go:build linux

package host

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// nfTable is the table that is wholly ours; with several overlays in one host, each has its own: muslin-blue. No overlay's
// name makes nfApart of it, where the rules are that keep them apart.
const (
	nfTable = "muslin"
	nfApart = "muslin_apart"
)

// nfTables keeps the rules in a table of its own, of family ip or ip6: the inet family has NAT only since 5.2.
//
// An accept there ends the evaluation of our chain only. A drop in another table's forward chain still
// holds, as nftables has no way to overrule it.
type nfTables struct {
	rules rules
	left  map[string][]uint64 // rule handles by chain, as apply left them
}

func newNFTables(r rules) *nfTables { return &nfTables{rules: r} }

func (t *nfTables) needs() Needs { return Needs{} }

func (t *nfTables) ofIPv6() bool { return t.rules.six }

// Where a header has its addresses, and their length, in bytes.
type addressField struct{ source, destination, length uint32 }

var (
	fields4 = addressField{12, 16, 4} // RFC 791, 3.1
	fields6 = addressField{8, 24, 16} // RFC 8200, 3
)

func (t *nfTables) fields() addressField {
	if t.rules.six {
		return fields6
	}
	return fields4
}

func (t *nfTables) table() *nftables.Table {
	return &nftables.Table{Name: t.rules.table(), Family: t.family()}
}

func (r rules) table() string {
	switch {
	case r.apart:
		return nfApart
	case r.name == "":
		return nfTable
	}
	return nfTable + "-" + r.name
}

// nfChains are the names of both chains: in a table of our own they need no overlay's.
func (r rules) nfChains() (forward, postrouting string) {
	if r.apart {
		return apartChain, postroutingChain
	}
	return forwardChain, postroutingChain
}

func (t *nfTables) family() nftables.TableFamily {
	if t.rules.six {
		return nftables.TableFamilyIPv6
	}
	return nftables.TableFamilyIPv4
}

// name is the table's for nft(8).
func (t *nfTables) name() string {
	if t.rules.six {
		return "ip6 " + t.rules.table()
	}
	return "ip " + t.rules.table()
}

// apply replaces the table in one transaction, so no packet sees half of it.
func (t *nfTables) apply() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := t.table()
	conn.AddTable(table)
	conn.DelTable(table)
	conn.AddTable(table)
	add := func(chain *nftables.Chain, list []rule) {
		if len(list) == 0 {
			return
		}
		policy := nftables.ChainPolicyAccept
		chain.Table, chain.Policy = table, &policy
		conn.AddChain(chain)
		for _, r := range list {
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: t.exprs(r)})
		}
	}
	forward, postrouting := t.rules.nfChains()
	add(&nftables.Chain{
		Name: forward, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	}, t.rules.forward)
	add(&nftables.Chain{
		Name: postrouting, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	}, t.rules.postrouting)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("put in nftables table %s: %w", t.name(), err)
	}
	t.left, err = t.handles(conn)
	return err
}

func (t *nfTables) exprs(r rule) []expr.Any {
	var out []expr.Any
	if r.marked {
		mark := binary.NativeEndian.AppendUint32(nil, exemptMark)
		out = append(out,
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mark, Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mark})
	}
	f := t.fields()
	out = append(out, prefixExprs(f.source, f.length, r.src)...)
	out = append(out, prefixExprs(f.destination, f.length, r.dst)...)
	out = append(out, &expr.Counter{})
	switch r.do {
	case accept:
		out = append(out, &expr.Verdict{Kind: expr.VerdictAccept})
	case leave:
		out = append(out, &expr.Verdict{Kind: expr.VerdictReturn})
	case drop:
		out = append(out, &expr.Verdict{Kind: expr.VerdictDrop})
	case masquerade:
		out = append(out, &expr.Masq{FullyRandom: t.rules.randomFully})
	}
	return out
}

func prefixExprs(offset, length uint32, m match) []expr.Any {
	if !m.prefix.IsValid() {
		return nil
	}
	op := expr.CmpOpEq
	if m.not {
		op = expr.CmpOpNeq
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: net.CIDRMask(m.prefix.Bits(), int(length)*8), Xor: make([]byte, length)},
		&expr.Cmp{Op: op, Register: 1, Data: m.prefix.Masked().Addr().AsSlice()},
	}
}

// handles lists the rules' numbers, which are unique within a table and change when a rule is replaced.
func (t *nfTables) handles(conn *nftables.Conn) (map[string][]uint64, error) {
	out := make(map[string][]uint64)
	forward, postrouting := t.rules.nfChains()
	for name, list := range map[string][]rule{forward: t.rules.forward, postrouting: t.rules.postrouting} {
		if len(list) == 0 {
			continue
		}
		now, err := conn.GetRules(t.table(), &nftables.Chain{Name: name})
		if err != nil {
			return nil, fmt.Errorf("list nftables chain %s: %w", name, err)
		}
		for _, r := range now {
			out[name] = append(out[name], r.Handle)
		}
	}
	return out, nil
}

func (t *nfTables) present(conn *nftables.Conn) (bool, error) {
	tables, err := conn.ListTablesOfFamily(t.family())
	if err != nil {
		return false, fmt.Errorf("list nftables tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(x *nftables.Table) bool { return x.Name == t.rules.table() }), nil
}

func (t *nfTables) intact() (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	if ok, err := t.present(conn); err != nil || !ok {
		return false, err
	}
	now, err := t.handles(conn)
	if err != nil {
		// Somebody deleted a chain, or the table since we looked.
		return false, nil
	}
	for name, want := range t.left {
		if !slices.Equal(now[name], want) {
			return false, nil
		}
	}
	return true, nil
}

func (t *nfTables) remove() (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	if ok, err := t.present(conn); err != nil || !ok {
		return false, err
	}
	conn.DelTable(t.table())
	if err := conn.Flush(); err != nil {
		return false, fmt.Errorf("delete nftables table %s: %w; try `nft delete table %s`", t.name(), err, t.name())
	}
	return true, nil
}
