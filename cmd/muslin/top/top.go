// Package top shows what a daemon does, live in the terminal or once as text: its peers with rates, round trip and loss,
// what is dropped, its queues and features. It asks by the control socket, each interval, and changes nothing.
//
// It goes on when the daemon is replaced, started anew or away, and says so.
package top

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/text"
)

// Source is a daemon that is asked.
type Source interface {
	// Status is that of a network; empty: of the only one. control.ErrSeveral says that there are several. It may have all peers
	// where some are asked for.
	Status(ctx context.Context, network string, look control.Look) (*control.Status, error)

	// Networks are the names of the networks there.
	Networks(ctx context.Context) ([]string, error)
}

// Socket is the daemon behind a control socket.
type Socket string

// Status implements Source.
func (s Socket) Status(ctx context.Context, network string, look control.Look) (*control.Status, error) {
	return control.Watch(ctx, string(s), network, look)
}

// Networks implements Source.
func (s Socket) Networks(ctx context.Context) ([]string, error) {
	var all control.Networks
	if err := control.Ask(ctx, string(s), control.NetworksPath+"?peers=none", &all); err != nil {
		return nil, err
	}
	var names []string
	for _, n := range all.Networks {
		names = append(names, n.Name)
	}
	return names, nil
}

// Options are what the command line says.
type Options struct {
	Network  string        // empty: the only one, or the first
	Interval time.Duration // from one question to the next
	Sort     string        // name of a column of the peers; empty: state
	Filter   string
}

// MinInterval is the shortest Options.Interval: an answer with 10,000 peers takes the daemon about as long.
const MinInterval = 100 * time.Millisecond

// Check says what is wrong with the options, and what to do.
func (o *Options) Check() error {
	if o.Interval < MinInterval {
		return fmt.Errorf("--interval %v: want %v or more, such as 1s", o.Interval, MinInterval)
	}
	_, err := o.sorted(new(model).peerTable())
	return err
}

// sorted is the column to sort the peers by.
func (o *Options) sorted(t *table) (int, error) {
	if o.Sort == "" {
		return t.by, nil
	}
	if i, ok := t.column(o.Sort); ok {
		return i, nil
	}
	return 0, fmt.Errorf("--sort %q: want one of %s", o.Sort, strings.Join(Columns(), ", "))
}

// Columns are the names of the peers' columns.
func Columns() []string {
	var names []string
	for _, c := range new(model).peerTable().columns {
		names = append(names, c.name)
	}
	return names
}

// words are what a row has to have, in lower case.
func words(filter string) []string { return strings.Fields(strings.ToLower(filter)) }

// ErrNoTerminal says that there is nobody to watch.
var ErrNoTerminal = errors.New("no terminal to watch it on: `muslin top --once` prints one look as text, and with --output json for scripts; `muslin status` what there is without rates")

// Run shows it until the user quits, or ctx ends. in and out have to be a terminal, which is left as it was.
func Run(ctx context.Context, source Source, o Options, in, out *os.File) error {
	if term := os.Getenv("TERM"); term == "dumb" || term == "unknown" {
		return fmt.Errorf("TERM=%s cannot move its cursor, and is %w", term, ErrNoTerminal)
	}
	for _, f := range []*os.File{in, out} {
		if !text.IsTerminal(f) {
			return fmt.Errorf("%s is %w", f.Name(), ErrNoTerminal)
		}
	}
	m, err := newModel(ctx, source, o, os.Getenv("NO_COLOR") == "")
	if err != nil {
		return err
	}
	p := tea.NewProgram(m, tea.WithInput(in), tea.WithOutput(out), tea.WithoutSignalHandler())
	defer context.AfterFunc(ctx, p.Quit)() // by SIGTERM or SIGHUP: Ctrl-C is a key
	_, err = p.Run()
	return err
}

// answer is what came of a question.
type answer struct {
	number   int // of the question
	network  string
	networks []string // if there are several
	sample   sample
	took     time.Duration // to have all peers; 0: they were not asked for
	err      error
}

// ask asks once. Of several networks, none of which was named, it takes the first.
func ask(ctx context.Context, source Source, network string, look control.Look) answer {
	a := answer{network: network}
	began := time.Now()
	a.sample.status, a.err = source.Status(ctx, network, look)
	if errors.Is(a.err, control.ErrSeveral) {
		if names, err := source.Networks(ctx); err != nil {
			a.err = err
		} else if len(names) > 0 {
			a.networks, a.network = names, names[0]
			began = time.Now()
			a.sample.status, a.err = source.Status(ctx, a.network, look)
		}
	}
	took := time.Since(began)
	a.sample.at = began.Add(took / 2)
	if look.Peers.All {
		a.took = took
	}
	return a
}

// next is the network after one of several.
func next(names []string, name string) string {
	if len(names) == 0 {
		return name
	}
	return names[(slices.Index(names, name)+1)%len(names)]
}
