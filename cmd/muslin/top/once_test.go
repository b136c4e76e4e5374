package top

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"muslin/cmd/muslin/control"
)

// clocked is a fake whose time goes by itself.
type clocked struct {
	*fake
	start time.Time
	each  func(look int, f *fake)
	looks int
}

func (c *clocked) Status(ctx context.Context, network string, look control.Look) (*control.Status, error) {
	c.looks++
	if c.each != nil {
		c.each(c.looks, c.fake)
	}
	c.now = began.Add(time.Since(c.start))
	return c.fake.Status(ctx, network, look)
}

func TestOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &clocked{fake: &fake{peers: 10, warnings: []string{"odd\x1b"}}, start: time.Now()}
		look, err := Once(t.Context(), c, Options{Interval: 2 * time.Second, Sort: "tx", Filter: "up"})
		if err != nil || c.looks != 2 {
			t.Fatalf("%v, after %d looks", err, c.looks)
		}
		r := look.Report()
		if r.Interval != 2 || len(r.Peers) != 9 || r.Peers[0].Subnet != "10.245.10.0/24" || *r.Peers[0].Rates.TxBytes != 10_000 || r.Peers[0].PeerStatus.TxBytes != 20_000 || *r.Total.TxPackets != 55 {
			t.Errorf("%+v", r)
		}
		if len(r.Drops) != 2 || r.Drops[0] != (DropReport{"no-route", 24, 12}) || len(r.Queues) != 2 || r.Queues[0].PerBatch != 2.5 {
			t.Errorf("%+v, %+v", r.Drops, r.Queues)
		}
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var back struct {
			Peers []map[string]any `json:"peers"`
		}
		if err := json.Unmarshal(data, &back); err != nil || back.Peers[0]["tx_bytes"] != 20_000.0 || back.Peers[0]["tx_bytes_per_second"] != 10_000.0 || back.Peers[0]["rtt_us"] == nil {
			t.Errorf("%v: a peer is %v", err, back.Peers[0])
		}
		var text bytes.Buffer
		if err := look.Print(&text); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"running, in 2s until", "WARNING: odd?", "10 peers, 1 DOWN  sent 55 pkt/s 440 kb/s", "PEER", "RECEIVED", "10.245.10.0/24", "80.0k", "no-route", "outbound"} {
			if !strings.Contains(text.String(), want) {
				t.Errorf("no %q in\n%s", want, text.String())
			}
		}
		if strings.Contains(text.String(), "10.245.7.0/24") {
			t.Errorf("the one that is down is no match:\n%s", text.String())
		}
	})
}

// Of a daemon that is replaced between the two looks there is another one.
func TestOnceOfTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &clocked{fake: &fake{peers: 1}, start: time.Now(), each: func(look int, f *fake) { f.pid = min(look, 2) }}
		look, err := Once(t.Context(), c, Options{Interval: time.Second})
		if err != nil || c.looks != 3 || math.Abs(look.Report().Interval-1) > 0.01 {
			t.Errorf("%v, after %d looks", err, c.looks)
		}
	})
}

func TestOnceFails(t *testing.T) {
	gone := errors.New("no daemon there")
	if _, err := Once(t.Context(), &fake{fails: gone}, Options{Interval: time.Second}); !errors.Is(err, gone) {
		t.Errorf("%v", err)
	}
	if _, err := Once(t.Context(), &fake{networks: map[string]int{"blue": 1}}, Options{Interval: time.Second}); !errors.Is(err, control.ErrSeveral) {
		t.Errorf("%v", err)
	}
	if _, err := Once(t.Context(), &fake{}, Options{Interval: time.Second, Sort: "no"}); err == nil {
		t.Error("--sort no is taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Once(ctx, &fake{}, Options{Interval: time.Hour}); err == nil || !strings.Contains(err.Error(), "ended before the second look") {
		t.Errorf("%v", err)
	}
}
