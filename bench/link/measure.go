//go:build linux

package link

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Config says what Measure measures.
type Config struct {
	Token    string
	Overlay  netip.AddrPort // the server's, on each path; IPv4
	Underlay netip.AddrPort
	Each     time.Duration // that a measure lasts, MinEach to MaxEach
	Streams  int           // of the TCP measures with several, to MaxStreams; 1 leaves these out
	Rate     int64         // bits per second at most, each way; 0 is no limit, else at least MinRate
	Progress func(string)  // is told what begins; nil is allowed
	Inside   Inside
}

// Check finds what Measure would refuse.
func (c *Config) Check() error {
	switch {
	case c.Token == "":
		return errors.New("no token: the other side prints it")
	case c.Each < MinEach || c.Each > MaxEach:
		return fmt.Errorf("%v for each measure: want %v to %v", c.Each, MinEach, MaxEach)
	case c.Streams < 1 || c.Streams > MaxStreams:
		return fmt.Errorf("%d streams: want 1 to %d", c.Streams, MaxStreams)
	case c.Rate != 0 && c.Rate < MinRate:
		return fmt.Errorf("a rate of %d bits per second: want at least %d, or 0 for no limit", c.Rate, MinRate)
	}
	return nil
}

// Load is what Measure does to the network: how long it sends as fast as it can (or as Rate allows), each
// way, and how long everything takes, about.
func (c *Config) Load() (sending, all time.Duration) {
	const paths, light = 2, 4 // round trips by TCP and UDP, loss each way
	streams := 1
	if c.Streams > 1 {
		streams = 2
	}
	const search = 2 * time.Second // of the largest packets, on a path in order
	return time.Duration(paths*streams) * c.Each, paths * (time.Duration(2*streams+light)*c.Each + search)
}

// measure is one thing that is measured over each path.
type measure struct {
	name    string // in JSON
	title   string // for people
	several bool   // only where there are several streams: the title has their number
	run     func(r *run, ctx context.Context, to netip.AddrPort) Outcome
}

// measures are all, in the order in which they are made and shown.
var measures = []measure{
	{name: "tcp_to_peer", title: "TCP to the peer", run: (*run).sendOne},
	{name: "tcp_from_peer", title: "TCP from the peer", run: (*run).fetchOne},
	{name: "tcp_streams_to_peer", title: "TCP to the peer, %d streams", several: true, run: (*run).sendSeveral},
	{name: "tcp_streams_from_peer", title: "TCP from the peer, %d streams", several: true, run: (*run).fetchSeveral},
	{name: "tcp_round_trip", title: "TCP round trip", run: (*run).tcpRoundTrip},
	{name: "udp_round_trip", title: "UDP round trip", run: (*run).udpRoundTrip},
	{name: "udp_loss_to_peer", title: "UDP loss to the peer", run: (*run).lossTo},
	{name: "udp_loss_from_peer", title: "UDP loss from the peer", run: (*run).lossFrom},
	{name: "largest_to_peer", title: "largest packet to the peer", run: (*run).largestTo},
	{name: "largest_from_peer", title: "largest packet from the peer", run: (*run).largestFrom},
}

// run is one call of Measure.
type run struct {
	cfg    Config
	client *client
	rate   int64 // the stricter limit of both sides; 0 is none
}

// Measure makes every measure over both paths, one after the other and each over both before the next, so
// that what changes with time hits both alike. It returns an error where there is no result: the other side
// refused, or ctx ended. What does not work is in the result. Where the overlay does not answer at all, the
// rest is left out.
func Measure(ctx context.Context, cfg Config) (*Result, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	r := &run{cfg: cfg, client: newClient(cfg.Token, cfg.Inside), rate: cfg.Rate}
	result := &Result{Started: time.Now().UTC(), Seconds: cfg.Each.Seconds(), Streams: cfg.Streams, Measures: map[string]*Row{}}
	defer r.bye(result)
	for _, way := range []struct {
		path *Path
		to   netip.AddrPort
	}{{&result.Overlay, cfg.Overlay}, {&result.Underlay, cfg.Underlay}} {
		way.path.Address = way.to.String()
		if err := r.hello(ctx, way.path, way.to); err != nil {
			return nil, err
		}
	}
	result.Rate = r.rate
	if result.Overlay.Error == "" {
		if err := r.all(ctx, result); err != nil {
			return nil, err
		}
	}
	result.judge()
	return result, nil
}

// hello finds out whether the path is there.
func (r *run) hello(ctx context.Context, path *Path, to netip.AddrPort) error {
	r.say("reaching %s", to)
	conn, err := r.client.open(ctx, to, r.request(jobHello))
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, ErrRefused):
		return err
	case err != nil:
		path.Error = err.Error()
		return nil
	}
	defer conn.Close()
	path.Local = localAddr(conn).String()
	if conn.Rate > 0 && (r.rate == 0 || conn.Rate < r.rate) {
		r.rate = conn.Rate
	}
	return nil
}

// bye frees the server for another client. If it does not hear it, it waits a little.
func (r *run) bye(result *Result) {
	to := r.cfg.Underlay
	switch {
	case result.Underlay.Local != "":
	case result.Overlay.Local != "":
		to = r.cfg.Overlay
	default:
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if conn, err := r.client.open(ctx, to, r.request(jobBye)); err == nil {
		conn.Close()
	}
}

func (r *run) say(format string, args ...any) {
	if r.cfg.Progress != nil {
		r.cfg.Progress(fmt.Sprintf(format, args...))
	}
}

func (r *run) all(ctx context.Context, result *Result) error {
	for i, m := range measures {
		row := &Row{Title: m.title}
		if m.several {
			if r.cfg.Streams == 1 {
				continue
			}
			row.Title = fmt.Sprintf(m.title, r.cfg.Streams)
		}
		result.Measures[m.name] = row
		overlay := func() { r.say("%s, overlay", row.Title); row.Overlay = r.one(ctx, m, r.cfg.Overlay) }
		underlay := func() {
			if result.Underlay.Error == "" {
				r.say("%s, underlay", row.Title)
				row.Underlay = r.one(ctx, m, r.cfg.Underlay)
			}
		}
		if i%2 == 0 { // neither is always the second, with warm processors
			overlay()
			underlay()
		} else {
			underlay()
			overlay()
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// one makes a measure over one path. It takes no longer than the server would let it.
func (r *run) one(ctx context.Context, m measure, to netip.AddrPort) *Outcome {
	longest := r.request(jobPacket)
	ctx, cancel := context.WithTimeout(ctx, longest.lasts())
	defer cancel()
	o := m.run(r, ctx, to)
	return &o
}

func (r *run) request(job string) request {
	return request{Job: job, Millis: r.cfg.Each.Milliseconds()}
}

func failed(err error) Outcome { return Outcome{Error: err.Error()} }

// failing puts the error, if there is one, to what was found all the same.
func failing(o Outcome, err error) Outcome {
	if err != nil {
		o.Error = err.Error()
	}
	return o
}

func (r *run) sendOne(ctx context.Context, to netip.AddrPort) Outcome {
	return r.streams(ctx, to, jobSend, 1)
}

func (r *run) fetchOne(ctx context.Context, to netip.AddrPort) Outcome {
	return r.streams(ctx, to, jobFetch, 1)
}

func (r *run) sendSeveral(ctx context.Context, to netip.AddrPort) Outcome {
	return r.streams(ctx, to, jobSend, r.cfg.Streams)
}

func (r *run) fetchSeveral(ctx context.Context, to netip.AddrPort) Outcome {
	return r.streams(ctx, to, jobFetch, r.cfg.Streams)
}

// streams opens all connections before the first byte flows.
func (r *run) streams(ctx context.Context, to netip.AddrPort, job string, n int) Outcome {
	req := r.request(job)
	req.Rate = r.rate / int64(n)
	var conns []*conn
	for range n {
		c, err := r.client.open(ctx, to, req)
		if err != nil {
			return failed(err)
		}
		defer c.abort()
		conns = append(conns, c)
	}
	pace := &pacer{rate: r.rate}
	found, errs := make([]Throughput, n), make([]error, n)
	var flowing sync.WaitGroup
	for i, c := range conns {
		flowing.Go(func() {
			if job == jobSend {
				found[i], errs[i] = r.send(ctx, c, pace)
			} else {
				found[i], errs[i] = r.fetch(ctx, c)
			}
		})
	}
	flowing.Wait()
	sum := Throughput{Streams: n}
	for _, t := range found {
		sum.Bytes += t.Bytes
		sum.BitsPerSecond += t.BitsPerSecond
		sum.Seconds = max(sum.Seconds, t.Seconds)
	}
	return failing(Outcome{Throughput: &sum}, firstOf(errs))
}

// firstOf speaks for all streams: they mostly share one fate.
func firstOf(errs []error) error {
	bad := slices.DeleteFunc(slices.Clone(errs), func(err error) bool { return err == nil })
	switch {
	case len(bad) == 0:
		return nil
	case len(errs) == 1:
		return bad[0]
	}
	return fmt.Errorf("%d of %d streams: %w", len(bad), len(errs), bad[0])
}

// send streams until the server reports what it has got.
func (r *run) send(ctx context.Context, c *conn, pace *pacer) (Throughput, error) {
	var sending sync.WaitGroup
	sending.Go(func() { sendStream(c.TCPConn, r.cfg.Each, pace, ctx.Done()) })
	defer sending.Wait()
	defer c.abort()
	if err := c.SetReadDeadline(time.Now().Add(r.cfg.Each + streamGrace)); err != nil {
		return Throughput{}, err
	}
	var got report
	if err := readFrame(c, &got); err != nil {
		return Throughput{}, fmt.Errorf("the other side did not say what arrived: %w", err)
	}
	if got.Error != "" {
		return Throughput{}, errors.New(got.Error)
	}
	if got.Seconds <= 0 {
		return Throughput{}, fmt.Errorf("the other side counted for %v seconds", got.Seconds)
	}
	return Throughput{Streams: 1, Bytes: got.Bytes, Seconds: got.Seconds, BitsPerSecond: float64(got.Bytes) * 8 / got.Seconds}, nil
}

func (r *run) fetch(ctx context.Context, c *conn) (Throughput, error) {
	defer c.abort()
	if _, err := c.Write([]byte{0}); err != nil {
		return Throughput{}, err
	}
	return receiveStream(c.TCPConn, r.cfg.Each, &pacer{}, ctx.Done())
}

func (r *run) tcpRoundTrip(ctx context.Context, to netip.AddrPort) Outcome {
	c, err := r.client.open(ctx, to, r.request(jobEcho))
	if err != nil {
		return failed(err)
	}
	defer c.abort()
	l, err := pingTCP(c.TCPConn, r.cfg.Each)
	return failing(Outcome{Latency: &l}, err)
}

// packets makes a measure with UDP datagrams.
func (r *run) packets(ctx context.Context, to netip.AddrPort, do func(p *packets) (Outcome, error)) Outcome {
	p, err := r.client.openPackets(ctx, to, r.cfg.Each)
	if err != nil {
		return failed(err)
	}
	defer p.close()
	return failing(do(p))
}

func (r *run) udpRoundTrip(ctx context.Context, to netip.AddrPort) Outcome {
	return r.packets(ctx, to, func(p *packets) (Outcome, error) {
		l, err := pingPong(r.cfg.Each, func(seq uint32) (bool, error) {
			return p.ask(kindEcho, seq+1, outerLen+pingBytes, pingTimeout) // 0 was the greeting
		})
		return Outcome{Latency: &l}, err
	})
}

func (r *run) lossTo(ctx context.Context, to netip.AddrPort) Outcome {
	return r.packets(ctx, to, func(p *packets) (Outcome, error) {
		l, err := p.lossTo(ctx, lossOrder(r.cfg.Each, r.rate, p.mtu))
		return Outcome{Loss: &l}, err
	})
}

func (r *run) lossFrom(ctx context.Context, to netip.AddrPort) Outcome {
	return r.packets(ctx, to, func(p *packets) (Outcome, error) {
		l, err := p.lossFrom(lossOrder(r.cfg.Each, r.rate, p.mtu))
		return Outcome{Loss: &l}, err
	})
}

func (r *run) largestTo(ctx context.Context, to netip.AddrPort) Outcome {
	return r.packets(ctx, to, func(p *packets) (Outcome, error) {
		l, err := p.largestTo()
		return Outcome{Largest: &l}, err
	})
}

func (r *run) largestFrom(ctx context.Context, to netip.AddrPort) Outcome {
	return r.packets(ctx, to, func(p *packets) (Outcome, error) {
		l, err := p.largestFrom()
		return Outcome{Largest: &l}, err
	})
}
