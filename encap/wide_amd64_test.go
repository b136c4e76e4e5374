package encap

import "testing"

// withoutWide runs f with sumWide switched off, as on a processor without AVX2.
func withoutWide(t testing.TB, f func()) {
	t.Helper()
	had := hasWide
	defer func() { hasWide = had }()
	hasWide = false
	f()
}
