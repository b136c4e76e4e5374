package fib

import (
	"encoding/base64"
	"fmt"
)

// PublicKey is a peer's WireGuard public key: a Curve25519 point, 32 bytes (RFC 7748, section 5). The zero key is no
// peer's.
type PublicKey [32]byte

// ParsePublicKey reads a key as `wg` prints it: standard base64 of 32 bytes.
func ParsePublicKey(s string) (PublicKey, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(PublicKey{}) {
		return PublicKey{}, fmt.Errorf("%q is not a WireGuard public key: want 44 characters of base64, 32 bytes", s)
	}
	k := PublicKey(b)
	if k.IsZero() {
		return k, fmt.Errorf("%q is not a WireGuard public key: it is zero", s)
	}
	return k, nil
}

// String is the key as `wg` prints it; empty for the zero key.
func (k PublicKey) String() string {
	if k.IsZero() {
		return ""
	}
	return base64.StdEncoding.EncodeToString(k[:])
}

// IsZero reports whether it is nobody's key.
func (k PublicKey) IsZero() bool { return k == PublicKey{} }
