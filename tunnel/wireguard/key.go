package wireguard

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"muslin/tunnel/fib"
)

// PrivateKey is a node's secret. It is never shown: as text it is the public key that belongs to it.
type PrivateKey struct {
	secret [32]byte
	public fib.PublicKey
}

// Public is the key that the others know the node by.
func (k PrivateKey) Public() fib.PublicKey { return k.public }

// String is Public's.
func (k PrivateKey) String() string { return k.public.String() }

// GoString is as String, for %#v.
func (k PrivateKey) GoString() string { return k.String() }

// newKey makes a key of 32 bytes. Some bits of a Curve25519 secret are always the same (RFC 7748, section 5), and are
// written so by every tool.
func newKey(secret [32]byte) (PrivateKey, error) {
	secret[0] &= 248
	secret[31] = secret[31]&127 | 64
	k, err := ecdh.X25519().NewPrivateKey(secret[:])
	if err != nil {
		return PrivateKey{}, err
	}
	return PrivateKey{secret, fib.PublicKey(k.PublicKey().Bytes())}, nil
}

// LoadKey reads the node's key from the file, which has it as `wg genkey` prints it, or makes one, once: a file of mode
// 0400. exposed says that others than its owner may read a file that was there.
func LoadKey(path string) (k PrivateKey, exposed bool, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		k, err = createKey(path)
		return k, false, err
	}
	if err != nil {
		return k, false, fmt.Errorf("WireGuard key: %w", err)
	}
	b, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(b) != 32 || [32]byte(b) == [32]byte{} {
		return k, false, fmt.Errorf("WireGuard key: %s holds none: want 44 characters of base64, 32 bytes, as `wg genkey` prints; delete it to have a new one made, which the others learn of by our lease", path)
	}
	info, err := os.Stat(path)
	if err != nil {
		return k, false, fmt.Errorf("WireGuard key: %w", err)
	}
	k, err = newKey([32]byte(b))
	return k, info.Mode().Perm()&0o077 != 0, err
}

// createKey writes the file at once or not at all: half a key would keep every later start away.
func createKey(path string) (PrivateKey, error) {
	var random [32]byte
	rand.Read(random[:]) // never fails (crypto/rand)
	k, err := newKey(random)
	if err != nil {
		return PrivateKey{}, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return PrivateKey{}, fmt.Errorf("make a WireGuard key: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // of mode 0600
	if err != nil {
		return PrivateKey{}, fmt.Errorf("make a WireGuard key: %w", err)
	}
	defer os.Remove(f.Name()) // once it is linked, this name goes
	_, err = f.WriteString(base64.StdEncoding.EncodeToString(k.secret[:]) + "\n")
	err = errors.Join(err, f.Chmod(0o400), f.Sync(), f.Close())
	if err == nil {
		err = os.Link(f.Name(), path) // refuses where somebody else was faster, unlike a rename
	}
	if err != nil {
		return PrivateKey{}, fmt.Errorf("make a WireGuard key: %w", err)
	}
	return k, nil
}
