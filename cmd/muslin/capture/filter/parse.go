package filter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// maxLength is the longest expression, bytes; maxDepth how deep its parentheses go.
const (
	maxLength = 4096
	maxDepth  = 100
)

// token is a word, a number, an address, or signs.
type token struct {
	text string
	addr netip.Addr // of IPv6; IPv4's are words
	at   int        // in the expression
}

// parser reads an expression from the left to the right.
type parser struct {
	text   string
	tokens []token
	next   int
	depth  int
	layer  layer     // that the rest of the expression is about
	last   qualifier // which an address or a port without one has
	reach  int       // see Filter.Reach
	hint   *Error    // what came to be wrong when it was read in a way that did not do
}

// qualifier says what an address, a port or a number that follows is.
type qualifier struct {
	proto string // "ip", "tcp", …; empty: any
	dir   direction
	kind  string // "host", "net", "port", "portrange", "proto"; empty: host or net
	set   bool
}

// Error is what is wrong with an expression, and where.
type Error struct {
	Expression string
	At         int // byte
	Problem    string
}

func (e *Error) Error() string {
	rest := e.Expression[min(e.At, len(e.Expression)):]
	if rest == "" {
		return fmt.Sprintf("filter %q: at its end: %s", e.Expression, e.Problem)
	}
	if len(rest) > 30 {
		rest = rest[:30] + "…"
	}
	return fmt.Sprintf("filter %q: at %q: %s", e.Expression, rest, e.Problem)
}

func newParser(text string) (*parser, error) {
	p := &parser{text: text}
	if len(text) > maxLength {
		return nil, fmt.Errorf("filter of %d bytes: %d at most", len(text), maxLength)
	}
	for at := 0; at < len(text); {
		c := text[at]
		if strings.IndexByte(" \t\r\n", c) >= 0 {
			at++
			continue
		}
		t := token{at: at}
		n := 0
		switch {
		case strings.IndexByte(`()[]/:+-*%^`, c) >= 0 && !isAddress6(text[at:]):
			n = 1
		case strings.IndexByte("&|<>=!", c) >= 0:
			n = 1
			if at+1 < len(text) && slices.Contains([]string{"&&", "||", "<<", ">>", "<=", ">=", "==", "!="}, text[at:at+2]) {
				n = 2
			}
		case c == '\\':
			n = 1 + wordLen(text[at+1:])
		default:
			if n = address6Len(text[at:]); n > 0 {
				t.addr, _ = netip.ParseAddr(text[at : at+n])
			} else {
				n = wordLen(text[at:])
			}
		}
		if n == 0 || text[at:at+n] == `\` {
			return nil, &Error{text, at, "no sign of the language"}
		}
		t.text = text[at : at+n]
		if t.text == "==" {
			t.text = "="
		}
		p.tokens = append(p.tokens, t)
		at += n
	}
	return p, nil
}

// wordLen is how long the word is that b begins with. As in tcpdump a hyphen within belongs to it: tcp-syn, 80-90.
func wordLen(b string) int {
	n := 0
	for n < len(b) && (isAlnum(b[n]) || n > 0 && (b[n] == '-' || b[n] == '_' || b[n] == '.')) {
		n++
	}
	for n > 0 && !isAlnum(b[n-1]) {
		n--
	}
	return n
}

func isAlnum(c byte) bool { return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' }

func isAddress6(b string) bool { return address6Len(b) > 0 }

// address6Len is how long the IPv6 address is that b begins with; 0: it does not.
func address6Len(b string) int {
	n := 0
	for n < len(b) && strings.IndexByte("0123456789abcdefABCDEF:.", b[n]) >= 0 {
		n++
	}
	if strings.Count(b[:n], ":") < 2 || n < len(b) && isAlnum(b[n]) {
		return 0
	}
	if a, err := netip.ParseAddr(b[:n]); err != nil || !a.Is6() {
		return 0
	}
	return n
}

func (p *parser) peek() string {
	if p.next < len(p.tokens) {
		return p.tokens[p.next].text
	}
	return ""
}

// take goes on if one of these is next.
func (p *parser) take(any ...string) (string, bool) {
	if s := p.peek(); s != "" && slices.Contains(any, s) {
		p.next++
		return s, true
	}
	return "", false
}

func (p *parser) wrong(format string, args ...any) *Error {
	at := len(p.text)
	if p.next < len(p.tokens) {
		at = p.tokens[p.next].at
	}
	return &Error{p.text, at, fmt.Sprintf(format, args...)}
}

func (p *parser) parse() (test, error) {
	t, err := p.expression()
	if err == nil && p.next < len(p.tokens) {
		err = p.wrong("want \"and\", \"or\", or the end")
	}
	var found *Error
	if errors.As(err, &found) && p.hint != nil && p.hint.At > found.At {
		err = p.hint
	}
	return t, err
}

// expression is terms joined by and or or, which bind alike, from the left.
func (p *parser) expression() (test, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, p.wrong("nested too deeply")
	}
	defer func() { p.depth-- }()
	all, err := p.term()
	for err == nil {
		op, ok := p.take("and", "&&", "or", "||")
		if !ok {
			return all, nil
		}
		var t test
		if t, err = p.term(); err == nil {
			if op == "and" || op == "&&" {
				all = and(all, t)
			} else {
				all = or(all, t)
			}
		}
	}
	return nil, err
}

func (p *parser) term() (test, error) {
	if _, ok := p.take("not", "!"); ok {
		if p.depth++; p.depth > maxDepth {
			return nil, p.wrong("nested too deeply")
		}
		defer func() { p.depth-- }()
		t, err := p.term()
		if err != nil {
			return nil, err
		}
		return not(t), nil
	}
	if !p.arithmetical() {
		return p.plain()
	}
	before := *p
	t, err := p.relation()
	var none *noRelation
	if !errors.As(err, &none) {
		return t, err
	}
	*p = before // a group, or an address or port with the last one's qualifiers
	if p.hint == nil || none.why.At > p.hint.At {
		p.hint = none.why
	}
	return p.plain()
}

// plain is a term that is no relation.
func (p *parser) plain() (test, error) {
	if _, ok := p.take("("); ok {
		t, err := p.expression()
		if err == nil {
			if _, ok := p.take(")"); !ok {
				err = p.wrong("want \")\"")
			}
		}
		return t, err
	}
	return p.primitive()
}

// primitive is what is true or not by itself.
func (p *parser) primitive() (test, error) {
	if t, ok := p.special(); ok {
		return t, nil
	}
	switch word := p.peek(); word {
	case "vxlan":
		return p.vxlan()
	case "less", "greater":
		return p.length()
	}
	q, given, err := p.qualifier()
	if err != nil {
		return nil, err
	}
	if given {
		if q.kind == "" && q.dir == either && !q.set {
			return p.protocol(q.proto)
		}
		if q.kind == "multicast" || q.kind == "broadcast" {
			return p.cast(q)
		}
		p.last = q
		if _, ok := p.take("("); ok {
			return p.group(q)
		}
	} else if p.next < len(p.tokens) && !p.isID() {
		return nil, p.unknown()
	}
	return p.id(p.last)
}

// special is the words that stand alone.
func (p *parser) special() (test, bool) {
	switch word, _ := p.take("inbound", "outbound"); word {
	case "inbound":
		return func(v *Packet) bool { return v.Inbound }, true
	case "outbound":
		return func(v *Packet) bool { return !v.Inbound }, true
	}
	return nil, false
}

// vxlan has the rest of the expression be about what is in the datagram, as geneve in tcpdump.
func (p *parser) vxlan() (test, error) {
	p.next++
	vni := int64(-1)
	if n, ok := parseNumber(p.peek()); ok {
		if n >= 1<<24 {
			return nil, p.wrong("a VNI has 24 bits")
		}
		p.next++
		vni = int64(n)
	}
	if p.layer == inside {
		return nil, p.wrong("a VXLAN datagram within one is not looked into")
	}
	t := p.layer.vxlan(vni)
	p.layer = inside
	return t, nil
}

func (p *parser) length() (test, error) {
	word, _ := p.take("less", "greater")
	n, ok := parseNumber(p.peek())
	if !ok {
		return nil, p.wrong("want a length in bytes")
	}
	p.next++
	if word == "less" {
		return func(v *Packet) bool { return v.Length <= int(n) }, nil
	}
	return func(v *Packet) bool { return v.Length >= int(n) }, nil
}

// protocols that are known by their names alone, and by which IP versions. IPv4's number and IPv6's are the same.
var protocols = map[string]struct {
	number    uint32
	four, six bool
}{
	"icmp": {protoICMP, true, false}, "igmp": {protoIGMP, true, false}, "tcp": {protoTCP, true, true}, "udp": {protoUDP, true, true},
	"esp": {protoESP, true, true}, "ah": {protoAH, true, true}, "icmp6": {protoICMP6, false, true}, "pim": {protoPIM, true, true},
	"vrrp": {protoVRRP, true, false}, "sctp": {protoSCTP, true, true},
}

// foreign are words of the language that say nothing about an IP packet, or that we do not know, and why.
var foreign = map[string]string{
	"ether": "there is no Ethernet header in front of these packets", "link": "there is no link header in front of these packets",
	"vlan": "there is no VLAN tag in front of these packets", "mpls": "there is no MPLS label in front of these packets",
	"wlan": "these packets come from no wireless LAN", "gateway": "these packets have no link addresses", "fddi": "there is no link header in front of these packets",
	"tr": "there is no link header in front of these packets", "ppp": "there is no link header in front of these packets",
	"protochain": "not supported: name the protocol itself (ip6 proto N)", "geneve": "muslin does not speak Geneve: vxlan is its counterpart",
	"pppoed": "there is no link header in front of these packets", "pppoes": "there is no link header in front of these packets",
	"type": "there is no link header in front of these packets", "subtype": "there is no link header in front of these packets",
	"ifname": "not supported", "on": "not supported", "decnet": "not supported", "iso": "not supported", "atalk": "not supported", "llc": "not supported",
}

func (p *parser) unknown() error {
	word := p.peek()
	if why := foreign[word]; why != "" {
		return p.wrong("%s", why)
	}
	if word == "" || !isAlnum(word[0]) {
		return p.wrong("want a condition, such as host 10.244.1.2, tcp port 80 or icmp")
	}
	return p.wrong("not a word of the filter language, nor an address: names of hosts are not looked up")
}

// protocol is a packet of one.
func (p *parser) protocol(name string) (test, error) {
	switch name {
	case "ip":
		return p.layer.is(4), nil
	case "ip6":
		return p.layer.is(6), nil
	case "arp", "rarp":
		return never, nil
	}
	known := protocols[name]
	return p.layer.proto(known.number, known.four, known.six), nil
}

// qualifier is protocol, direction and kind, each of which may be missing.
func (p *parser) qualifier() (q qualifier, given bool, err error) {
	if word := p.peek(); word == "ip" || word == "ip6" || word == "arp" || word == "rarp" || protocols[word].number != 0 {
		q.proto, given = word, true
		p.next++
	}
	if word, ok := p.take("src", "dst"); ok {
		q.dir, given, q.set = source, true, true
		if word == "dst" {
			q.dir = destination
		}
		if other, op := p.peek(), ""; other == "or" || other == "and" || other == "||" || other == "&&" {
			if p.next+1 < len(p.tokens) {
				op = p.tokens[p.next+1].text
			}
			if op == "src" || op == "dst" {
				if op == word {
					return q, true, p.wrong("want the other of src and dst")
				}
				p.next += 2
				q.dir = either
				if other == "and" || other == "&&" {
					q.dir = both
				}
			}
		}
	}
	if word, ok := p.take("host", "net", "port", "portrange", "proto", "multicast", "broadcast"); ok {
		q.kind, given, q.set = word, true, true
	} else if why := foreign[p.peek()]; why != "" {
		return q, true, p.wrong("%s", why)
	}
	return q, given, nil
}

// cast is about where a packet goes.
func (p *parser) cast(q qualifier) (test, error) {
	switch {
	case q.kind == "broadcast":
		return nil, p.wrong("which addresses are broadcast is not known here: give the address (dst host 10.244.1.255)")
	case q.dir != either:
		return nil, p.wrong("%s has no direction", q.kind)
	case q.proto == "ip":
		return and(p.layer.is(4), p.byteOf(ip4Dst, func(b uint32) bool { return b >= 224 })), nil
	case q.proto == "ip6":
		return and(p.layer.is(6), p.byteOf(ip6Dst, func(b uint32) bool { return b == 255 })), nil
	}
	return nil, p.wrong("say ip multicast or ip6 multicast: these packets have no link addresses")
}

func (p *parser) byteOf(at uint32, is func(uint32) bool) test {
	l := p.layer
	return func(v *Packet) bool { n := load(v, l.of(v), at, 1); return !v.bad && is(n) }
}

// group is several of one qualifier: port (80 or 443).
func (p *parser) group(q qualifier) (test, error) {
	item := func() (test, error) {
		negate := false
		for {
			if _, ok := p.take("not", "!"); !ok {
				break
			}
			negate = !negate
		}
		t, err := p.id(q)
		if err == nil && negate {
			t = not(t)
		}
		return t, err
	}
	all, err := item()
	for err == nil {
		op, ok := p.take("and", "&&", "or", "||")
		if !ok {
			break
		}
		var t test
		if t, err = item(); err != nil {
			break
		}
		if op == "and" || op == "&&" {
			all = and(all, t)
		} else {
			all = or(all, t)
		}
	}
	if err != nil {
		return nil, err
	}
	if _, ok := p.take(")"); !ok {
		return nil, p.wrong("want \")\"")
	}
	return all, nil
}

// isID reports whether what follows can be an address, a port or a number.
func (p *parser) isID() bool {
	t := p.tokens[p.next]
	return t.addr.IsValid() || t.text[0] >= '0' && t.text[0] <= '9'
}

// id is the address, port or number behind a qualifier.
func (p *parser) id(q qualifier) (test, error) {
	if p.next >= len(p.tokens) {
		return nil, p.wrong("want an address, a port or a number")
	}
	switch q.kind {
	case "port", "portrange":
		return p.port(q)
	case "proto":
		return p.protoNumber(q)
	case "multicast", "broadcast":
		return nil, p.unknown()
	}
	return p.address(q)
}

// port is a port, or a range of them.
func (p *parser) port(q qualifier) (test, error) {
	over := []uint32{protoTCP, protoUDP, protoSCTP}
	switch q.proto {
	case "":
	case "tcp", "udp", "sctp":
		over = []uint32{protocols[q.proto].number}
	default:
		return nil, p.wrong("ports are of tcp, udp or sctp, not of %s: say %s and port …", q.proto, q.proto)
	}
	word := strings.TrimPrefix(p.peek(), `\`)
	low, high, isRange := strings.Cut(word, "-")
	if q.kind == "port" || !isRange {
		low, high, isRange = word, word, false
	}
	from, fromOver, err := lookUpPort(low, over)
	if err != nil {
		return nil, p.wrong("%s", err)
	}
	to, toOver, err := lookUpPort(high, over)
	if err != nil {
		return nil, p.wrong("%s", err)
	}
	if from > to {
		from, to = to, from
	}
	p.next++
	over = slices.DeleteFunc(slices.Clone(fromOver), func(proto uint32) bool { return !slices.Contains(toOver, proto) })
	return p.layer.ports(q.dir, from, to, over...), nil
}

// lookUpPort is a port by number or name, and over which of the protocols: a name may be known for one only.
func lookUpPort(word string, over []uint32) (uint32, []uint32, error) {
	if n, ok := parseNumber(word); ok {
		if n > 65535 {
			return 0, nil, errors.New("a port is 65535 at most")
		}
		return n, over, nil
	}
	var found uint32
	var known []uint32
	for proto, network := range map[uint32]string{protoTCP: "tcp", protoUDP: "udp"} {
		if n, err := net.LookupPort(network, word); err == nil && slices.Contains(over, proto) && (found == 0 || found == uint32(n)) {
			found, known = uint32(n), append(known, proto)
		}
	}
	switch len(known) {
	case 0:
		return 0, nil, fmt.Errorf("want a port: %q is not in /etc/services", word)
	case 2:
		known = over
	}
	return found, known, nil
}

// protoNumber is ip proto 47, or proto \tcp.
func (p *parser) protoNumber(q qualifier) (test, error) {
	if q.dir != either {
		return nil, p.wrong("proto has no direction")
	}
	word := strings.TrimPrefix(p.peek(), `\`)
	n, ok := parseNumber(word)
	if !ok {
		known, is := protocols[word]
		if n, ok = known.number, is; !is && word == "ipv6-icmp" {
			n, ok = protoICMP6, true
		}
	}
	if !ok || n > 255 {
		return nil, p.wrong("want a protocol: a number up to 255, or \\tcp, \\udp, \\icmp …")
	}
	switch q.proto {
	case "", "ip", "ip6":
	default:
		return nil, p.wrong("say ip proto or ip6 proto")
	}
	p.next++
	return p.layer.proto(n, q.proto != "ip6", q.proto != "ip"), nil
}

// address is a host or a network.
func (p *parser) address(q qualifier) (test, error) {
	switch q.proto {
	case "", "ip", "ip6":
	case "arp", "rarp":
		if _, _, _, err := p.prefix(q); err != nil {
			return nil, err
		}
		return never, nil
	default:
		return nil, p.wrong("an address is of ip or ip6, not of %s: say %s and %s …", q.proto, q.proto, orHost(q.kind))
	}
	addr, mask, bits, err := p.prefix(q)
	if err != nil {
		return nil, err
	}
	if addr.Is4() {
		if q.proto == "ip6" {
			return nil, p.wrong("%s is not an address of IPv6", addr)
		}
		a := addr.As4()
		return p.layer.net4(q.dir, binary.BigEndian.Uint32(a[:]), mask), nil
	}
	if q.proto == "ip" {
		return nil, p.wrong("%s is not an address of IPv4", addr)
	}
	return p.layer.net6(q.dir, addr.As16(), bits), nil
}

func orHost(kind string) string {
	if kind == "" {
		return "host"
	}
	return kind
}

// prefix reads an address with what may be behind it: of IPv4 a mask, of IPv6 a number of bits.
func (p *parser) prefix(q qualifier) (addr netip.Addr, mask uint32, bits int, err error) {
	t := p.tokens[p.next]
	given := 32
	if t.addr.IsValid() {
		addr, given = t.addr, 128
	} else if addr, given, err = parseIPv4(t.text, q.kind == "net"); err != nil {
		return addr, 0, 0, p.unknownOr(t.text, err)
	}
	p.next++
	bits = given
	switch word := p.peek(); {
	case word == "/" && q.kind != "host":
		p.next++
		n, ok := parseNumber(p.peek())
		if !ok || int(n) > addr.BitLen() {
			return addr, 0, 0, p.wrong("want how many bits of the address, %d at most", addr.BitLen())
		}
		p.next++
		bits = int(n)
	case word == "/":
		return addr, 0, 0, p.wrong("a host has no prefix: say net %s/…", addr)
	case word == "mask" && q.kind == "net" && addr.Is4():
		p.next++
		m, _, merr := parseIPv4(p.peek(), false)
		if merr != nil {
			return addr, 0, 0, p.wrong("want a mask such as 255.255.0.0")
		}
		p.next++
		b := m.As4()
		mask = binary.BigEndian.Uint32(b[:])
		return addr, mask, bits, p.noHostBits(addr, mask)
	}
	if addr.Is4() {
		mask = ^uint32(0) << (32 - bits)
		return addr, mask, bits, p.noHostBits(addr, mask)
	}
	if netip.PrefixFrom(addr, bits).Masked().Addr() != addr {
		return addr, 0, 0, p.wrong("%s has bits beyond /%d: say %s", addr, bits, netip.PrefixFrom(addr, bits).Masked())
	}
	return addr, 0, bits, nil
}

func (p *parser) unknownOr(word string, err error) error {
	if word[0] < '0' || word[0] > '9' {
		return p.unknown()
	}
	return p.wrong("%s", err)
}

func (p *parser) noHostBits(addr netip.Addr, mask uint32) error {
	a := addr.As4()
	if n := binary.BigEndian.Uint32(a[:]); n&mask != n {
		binary.BigEndian.PutUint32(a[:], n&mask)
		return p.wrong("%s has bits beyond its mask: say %s", addr, netip.AddrFrom4(a))
	}
	return nil
}

// parseIPv4 reads an address, or with partial also its beginning: 10.2 is 10.2.0.0/16.
func parseIPv4(word string, partial bool) (addr netip.Addr, bits int, err error) {
	fields := strings.Split(word, ".")
	if len(fields) > 4 || len(fields) < 4 && !partial {
		return addr, 0, fmt.Errorf("want an address, such as 10.244.1.2")
	}
	var b [4]byte
	for i, f := range fields {
		n, err := strconv.ParseUint(f, 10, 8)
		if err != nil {
			return addr, 0, fmt.Errorf("want an address, such as 10.244.1.2")
		}
		b[i] = byte(n)
	}
	return netip.AddrFrom4(b), 8 * len(fields), nil
}

// parseNumber reads 10, 0x0a or 012.
func parseNumber(word string) (uint32, bool) {
	if word == "" || word[0] < '0' || word[0] > '9' || strings.Contains(word, "_") || strings.HasPrefix(word, "0b") || strings.HasPrefix(word, "0o") ||
		strings.HasPrefix(word, "0B") || strings.HasPrefix(word, "0O") {
		return 0, false
	}
	n, err := strconv.ParseUint(word, 0, 32)
	return uint32(n), err == nil
}
