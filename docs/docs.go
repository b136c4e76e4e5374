// Package docs has the pages that the binary carries with it: who needs them may have nothing else at hand.
package docs

import _ "embed"

// Emergency is emergency.md.
//
//go:embed emergency.md
var Emergency string
