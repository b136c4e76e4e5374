package filter

import "slices"

// noRelation is an arithmetic expression without a comparison behind it.
type noRelation struct{ why *Error }

func (n *noRelation) Error() string { return n.why.Error() }

// names are constants of the language (pcap-filter(7)).
var names = map[string]uint32{
	"icmptype": 0, "icmpcode": 1, "icmp6type": 0, "icmp6code": 1, "tcpflags": 13,

	"icmp-echoreply": 0, "icmp-unreach": 3, "icmp-sourcequench": 4, "icmp-redirect": 5, "icmp-echo": 8, "icmp-routeradvert": 9,
	"icmp-routersolicit": 10, "icmp-timxceed": 11, "icmp-paramprob": 12, "icmp-tstamp": 13, "icmp-tstampreply": 14, "icmp-ireq": 15,
	"icmp-ireqreply": 16, "icmp-maskreq": 17, "icmp-maskreply": 18,

	"icmp6-destinationrunreach": 1, "icmp6-packettoobig": 2, "icmp6-timeexceeded": 3, "icmp6-parameterproblem": 4, "icmp6-echo": 128,
	"icmp6-echoreply": 129, "icmp6-multicastlistenerquery": 130, "icmp6-multicastlistenerreportv1": 131, "icmp6-multicastlistenerdone": 132,
	"icmp6-routersolicit": 133, "icmp6-routeradvert": 134, "icmp6-neighborsolicit": 135, "icmp6-neighboradvert": 136, "icmp6-redirect": 137,
	"icmp6-routerrenum": 138, "icmp6-nodeinformationquery": 139, "icmp6-nodeinformationresponse": 140, "icmp6-ineighbordiscoverysolicit": 141,
	"icmp6-ineighbordiscoveryadvert": 142, "icmp6-multicastlistenerreportv2": 143, "icmp6-homeagentdiscoveryrequest": 144,
	"icmp6-homeagentdiscoveryreply": 145, "icmp6-mobileprefixsolicit": 146, "icmp6-mobileprefixadvert": 147, "icmp6-certpathsolicit": 148,
	"icmp6-certpathadvert": 149, "icmp6-multicastrouteradvert": 151, "icmp6-multicastroutersolicit": 152, "icmp6-multicastrouterterm": 153,

	"tcp-fin": 1, "tcp-syn": 2, "tcp-rst": 4, "tcp-push": 8, "tcp-ack": 16, "tcp-urg": 32, "tcp-ece": 64, "tcp-cwr": 128,
}

// arithmetical reports whether what follows may be a relation.
func (p *parser) arithmetical() bool {
	word := p.peek()
	if word == "" {
		return false
	}
	if _, ok := names[word]; ok || word == "(" || word == "len" || word == "-" || word[0] >= '0' && word[0] <= '9' {
		return !p.tokens[p.next].addr.IsValid()
	}
	return p.next+1 < len(p.tokens) && p.tokens[p.next+1].text == "["
}

// relation is two numbers compared. What is behind is true only of packets that all of it can be read from.
func (p *parser) relation() (test, error) {
	var needs []test
	a, err := p.sum(0, &needs)
	if err != nil {
		return nil, err
	}
	op, ok := p.take("=", "!=", "<", "<=", ">", ">=")
	if !ok {
		return nil, &noRelation{p.wrong("want a comparison")}
	}
	b, err := p.sum(0, &needs)
	if err != nil {
		return nil, err
	}
	t := compare(op, a, b)
	for _, need := range slices.Backward(needs) {
		t = and(need, t)
	}
	return t, nil
}

func compare(op string, a, b number) test {
	holds := map[string]func(x, y uint32) bool{
		"=": func(x, y uint32) bool { return x == y }, "!=": func(x, y uint32) bool { return x != y },
		"<": func(x, y uint32) bool { return x < y }, "<=": func(x, y uint32) bool { return x <= y },
		">": func(x, y uint32) bool { return x > y }, ">=": func(x, y uint32) bool { return x >= y },
	}[op]
	return func(v *Packet) bool {
		x := a(v)
		if v.bad {
			return false
		}
		y := b(v)
		return !v.bad && holds(x, y)
	}
}

// levels are the operators, those that bind least first (grammar.y of libpcap).
var levels = [][]string{{"|", "^"}, {"&"}, {"<<", ">>"}, {"+", "-"}, {"*", "/", "%"}}

// sum is operators of a level and above, from the left. needs is what has to be true of a packet that it can be read from.
func (p *parser) sum(level int, needs *[]test) (number, error) {
	if level == len(levels) {
		return p.operand(needs)
	}
	a, err := p.sum(level+1, needs)
	for err == nil {
		op, ok := p.take(levels[level]...)
		if !ok {
			return a, nil
		}
		var b number
		if b, err = p.sum(level+1, needs); err == nil {
			a = operate(op, a, b)
		}
	}
	return nil, err
}

func operate(op string, a, b number) number {
	do := map[string]func(x, y uint32) uint32{
		"|": func(x, y uint32) uint32 { return x | y }, "^": func(x, y uint32) uint32 { return x ^ y },
		"&": func(x, y uint32) uint32 { return x & y }, "<<": func(x, y uint32) uint32 { return x << y },
		">>": func(x, y uint32) uint32 { return x >> y }, "+": func(x, y uint32) uint32 { return x + y },
		"-": func(x, y uint32) uint32 { return x - y }, "*": func(x, y uint32) uint32 { return x * y },
	}[op]
	return func(v *Packet) uint32 {
		x := a(v)
		if v.bad {
			return 0
		}
		y := b(v)
		switch {
		case v.bad:
			return 0
		case do != nil:
			return do(x, y)
		case y == 0: // as in BPF, the packet does not match
			v.bad = true
			return 0
		case op == "/":
			return x / y
		}
		return x % y
	}
}

func (p *parser) operand(needs *[]test) (number, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, p.wrong("nested too deeply")
	}
	defer func() { p.depth-- }()
	if _, ok := p.take("("); ok {
		a, err := p.sum(0, needs)
		if err == nil {
			if _, ok := p.take(")"); !ok {
				err = &noRelation{p.wrong("want \")\"")}
			}
		}
		return a, err
	}
	if _, ok := p.take("-"); ok {
		a, err := p.operand(needs)
		if err != nil {
			return nil, err
		}
		return func(v *Packet) uint32 { return -a(v) }, nil
	}
	word := p.peek()
	if n, ok := parseNumber(word); ok {
		p.next++
		return constant(n), nil
	}
	if n, ok := names[word]; ok {
		p.next++
		return constant(n), nil
	}
	if _, ok := p.take("len"); ok {
		return func(v *Packet) uint32 { return uint32(v.Length) }, nil
	}
	if p.next+1 < len(p.tokens) && p.tokens[p.next+1].text == "[" {
		return p.access(needs)
	}
	return nil, &noRelation{p.wrong("want a number, such as 10, tcp[13] or len")}
}

// access is bytes of a packet: tcp[13], ip[2:2].
func (p *parser) access(needs *[]test) (number, error) {
	name := p.peek()
	where, err := p.header(name, needs)
	if err != nil {
		return nil, err
	}
	p.next += 2
	begin := p.next
	index, err := p.sum(0, needs)
	if err != nil {
		return nil, err
	}
	p.reaches(begin)
	size := 1
	if _, ok := p.take(":"); ok {
		n, ok := parseNumber(p.peek())
		if !ok || n != 1 && n != 2 && n != 4 {
			return nil, p.wrong("want how many bytes: 1, 2 or 4")
		}
		p.next++
		size = int(n)
	}
	if _, ok := p.take("]"); !ok {
		return nil, p.wrong("want \"]\"")
	}
	l := p.layer
	return func(v *Packet) uint32 {
		at := index(v)
		if v.bad {
			return 0
		}
		b := l.of(v)
		if v.bad {
			return 0
		}
		from := where(v, b)
		if v.bad || uint64(from)+uint64(at) > uint64(len(b)) {
			v.bad = true
			return 0
		}
		return load(v, b, from+at, size)
	}, nil
}

// reaches takes note of how far the index that began there can lead: one that is a plain number not far.
func (p *parser) reaches(begin int) {
	const anywhere = 1 << 16
	reach := anywhere
	if p.next == begin+1 {
		word := p.tokens[begin].text
		if n, ok := parseNumber(word); ok && n < anywhere {
			reach = maxHeaders + int(n) + 4
		} else if _, ok := names[word]; ok {
			reach = maxHeaders + 20
		}
	}
	p.reach = max(p.reach, min(reach, anywhere))
}

// header is where the header of a name begins, and adds what makes a packet have one.
func (p *parser) header(name string, needs *[]test) (func(v *Packet, b []byte) uint32, error) {
	l := p.layer
	begin := func(*Packet, []byte) uint32 { return 0 }
	switch name {
	case "ip":
		*needs = append(*needs, l.is(4))
		return begin, nil
	case "ip6":
		*needs = append(*needs, l.is(6))
		return begin, nil
	case "icmp6":
		*needs = append(*needs, l.proto(protoICMP6, false, true))
		return func(*Packet, []byte) uint32 { return ip6Len }, nil
	case "tcp", "udp", "icmp", "sctp", "igmp", "pim", "vrrp":
		// Of IPv4 alone, as in tcpdump.
		*needs = append(*needs, l.proto(protocols[name].number, true, false), func(v *Packet) bool { return first(v, l.of(v)) && !v.bad })
		return func(v *Packet, b []byte) uint32 { return 4 * (load(v, b, 0, 1) & 0xf) }, nil
	}
	if why := foreign[name]; why != "" {
		return nil, p.wrong("%s", why)
	}
	return nil, p.wrong("want ip, ip6, tcp, udp, icmp, icmp6 or sctp before \"[\"")
}
