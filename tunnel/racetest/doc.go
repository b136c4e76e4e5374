// Package racetest says whether the race detector watches a test. It allocates, so that allocations are not counted under it;
// and it is slow, so that what no goroutine shares is tried less often under it. Like net/http/httptest it is imported by tests
// only.
package racetest

// Rounds is how often a test tries what no goroutine shares: so many times, or under the race detector as few as seldom.
func Rounds(often, seldom int) int {
	if Enabled {
		return seldom
	}
	return often
}
