package doctor

import (
	"slices"
	"testing"
)

// A cause stands before what it explains, in the place of the worst of that; nothing else disturbs the order by severity,
// confidence and layer.
func TestOrder(t *testing.T) {
	f := func(id string, severity Severity, confidence string, layer int, explains ...string) Finding {
		return Finding{ID: id, Severity: severity, Confidence: confidence, Node: "192.0.2.1", layer: layer, Explains: explains}
	}
	at := func(node string, f Finding) Finding { f.Node = node; return f }
	for name, w := range map[string]struct {
		in   []Finding
		want []string
	}{
		"broken first": {[]Finding{f("a", Warning, Certain, 1), f("b", Broken, Possible, 9)}, []string{"b", "a"}},
		"surer first":  {[]Finding{f("a", Broken, Possible, 1), f("b", Broken, Likely, 2), f("c", Broken, Certain, 3)}, []string{"c", "b", "a"}},
		"lower first":  {[]Finding{f("a", Broken, Certain, 2), f("b", Broken, Certain, 1)}, []string{"b", "a"}},
		"a cause before its consequence": {
			[]Finding{f("symptom", Broken, Certain, 1), f("cause", Broken, Likely, 5, "symptom"), f("other", Broken, Certain, 2)},
			[]string{"cause", "symptom", "other"},
		},
		"a warning that explains what is broken": {
			[]Finding{f("symptom", Broken, Certain, 1), f("cause", Warning, Likely, 5, "symptom"), f("warning", Warning, Certain, 1)},
			[]string{"cause", "symptom", "warning"},
		},
		"a chain":           {[]Finding{f("c", Broken, Certain, 1), f("b", Broken, Certain, 2, "c"), f("a", Broken, Certain, 3, "b")}, []string{"a", "b", "c"}},
		"a circle":          {[]Finding{f("a", Broken, Certain, 1, "b"), f("b", Broken, Certain, 2, "a")}, []string{"a", "b"}},
		"a longer circle":   {[]Finding{f("a", Broken, Certain, 1, "b"), f("b", Broken, Certain, 2, "c"), f("c", Broken, Certain, 3, "a")}, []string{"b", "c", "a"}},
		"everything":        {[]Finding{f("a", Broken, Certain, 1), at("192.0.2.9", f("b", Broken, Certain, 2)), f("c", Broken, Possible, 3, "*")}, []string{"c", "a", "b"}},
		"of the same node":  {[]Finding{at("192.0.2.9", f("a", Broken, Certain, 1)), f("b", Broken, Certain, 2, "a")}, []string{"a", "b"}},
		"of any node":       {[]Finding{at("192.0.2.9", f("a", Broken, Certain, 1)), f("b", Broken, Certain, 2, "a*")}, []string{"b", "a"}},
		"of the same check": {[]Finding{f("a", Broken, Certain, 1), f("b", Broken, Certain, 1)}, []string{"a", "b"}},
	} {
		inOrder(w.in)
		var got []string
		for _, f := range w.in {
			got = append(got, f.ID)
		}
		if !slices.Equal(got, w.want) {
			t.Errorf("%s: %v, want %v", name, got, w.want)
		}
	}
}
