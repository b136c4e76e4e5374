package top

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	"muslin/cmd/muslin/text"
	"muslin/lease"
	"muslin/tunnel"
)

// View implements tea.Model.
func (m *model) View() tea.View {
	v := tea.NewView(strings.Join(m.lines(), "\n"))
	v.AltScreen = true
	v.WindowTitle = "muslin top"
	return v
}

// lines are the screen's, each as wide as it is at most.
func (m *model) lines() []string {
	if m.width <= 0 || m.height <= 0 {
		return nil
	}
	lines := m.header()
	keys := []string{m.footer()}
	if m.height < 8 && !m.typing && !m.help {
		keys = nil
	}
	room := m.height - len(lines) - len(keys)
	body := m.body(room)
	for len(body) < room {
		body = append(body, "")
	}
	lines = append(append(lines, body...), keys...)
	if len(lines) > m.height { // of a very low terminal the top is what is left
		lines = lines[:m.height]
	}
	return lines
}

func (m *model) header() []string {
	p := m.picture
	if p == nil {
		lines := m.trouble()
		if len(lines) == 0 {
			lines = []string{"muslin top: asking the daemon"}
		}
		return lines
	}
	lines := []string{m.titleLine()}
	trouble, warning := m.trouble(), m.warningLine()
	// What is looked at has half of a low terminal at least: where the node is, which does not change, makes room first.
	about := append(nodeLines(p, m.now), trafficLine(p, m.width))
	free := m.height/2 - len(lines) - len(trouble) - len(warning) - 1
	for _, line := range about[max(0, min(len(about), len(about)-free)):] {
		lines = append(lines, cut(clean(line), m.width))
	}
	lines = append(lines, trouble...)
	if free >= 0 {
		lines = append(lines, warning...)
	}
	return append(lines, m.tabs())
}

// warningLine is the worst of the warnings, if there is one.
func (m *model) warningLine() []string {
	all := m.picture.Warnings
	if len(all) == 0 || m.pane == paneNode {
		return nil
	}
	more := ""
	if len(all) > 1 {
		more = fmt.Sprintf(" (+%d)", len(all)-1)
	}
	more += " 5: all"
	return []string{m.styles.odd.apply(cut("WARNING: "+clean(all[0]), m.width-len(more)) + more)}
}

// titleLine has the time on the right, so that one sees that it goes on.
func (m *model) titleLine() string {
	p := m.picture
	left := fmt.Sprintf("muslin %s: %s", p.Version, p.State)
	if p.Since != nil {
		left += " for " + max(0, p.at.Sub(*p.Since)).Round(time.Second).String()
	}
	if m.network != "" {
		left += ", network " + m.network
		if len(m.networks) > 1 {
			left += fmt.Sprintf(" (%d of %d, n: next)", slices.Index(m.networks, m.network)+1, len(m.networks))
		}
	}
	if !m.anew.IsZero() && p.at.Sub(m.anew) < 10*time.Second {
		left += ", another process since " + m.anew.Local().Format(time.TimeOnly)
	}
	right := p.at.Local().Format(time.TimeOnly)
	switch age := m.now.Sub(p.at); {
	case m.paused:
		right = "PAUSED at " + right
	case age > 2*m.interval+time.Second: // it takes long to answer
		right = "of " + right + ", " + short(age) + " ago"
	}
	if wide(left)+1+wide(right) > m.width {
		if left = p.State; m.network != "" {
			left += ", " + m.network
		}
	}
	return m.styles.title.apply(cut(fit(clean(left), m.width-wide(right)-1, false)+" "+right, m.width))
}

func nodeLines(p *picture, now time.Time) []string {
	n := p.Node
	var where []string
	for _, half := range []struct{ address, subnet, network string }{{n.PublicIP, n.Subnet, n.Network}, {n.PublicIPv6, n.Subnet6, n.Network6}} {
		if half.address != "" || half.subnet != "" {
			where = append(where, fmt.Sprintf("%s, subnet %s of %s", text.Dash(half.address), text.Dash(half.subnet), text.Dash(half.network)))
		}
	}
	lines := []string{fmt.Sprintf("%s on %s", text.Dash(strings.Join(where, "; ")), text.Dash(n.Iface))}
	store := strings.TrimSpace(p.Store.Kind + " " + p.HealthWord())
	if p.Store.LastError != "" {
		store += " (" + p.Store.LastError + ")"
	}
	if n.Backend == "" {
		return append(lines, "the network's config is not known yet  store "+store)
	}
	return append(lines, fmt.Sprintf("%s, MTU %d  lease %s  store %s", strings.SplitN(n.DescribeBackend(), " MAC ", 2)[0], n.MTU, n.DescribeLease(now), store))
}

// trafficLine is shorter where it would not fit.
func trafficLine(p *picture, cells int) string {
	peers := fmt.Sprintf("%d peers", len(p.peers))
	if len(p.peers) == 1 {
		peers = "1 peer"
	}
	if p.down > 0 {
		peers += fmt.Sprintf(", %d DOWN", p.down)
	}
	if p.direct > 0 {
		peers += fmt.Sprintf(", %d direct", p.direct)
	}
	if p.over == 0 {
		return peers + "  rates with the next look"
	}
	if p.direct > 0 && p.direct == len(p.peers) && p.total == (traffic{}) {
		return fmt.Sprintf("%s  what goes directly is not counted  dropped %s/s", peers, si(p.dropRate))
	}
	line := ""
	for _, words := range []string{"%s  sent %s pkt/s %s  received %s pkt/s %s  dropped %s/s", "%s  TX %s p/s %s  RX %s p/s %s  dropped %s/s"} {
		line = fmt.Sprintf(words, peers, si(p.total.txPackets), bitText(p.total.txBytes), si(p.total.rxPackets), bitText(p.total.rxBytes), si(p.dropRate))
		if wide(line) <= cells {
			break
		}
	}
	return line
}

// trouble says that nobody answers, and of when the rest is.
func (m *model) trouble() []string {
	if m.err == nil {
		return nil
	}
	says := fmt.Sprintf("NO ANSWER since %s: %s", m.failed.Local().Format(time.TimeOnly), clean(m.noAnswer()))
	if m.picture != nil {
		says += ". What stands here is of " + m.picture.at.Local().Format(time.TimeOnly) + "."
	}
	says += fmt.Sprintf(" Asked again each %v.", m.interval)
	var lines []string
	for _, line := range wrap(says, m.width) {
		lines = append(lines, m.styles.bad.apply(cut(line, m.width)))
	}
	return lines
}

func (m *model) tabs() string {
	var b strings.Builder
	cells := 0
	for i, name := range paneNames {
		tab := fmt.Sprintf(" %d %s ", i+1, name)
		if cells+len(tab) > m.width {
			break
		}
		cells += len(tab)
		if pane(i) == m.pane {
			tab = m.styles.tab.apply(tab)
		}
		b.WriteString(tab)
	}
	if note := m.filterNote(); note != "" {
		b.WriteString(" " + cut(note, m.width-cells-1))
	}
	return b.String()
}

func (m *model) filterNote() string {
	if m.filters[m.pane] == "" && !m.typing {
		return ""
	}
	note := "/" + clean(m.filters[m.pane])
	if m.typing {
		note += "_"
	}
	if t := m.tables[m.pane]; t != nil {
		note += fmt.Sprintf("  %d of %d", len(t.order), t.rows())
	}
	return note
}

func (m *model) body(room int) []string {
	if room <= 0 {
		return nil
	}
	switch t := m.tables[m.pane]; {
	case m.help:
		return m.window(m.helpLines(), room)
	case m.picture == nil:
		return nil
	case m.detail != nil:
		return m.window(m.detail(), room)
	case t == nil:
		return m.window(m.nodeText(), room)
	case len(t.order) == 0:
		return []string{m.nothing()}
	default:
		return t.lines(m.width, room, m.styles)
	}
}

// nothing is what stands in place of no rows.
func (m *model) nothing() string {
	switch {
	case m.filters[m.pane] != "" && m.tables[m.pane].rows() > 0:
		return cut(fmt.Sprintf("nothing has %q in it; esc: all", clean(m.filters[m.pane])), m.width)
	case m.pane == paneDrops:
		return "nothing was dropped"
	case m.pane == paneQueues:
		return cut("none: the kernel carries the packets, or the daemon does not tell (an older version)", m.width)
	}
	return "none"
}

// window is the part of a text that there is room for.
func (m *model) window(lines []string, room int) []string {
	m.scroll = max(0, min(m.scroll, len(lines)-room))
	return lines[m.scroll:min(m.scroll+room, len(lines))]
}

func (m *model) footer() string {
	keys := "q quit  ? help  / filter  p pause  left/right sort by  r reverse  enter details"
	switch {
	case m.help:
		keys = "up/down scroll  any other key: back"
	case m.typing:
		keys = "type what rows must have in them  enter: keep it  esc: all rows"
	case m.detail != nil:
		keys = "esc back  q quit"
	case m.pane == paneNode:
		keys = "q quit  ? help  p pause  up/down scroll"
	}
	return m.styles.faint.apply(cut(keys, m.width))
}

func (m *model) helpLines() []string {
	var lines []string
	for _, key := range [][2]string{
		{"1 to 5, tab", "peers, drops, queues, features, node"},
		{"up down, k j", "a row up or down; pgup pgdn a page, g G the first or last"},
		{"left right, < >", "sort by the column before or after; r the other way round"},
		{"enter", "all about the peer, the drops or the feature; esc: back"},
		{"/", "show only rows with what you type in them: words in any order; an address finds the peer that holds it; esc: all"},
		{"p, space", "pause, and go on"},
		{"n", "the next network, where a process has several"},
		{"ctrl-z", "suspend"},
		{"q, ctrl-c", "quit"},
	} {
		lines = append(lines, m.field(key[0], key[1])...)
	}
	for _, paragraph := range []string{
		`Rates are of one interval, of inner IP packets: b/s bits, p/s packets in a second. TX is sent to the peer, RX received. RTT and LOSS are of echo requests through the overlay, in the last minute; "-" is not known. What goes directly is not counted.`,
		"Queues: a batch is what a worker reads in one go, PER BATCH how many pieces were in it. A piece is what the kernel hands over or takes in one: PKT/READ and PKT/WRITE are the packets in each; p99: as many at most in 99 of 100. SUPER are superpackets of the TUN device, JOINED datagrams of the socket that went in one piece.",
	} {
		lines = append(append(lines, ""), wrap(paragraph, m.width)...)
	}
	return lines
}

// field is a line of a text: a name, and what it says, on lines of its own where it is long.
func (m *model) field(name, says string) []string {
	const names = 16
	var lines []string
	for i, line := range wrap(clean(says), m.width-names) {
		if i > 0 {
			name = ""
		}
		lines = append(lines, cut(fit(name, names, false)+line, m.width))
	}
	return lines
}

// details are what there is to say of a row, in the picture of when it is drawn; nil: nothing but what the row says.
func (m *model) details(row int) func() []string {
	switch m.pane {
	case panePeers:
		p := m.picture.peers[row].PeerStatus
		m.detailed = p.Subnet
		return func() []string { return m.peerDetails(p.Subnet, p.PublicIP) }
	case paneDrops:
		reason := m.picture.drops[row].reason
		return func() []string {
			lines := append(m.field("reason", reason), m.field("meaning", tunnel.ExplainDrop(reason))...)
			if i := slices.IndexFunc(m.picture.drops, func(d drop) bool { return d.reason == reason }); i >= 0 {
				d := m.picture.drops[i]
				lines = append(lines, m.field("packets", fmt.Sprintf("%d, now %s/s", d.total, m.picture.rateText(d.rate)))...)
			}
			return lines
		}
	case paneFeatures:
		name := m.picture.Features[row].Name
		return func() []string {
			lines := m.field("feature", name)
			for _, f := range m.picture.Features {
				if f.Name == name {
					lines = append(append(lines, m.field("is", text.OnOff(f.On))...), m.field("why", f.Reason)...)
				}
			}
			return lines
		}
	}
	return nil
}

func (m *model) peerDetails(subnet, publicIP string) []string {
	i := slices.IndexFunc(m.picture.peers, func(p peer) bool { return p.Subnet == subnet && p.PublicIP == publicIP })
	if i < 0 {
		return m.field("peer", subnet+" at "+publicIP+" is a peer no more: its lease is gone")
	}
	row := &m.picture.peers[i]
	p := row.PeerStatus
	var lines []string
	say := func(name, format string, args ...any) {
		lines = append(lines, m.field(name, fmt.Sprintf(format, args...))...)
	}
	say("peer", "%s at %s, %s", p.Subnet, p.PublicIP, p.Backend)
	say("state", "%s", p.DescribeState(m.picture.at))
	if p.DownSince != nil {
		say("down since", "%s", p.DownSince.Local().Format(time.DateTime))
	}
	say("last heard", "%s", text.Ago(m.picture.at, p.LastRx))
	quality := "not known"
	if p.RTT != nil {
		quality = text.Millis(*p.RTT)
	}
	if p.Loss != nil {
		quality += ", " + text.Percent(*p.Loss) + " of echo requests lost"
	}
	say("round trip", "%s", quality)
	rates := func(packets, bytes float64) string {
		if !row.known {
			return ""
		}
		return fmt.Sprintf(", now %s pkt/s %s", si(packets), bitText(bytes))
	}
	say("sent", "%d packets, %s%s", p.TxPackets, text.Bytes(p.TxBytes), rates(row.txPackets, row.txBytes))
	say("received", "%d packets, %s%s", p.RxPackets, text.Bytes(p.RxBytes), rates(row.rxPackets, row.rxBytes))
	say("way", "%s: %s", p.Way, p.WayReason)
	switch {
	case p.PathMTU != 0:
		say("path MTU", "%s", p.ExplainPath())
	case p.PathMTUState != "":
		say("path MTU", "%s", row.pathMTU(m.picture.Node.MTU))
	}
	if p.OtherSubnet != "" {
		other := "not known"
		if p.OtherUp != nil {
			other = map[bool]string{true: "up", false: "DOWN"}[*p.OtherUp]
		}
		say("by "+p.OtherFamily(), "%s, %s", p.OtherSubnet, other)
	}
	if p.VtepMAC != "" {
		say("VtepMAC", "%s", p.VtepMAC)
	}
	if p.PublicKey != "" {
		say("key", "%s", p.PublicKey)
		say("endpoint", "%s", text.Dash(p.Endpoint))
		say("last handshake", "%s", text.Ago(m.picture.at, p.LastHandshake))
	}
	return lines
}

// nodeText is all about the node that is no table.
func (m *model) nodeText() []string {
	p := m.picture
	var lines []string
	say := func(name, format string, args ...any) {
		lines = append(lines, m.field(name, fmt.Sprintf(format, args...))...)
	}
	for _, warning := range p.Warnings {
		for _, line := range m.field("WARNING", warning) {
			lines = append(lines, m.styles.odd.apply(line))
		}
	}
	say("node", "%s", p.Node.DescribeBackend())
	say("TUN device", "%s", text.Dash(strings.Trim(p.Node.TUN+" "+p.Node.TUN6, " ")))
	say("lease", "%s", p.Node.DescribeLease(m.now))
	say("kernel", "%s", p.Kernel)
	say("store", "%s %s, %s, revision %d", p.Store.Kind, strings.Join(p.Store.Endpoints, ","), p.HealthWord(), p.Store.Revision)
	if p.Store.LastError != "" {
		say("", "%s", p.Store.LastError)
	}
	for _, why := range slices.Sorted(maps.Keys(p.Skipped)) {
		say("lease not used", "%d %s: %s", p.Skipped[why], why, lease.ExplainSkip(why))
	}
	say("process", "PID %d since %s, %s of memory, %d goroutines, %d descriptors", p.Process.PID, p.Process.Started.Local().Format(time.DateTime),
		text.Bytes(uint64(p.Process.Resident)), p.Process.Goroutines, p.Process.Descriptors)
	say("user", "%d", p.Privileges.UID)
	return lines
}
