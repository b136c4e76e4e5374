package lease

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The fields of a wireguard backend, as flannel has them.

// How a wireguard network that has both IPv4 and IPv6 is carried. In one that has IPv4 alone the first three are the
// same.
const (
	ModeSeparate = "separate" // a device for each family, over its own; the default
	ModeAuto     = "auto"     // one device, over the family that is more likely to work (Node.likelier)
	ModeIPv4     = "ipv4"     // one device, over IPv4
	ModeIPv6     = "ipv6"     // one device, over IPv6
)

var modes = []string{ModeSeparate, ModeAuto, ModeIPv4, ModeIPv6}

// PresharedKey is a secret that all nodes share, which every handshake then needs beside the nodes' own keys. It is never
// shown: as text it says only whether there is one.
type PresharedKey [32]byte

// IsZero reports whether there is none.
func (k PresharedKey) IsZero() bool { return k == PresharedKey{} }

// String is no key.
func (k PresharedKey) String() string {
	if k.IsZero() {
		return "none"
	}
	return "(hidden)"
}

// GoString is as String, for %#v.
func (k PresharedKey) GoString() string { return k.String() }

// keepaliveMost is the longest interval that WireGuard's devices take, seconds (16 bits).
const keepaliveMost = 65535

// OneTunnel reports whether one WireGuard device carries both families: it listens on Port, and PortV6 is nobody's.
func (b *Backend) OneTunnel() bool { return b.Type == BackendWireGuard && b.Mode != ModeSeparate }

func (b *Backend) parseWireGuard(in *object) (err error) {
	if b.Port, err = in.port("ListenPort", defaultWireGuardPort); err != nil {
		return err
	}
	if b.PortV6, err = in.port("ListenPortV6", defaultWireGuardPortV6); err != nil {
		return err
	}
	if b.MTU, err = in.mtu(); err != nil {
		return err
	}
	if b.PSK, err = in.presharedKey(); err != nil {
		return err
	}
	seconds, _, err := in.integer("PersistentKeepaliveInterval", 0, keepaliveMost)
	if err != nil {
		return fmt.Errorf("%w; it is in seconds", err)
	}
	b.Keepalive = time.Duration(seconds) * time.Second
	switch b.Mode, err = in.text("Mode"); {
	case err != nil:
		return err
	case b.Mode == "":
		b.Mode = ModeSeparate
	case !slices.Contains(modes, b.Mode):
		return fmt.Errorf("%s %q is not known: use %s", "Mode", clip(b.Mode), list(modes, "or"))
	}
	return nil
}

// presharedKey is PSK. What is wrong with it is said without it.
func (in *object) presharedKey() (k PresharedKey, err error) {
	wrong := errors.New("PSK is not a preshared key: want 44 characters of base64, 32 bytes, as `wg genpsk` prints")
	raw := in.raw("PSK")
	if raw == nil {
		return k, nil
	}
	var text string
	if json.Unmarshal(raw, &text) != nil {
		return k, wrong
	}
	if text == "" {
		return k, nil
	}
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != len(k) {
		return k, wrong
	}
	if k = PresharedKey(b); k.IsZero() {
		return k, wrong
	}
	return k, nil
}

// HideSecret is a network's config for the eyes of whoever reads a log: without its preshared key. secret says that there
// is one.
func HideSecret(config string) (text string, secret bool) {
	o, err := decodeObject([]byte(config))
	if err != nil { // what looks like one
		text = likeSecret.ReplaceAllString(config, `"PSK":"PSK"`)
		return text, text != config
	}
	raw := o.raw("Backend")
	if raw == nil {
		return config, false
	}
	in, err := decodeObject(raw)
	if err != nil {
		return config, false
	}
	for _, f := range in.fields {
		if strings.EqualFold(f.name, "PSK") && len(f.raw) > len(`""`) {
			config, secret = strings.ReplaceAll(config, string(f.raw), `"PSK"`), true
		}
	}
	return config, secret
}

// likeSecret is a preshared key in what is no JSON, which may have been cut short.
var likeSecret = regexp.MustCompile(`(?i)"PSK"\s*:\s*"[^"]*"?`)

// brief is a config's beginning, without its secret.
func brief(config []byte) string {
	text, _ := HideSecret(string(config))
	return clip(text)
}
