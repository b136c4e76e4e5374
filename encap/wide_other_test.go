//go:build !amd64

package encap

import "testing"

// withoutWide runs f: there is no sumWide to switch off here.
func withoutWide(_ testing.TB, f func()) { f() }
