package doctor

import (
	"context"
	"fmt"
	"io"
	"strings"
)

// Mend does what is safe about the findings, each after asking, and says so. It reports whether it did anything.
func (r *Report) Mend(ctx context.Context, say io.Writer, ask func(question string) bool) (did bool, err error) {
	offered := 0
	for _, f := range r.Findings {
		if f.Repair == nil {
			continue
		}
		offered++
		if !ask(fmt.Sprintf("%s: %s?", f.ID, capital(f.Repair.What))) {
			continue
		}
		if err := f.Repair.Do(ctx); err != nil {
			return did, fmt.Errorf("%s: %w", f.ID, err)
		}
		did = true
		fmt.Fprintf(say, "%s: done: %s\n", f.ID, f.Repair.What)
	}
	if offered == 0 && len(r.Findings) > 0 {
		fmt.Fprintln(say, "none of this can be mended without knowing more: see the fix of each")
	}
	return did, nil
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
