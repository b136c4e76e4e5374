package top

import (
	"context"
	"errors"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

	"muslin/cmd/muslin/control"
)

// pane is one of what there is to see.
type pane int

const (
	panePeers pane = iota
	paneDrops
	paneQueues
	paneFeatures
	paneNode
	panes
)

var paneNames = [panes]string{"peers", "drops", "queues", "features", "node"}

// model is what is shown, and what the user has chosen. It is bubbletea's: Update changes it, View draws it.
type model struct {
	ctx      context.Context
	source   Source
	interval time.Duration
	styles   *styles

	width, height int

	network  string   // that is asked for; empty: the only one
	networks []string // where there are several
	asked    int      // number of the question under way, or of the last
	asking   bool

	last    *picture // to compare the next with; nil: there is none, or of another network
	picture *picture
	whole   time.Time     // when all peers were asked for last
	took    time.Duration // how long that took
	stale   bool          // it is not known any more who the peers are
	now     time.Time
	err     error     // of the last question
	failed  time.Time // since when there was no answer
	anew    time.Time // when the daemon was found to be another process

	paused  bool
	help    bool
	typing  bool // the filter
	pane    pane
	filters [panes]string
	tables  [panes]*table // nil: text
	scroll  int           // of text
	detail  func() []string

	detailed string // the peer whose detail it is, by subnet
}

type tick time.Time

func newModel(ctx context.Context, source Source, o Options, colour bool) (*model, error) {
	m := &model{ctx: ctx, source: source, interval: o.Interval, network: o.Network, styles: newStyles(colour), now: time.Now()}
	peers := m.peerTable()
	by, err := o.sorted(peers)
	if err != nil {
		return nil, err
	}
	peers.by = by
	m.filters[panePeers] = o.Filter
	m.tables = [panes]*table{panePeers: peers, paneDrops: m.dropTable(), paneQueues: m.queueTable(), paneFeatures: m.featureTable()}
	return m, nil
}

// Init implements tea.Model.
func (m *model) Init() tea.Cmd { return tea.Batch(m.ask(), m.wait()) }

func (m *model) wait() tea.Cmd {
	return tea.Tick(m.interval, func(t time.Time) tea.Msg { return tick(t) })
}

// ask asks the daemon, while the terminal goes on. Answers to questions that were overtaken do not count.
func (m *model) ask() tea.Cmd {
	m.asked++
	m.asking = true
	number, network, look := m.asked, m.network, m.look()
	if look.Peers.All {
		m.whole, m.stale = m.now, false
	}
	return func() tea.Msg {
		a := ask(m.ctx, m.source, network, look)
		a.number = number
		return a
	}
}

// Update implements tea.Model.
func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tick:
		m.now = time.Time(msg)
		if m.paused || m.asking { // a daemon that takes long is not asked the more
			return m, m.wait()
		}
		return m, tea.Batch(m.ask(), m.wait())
	case answer:
		return m, m.take(msg)
	case tea.PasteMsg:
		if m.typing {
			m.setFilter(m.filters[m.pane] + clean(msg.Content))
		}
	case tea.KeyPressMsg:
		return m, m.key(msg)
	}
	return m, nil
}

// take has an answer shown.
func (m *model) take(a answer) tea.Cmd {
	if a.number != m.asked {
		return nil
	}
	m.asking = false
	if a.networks != nil {
		m.networks = a.networks
	}
	if a.network != m.network {
		m.network, m.last, m.detail = a.network, nil, nil
	}
	if m.paused {
		return nil
	}
	if a.err != nil {
		if m.err == nil {
			m.failed = m.now
		}
		m.err = a.err
		return nil
	}
	m.err = nil
	if m.last != nil && !same(m.last.Status, a.sample.status) {
		m.anew = a.sample.at
	}
	if !m.complete(&a.sample) {
		m.stale = true
		return m.ask()
	}
	if a.took > 0 {
		m.took = a.took
	}
	m.picture = newPicture(m.last, a.sample)
	m.last = m.picture
	m.arrange()
	return nil
}

// arrange brings the rows of what is seen in order.
func (m *model) arrange() {
	if t := m.tables[m.pane]; t != nil && m.picture != nil {
		t.arrange(words(m.filters[m.pane]))
	}
}

func (m *model) setFilter(filter string) {
	m.filters[m.pane] = filter
	m.arrange()
}

func (m *model) show(p pane) {
	m.pane, m.scroll, m.detail = (p+panes)%panes, 0, nil
	m.arrange()
}

func (m *model) key(k tea.KeyPressMsg) tea.Cmd {
	if k.String() == "ctrl+c" {
		return tea.Quit
	}
	if m.typing {
		m.edit(k)
		return nil
	}
	if m.help && k.String() != "q" {
		if m.help = m.steps(k.String()) != 0; m.help {
			m.move(k.String())
		}
		return nil
	}
	switch name := k.String(); name {
	case "q":
		return tea.Quit
	case "ctrl+z":
		return tea.Suspend
	case "?", "h", "f1":
		m.help, m.scroll = true, 0
	case "p", "space":
		if m.paused = !m.paused; !m.paused {
			return m.ask()
		}
	case "/":
		if m.tables[m.pane] != nil {
			m.typing, m.detail = true, nil
		}
	case "esc":
		if m.detail != nil {
			m.detail = nil
			return nil
		}
		m.setFilter("")
	case "n":
		return m.nextNetwork()
	case "tab":
		m.show(m.pane + 1)
	case "shift+tab":
		m.show(m.pane - 1)
	case "1", "2", "3", "4", "5":
		m.show(pane(name[0] - '1'))
	case "enter":
		t := m.tables[m.pane]
		if m.detail != nil || t == nil || m.picture == nil {
			m.detail = nil
		} else if row, ok := t.selected(); ok {
			m.detail, m.scroll = m.details(row), 0
		}
	default:
		m.move(name)
	}
	return nil
}

// edit takes a key for the filter, which works while it is typed.
func (m *model) edit(k tea.KeyPressMsg) {
	switch k.String() {
	case "enter":
		m.typing = false
	case "esc":
		m.typing = false
		m.setFilter("")
	case "backspace":
		_, last := utf8.DecodeLastRuneInString(m.filters[m.pane])
		m.setFilter(m.filters[m.pane][:len(m.filters[m.pane])-last])
	case "ctrl+u":
		m.setFilter("")
	default:
		if k.Text != "" {
			m.setFilter(m.filters[m.pane] + k.Text)
		}
	}
}

// nextNetwork asks for the next of several. Where there is one, it asks for that.
func (m *model) nextNetwork() tea.Cmd {
	m.asked++
	m.asking = true
	ctx, source, number, network := m.ctx, m.source, m.asked, m.network
	return func() tea.Msg {
		names, err := source.Networks(ctx) // they come and go
		if err == nil {
			network = next(names, network)
		}
		a := ask(ctx, source, network, control.Look{Peers: control.AllPeers, Watch: control.AllPeers})
		a.number, a.networks = number, names
		return a
	}
}

// move is a key that moves in the rows or lines, or among the columns.
func (m *model) move(key string) {
	t := m.tables[m.pane]
	if t == nil || m.detail != nil || m.help {
		m.scroll = max(0, m.scroll+m.steps(key)) // and at most what there is: when it is drawn
		return
	}
	switch key {
	case "left", "<":
		t.sortBy(t.by - 1)
		m.arrange()
	case "right", ">", "s":
		t.sortBy(t.by + 1)
		m.arrange()
	case "r":
		t.reverse = !t.reverse
		m.arrange()
	default:
		t.move(m.steps(key))
	}
}

// steps is how many rows or lines down a key goes; 0: it is for something else.
func (m *model) steps(key string) int {
	page := max(1, m.height-len(m.header())-2) // but the titles and the keys
	switch key {
	case "up", "k":
		return -1
	case "down", "j":
		return 1
	case "pgup", "ctrl+b":
		return -page
	case "pgdown", "ctrl+f":
		return page
	case "home", "g":
		return -1 << 30
	case "end", "G":
		return 1 << 30
	}
	return 0
}

// noAnswer is why there is none, in words for who looks on.
func (m *model) noAnswer() string {
	if errors.Is(m.err, context.DeadlineExceeded) {
		return "the daemon takes the question and does not answer: `muslin doctor` may know why"
	}
	return m.err.Error()
}
