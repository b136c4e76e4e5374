package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
)

// ConfigWatcher notices when the network's config in the store is not the one any more that this node runs
// with. It only says so: what a node has set up stays until its daemon is started again.
type ConfigWatcher struct {
	store   Store
	running *Config
	subnet  halves // ours
	log     *slog.Logger

	mu   sync.Mutex
	raw  string // the running config, as the store had it
	said string // "" while all is well
}

// NewConfigWatcher starts nothing: see Run. The subnets are ours; each may be zero.
func NewConfigWatcher(store Store, running *Config, subnet, subnet6 netip.Prefix, log *slog.Logger) *ConfigWatcher {
	return &ConfigWatcher{store: store, running: running, subnet: halves{subnet, subnet6}, log: log}
}

// Warning is what is the matter, in a sentence for an operator; "" while nothing is. It may be called from
// anywhere.
func (w *ConfigWatcher) Warning() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.said
}

// Run watches until ctx ends; then it returns nil. Nothing else ends it. That the store does not answer is
// the Watcher's to say.
func (w *ConfigWatcher) Run(ctx context.Context) error {
	wait := newBackoff(watchRetryLeast, watchRetryMost)
	for ctx.Err() == nil {
		standing, broken := context.WithCancelCause(ctx)
		err := w.store.WatchConfig(standing, func() {
			if err := w.look(standing); err != nil {
				broken(err)
				return
			}
			wait.reset()
		})
		broken(nil)
		w.log.Debug("the watch of the network's config broke", "err", errors.Join(err, context.Cause(standing)))
		if pause(ctx, wait.next()) != nil {
			break
		}
	}
	return nil
}

// look compares what is there now.
func (w *ConfigWatcher) look(ctx context.Context) error {
	raw, _, err := w.store.Config(ctx)
	if err != nil && !errors.Is(err, ErrNoConfig) {
		return err
	}
	sentence := w.judge(raw, err)
	w.mu.Lock()
	before := w.said
	w.said = sentence
	if sentence == "" {
		w.raw = string(raw)
	}
	w.mu.Unlock()
	switch {
	case sentence == before:
	case sentence == "":
		w.log.Info("the network's config in the store is the one again that this node runs with")
	default:
		w.log.Error(sentence)
	}
	return nil
}

func (w *ConfigWatcher) judge(raw []byte, err error) string {
	if err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		config, secret := HideSecret(w.raw)
		also := ""
		if secret {
			also = ", with the preshared key in place of \"PSK\""
		}
		return fmt.Sprintf("the network's config was deleted from the store: this node goes on, but none can start; write it again: muslin config set '%s'%s", config, also)
	}
	now, err := ParseConfig(raw)
	if err != nil {
		return fmt.Sprintf("the network's config in the store was changed and is broken, %v: this node goes on as it is, but none can start; mend it with muslin config set", err)
	}
	if now.Means(w.running) {
		return ""
	}
	also := ""
	if !now.FitsLease(w.subnet.v4, w.subnet.v6) {
		also = fmt.Sprintf("; our subnet %s does not fit the new one, so it will be another then, and pods get new addresses", w.subnet)
	}
	return fmt.Sprintf("the network's config in the store was changed (%s): this node goes on with the old one until its daemon is started again%s",
		strings.Join(w.running.differences(now), ", "), also)
}

// differences are the fields that other has otherwise, "Field: ours, now other's".
func (c *Config) differences(other *Config) []string {
	var out []string
	add := func(field string, ours, theirs any) {
		if ours != theirs {
			out = append(out, fmt.Sprintf("%s: %v, now %v", field, ours, theirs))
		}
	}
	add("Network", c.Network, other.Network)
	add("SubnetLen", c.SubnetLen, other.SubnetLen)
	add("SubnetMin", c.SubnetMin, other.SubnetMin)
	add("SubnetMax", c.SubnetMax, other.SubnetMax)
	add("EnableIPv4", c.EnableIPv4, other.EnableIPv4)
	add("EnableIPv6", c.EnableIPv6, other.EnableIPv6)
	add("IPv6Network", c.IPv6Network, other.IPv6Network)
	add("IPv6SubnetLen", c.IPv6SubnetLen, other.IPv6SubnetLen)
	add("IPv6SubnetMin", c.IPv6SubnetMin, other.IPv6SubnetMin)
	add("IPv6SubnetMax", c.IPv6SubnetMax, other.IPv6SubnetMax)
	add("EnableNFTables", c.EnableNFTables, other.EnableNFTables)
	add("Backend.Type", c.Backend.Type, other.Backend.Type)
	add("Backend.VNI", c.Backend.VNI, other.Backend.VNI)
	add("Backend.Port", c.Backend.Port, other.Backend.Port)
	add("Backend.MTU", c.Backend.MTU, other.Backend.MTU)
	add("Backend.DirectRouting", c.Backend.DirectRouting, other.Backend.DirectRouting)
	add("Backend.GBP", c.Backend.GBP, other.Backend.GBP)
	add("Backend.Learning", c.Backend.Learning, other.Backend.Learning)
	add("Backend.ListenPortV6", c.Backend.PortV6, other.Backend.PortV6)
	add("Backend.Mode", c.Backend.Mode, other.Backend.Mode)
	add("Backend.PersistentKeepaliveInterval", c.Backend.Keepalive, other.Backend.Keepalive)
	if c.Backend.PSK != other.Backend.PSK {
		out = append(out, "Backend.PSK: another one")
	}
	if len(out) == 0 {
		out = []string{"in fields that this version does not use"}
	}
	return out
}
