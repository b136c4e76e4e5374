package kernel

import "testing"

// FuzzParseFeatures: a feature that is on has what it needs, one that is off says why, and what is read can be
// written down again.
func FuzzParseFeatures(f *testing.F) {
	for _, s := range []string{"auto", "none", "-udp-gso,-tun-uso", "none,udp-gso", " auto , -mmsg", "none,-mmsg,mmsg"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		features, err := ParseFeatures(s)
		if err != nil {
			return
		}
		written := "none"
		for _, r := range Ladder {
			state := features.Feature(r.Name)
			if state.On != features.On(r.Name) || state.Reason == "" {
				t.Fatalf("%q: %+v", s, state)
			}
			if state.On {
				written += "," + r.Name
				if r.Needs != "" && !features.On(r.Needs) {
					t.Fatalf("%q: %s is on without %s", s, r.Name, r.Needs)
				}
			}
		}
		again, err := ParseFeatures(written)
		if err != nil {
			t.Fatalf("%q: written as %q: %v", s, written, err)
		}
		for _, r := range Ladder {
			if again.On(r.Name) != features.On(r.Name) {
				t.Fatalf("%q: written as %q, and %s is %v", s, written, r.Name, again.On(r.Name))
			}
		}
	})
}
