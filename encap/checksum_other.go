//go:build !amd64

package encap

// Go alone on other processors: Sum leaves the call of sumWide out.
const (
	wideMin = 0
	hasWide = false
)

func sumWide([]byte) uint64 { panic("encap: sumWide on a processor that has none") }
