package wireguard

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "key")
	made, exposed, err := LoadKey(path)
	if err != nil || exposed || made.Public().IsZero() {
		t.Fatal(made, exposed, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o400 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	again, exposed, err := LoadKey(path)
	if err != nil || exposed || again != made {
		t.Errorf("%v, %v, %v", again, exposed, err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	secret, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(verb, made); text != made.Public().String() || strings.Contains(text, strings.TrimSpace(string(secret))) {
			t.Errorf("%s: %s", verb, text)
		}
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, exposed, err := LoadKey(path); err != nil || !exposed {
		t.Errorf("a key that others may read: %v, %v", exposed, err)
	}
}

// What `wg genkey` and `wg pubkey` of Debian made.
func TestKeyOfAnotherProgram(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte("GJa6BTbUgzR4uvok3Tp0cSDJeNgLUwoVW+YUFkw7K3E=\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	k, _, err := LoadKey(path)
	if err != nil || k.Public().String() != "4Ex02r4VPdu/pv1J31qjwwKaDfvmvSOWlVJgw7U82nA=" {
		t.Errorf("%v, %v", k, err)
	}
}

func TestKeyRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	for _, text := range []string{"", "\n", "no key", "GJa6BTbUgzR4uvok3Tp0cSDJeNgLUwoVW+YUFkw7K3E", strings.Repeat("A", 43) + "=", strings.Repeat("A", 44)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := LoadKey(path); err == nil || !strings.Contains(err.Error(), "holds none") || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, _, err := LoadKey(t.TempDir()); err == nil {
		t.Error("a directory is a key")
	}
	if _, _, err := LoadKey("/proc/no/such/key"); err == nil || !strings.Contains(err.Error(), "make a WireGuard key") {
		t.Errorf("%v", err)
	}
}
