package wireguard

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"muslin/tunnel/fib"
)

// Session is what WireGuard knows of a peer.
type Session struct {
	Endpoint  string    // where its datagrams came from last, or where its lease says it is
	Handshake time.Time // the last; zero: none yet

	RxBytes, TxBytes uint64 // of the kernel's WireGuard alone: of its messages, overhead and handshakes included
}

// Sessions is one for each peer, by its key as text.
func (u *Underlay) Sessions() (map[string]Session, error) {
	text, err := u.dev.IpcGet()
	if err != nil {
		return nil, fmt.Errorf("ask WireGuard's engine: %w", err)
	}
	return parseSessions(text), nil
}

// parseSessions reads the engine's answer: lines "name=value", a peer's behind its public_key
// (https://www.wireguard.com/xplatform/). What it does not know it leaves out.
func parseSessions(text string) map[string]Session {
	all := make(map[string]Session)
	var key fib.PublicKey
	var s Session
	var sec, nsec int64
	put := func() {
		if !key.IsZero() {
			if sec != 0 || nsec != 0 {
				s.Handshake = time.Unix(sec, nsec)
			}
			all[key.String()] = s
		}
		key, s, sec, nsec = fib.PublicKey{}, Session{}, 0, 0
	}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch name {
		case "public_key":
			put()
			if b, err := hex.DecodeString(value); err == nil && len(b) == len(key) {
				key = fib.PublicKey(b)
			}
		case "endpoint":
			s.Endpoint = value
		case "last_handshake_time_sec":
			sec, _ = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			nsec, _ = strconv.ParseInt(value, 10, 64)
		}
	}
	put()
	return all
}
