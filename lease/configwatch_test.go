package lease

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestConfigWatcher(t *testing.T) {
	const running = `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`
	for _, test := range []struct {
		name, config string   // "": deleted
		words        []string // of the warning; none: all is well
	}{
		{"the same", running, nil},
		{"the same in other words", `{"network":"10.244.0.0/16","SubnetLen":24,"Backend":{"type":"VXLAN","VNI":1}}`, nil},
		{"another network", `{"Network":"10.245.0.0/16","Backend":{"Type":"vxlan"}}`,
			[]string{"Network: 10.244.0.0/16, now 10.245.0.0/16", "until its daemon is started again", "our subnet 10.244.1.0/24 does not fit"}},
		{"another backend", `{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}`, []string{"Backend.Type: vxlan, now udp", "Backend.Port: 8472, now 8285"}},
		{"another VNI", `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":7}}`, []string{"Backend.VNI: 1, now 7"}},
		{"a range that leaves us out", `{"Network":"10.244.0.0/16","SubnetMin":"10.244.2.0","Backend":{"Type":"vxlan"}}`, []string{"SubnetMin: 10.244.1.0, now 10.244.2.0", "does not fit"}},
		{"a second family", `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"2001:db8:42::/56","Backend":{"Type":"vxlan"}}`,
			[]string{"EnableIPv6: false, now true", "IPv6Network: invalid Prefix, now 2001:db8:42::/56", "does not fit"}},
		{"broken", `{"Network":`, []string{"broken", "muslin config set"}},
		{"deleted", "", []string{"deleted", "muslin config set '" + running + "'"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, log := NewMemStore(), new(logBuffer)
				put := func(config string) {
					if config == "" {
						m.RemoveConfig()
					} else if err := m.PutConfig(t.Context(), []byte(config), Any); err != nil {
						t.Fatal(err)
					}
					settle(time.Second)
				}
				put(running)
				w := NewConfigWatcher(m, mustConfig(t, running), netip.MustParsePrefix("10.244.1.0/24"), netip.Prefix{}, log.logger())
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- w.Run(ctx) }()
				settle(time.Second)
				quiet := func(when string) {
					t.Helper()
					if got := w.Warning(); got != "" {
						t.Errorf("%s: %s", when, got)
					}
				}
				quiet("at first")
				for range 2 {
					put(test.config)
					for _, word := range test.words {
						if !strings.Contains(w.Warning(), word) {
							t.Errorf("%q is not in: %s", word, w.Warning())
						}
					}
					if len(test.words) == 0 {
						quiet("afterwards")
					}
				}
				want := min(1, len(test.words))
				if n := log.count("level=ERROR"); n != want {
					t.Errorf("%d lines about it, want %d:\n%s", n, want, log.String())
				}
				put(running)
				quiet("set back")
				if n := log.count("is the one again"); n != want {
					t.Errorf("log:\n%s", log.String())
				}

				// What happens while the store does not answer is seen afterwards.
				m.Fail(ErrUnavailable)
				settle(time.Hour)
				quiet("while the store is away")
				m.mu.Lock()
				m.config, m.configRev = []byte(test.config), 0
				if test.config != "" {
					m.revision++
					m.configRev = m.revision
				}
				m.mu.Unlock()
				m.Fail(nil)
				settle(watchRetryMost + time.Second)
				if warned := w.Warning() != ""; warned != (len(test.words) > 0) {
					t.Errorf("after the outage: %q", w.Warning())
				}
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
