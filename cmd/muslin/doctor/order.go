package doctor

import (
	"cmp"
	"slices"
	"strings"
)

// inOrder sorts findings: broken before warnings, certain before likely before possible, then by layer; but a cause
// stands before all that it explains, and in the place of the worst of that.
func inOrder(all []Finding) {
	slices.SortStableFunc(all, compare)
	n := len(all)
	causes := make([][]int, n) // of each finding, those that explain it
	for i := range all {
		for j := range all {
			if i != j && all[i].explains(&all[j]) && !all[j].explains(&all[i]) {
				causes[j] = append(causes[j], i)
			}
		}
	}
	placed := make([]bool, n)
	var order []int
	var place func(i int, path []int)
	// place puts a finding behind its causes. A circle of those is cut somewhere.
	place = func(i int, path []int) {
		if placed[i] || slices.Contains(path, i) {
			return
		}
		for _, c := range causes[i] {
			place(c, append(path, i))
		}
		if !placed[i] {
			placed[i] = true
			order = append(order, i)
		}
	}
	for i := range all {
		place(i, nil)
	}
	sorted := make([]Finding, 0, n)
	for _, i := range order {
		sorted = append(sorted, all[i])
	}
	copy(all, sorted)
}

func compare(a, b Finding) int {
	return cmp.Or(
		cmp.Compare(rank(a.Severity, Broken, Warning), rank(b.Severity, Broken, Warning)),
		cmp.Compare(rank(a.Confidence, Certain, Likely, Possible), rank(b.Confidence, Certain, Likely, Possible)),
		cmp.Compare(a.layer, b.layer))
}

func rank[T comparable](v T, order ...T) int { return slices.Index(order, v) }

// explains reports whether the other one is but a consequence.
func (f *Finding) explains(other *Finding) bool { return f.names(f.Explains, other) }

// names reports whether one of some IDs, as Explains has them, is the other one's.
func (f *Finding) names(ids []string, other *Finding) bool {
	return slices.ContainsFunc(ids, func(id string) bool {
		if id == "*" {
			return f.ID != other.ID
		}
		if kind, all := strings.CutSuffix(id, "-*"); all {
			return strings.HasPrefix(other.ID, kind+"-")
		}
		id, anywhere := strings.CutSuffix(id, "*")
		return id == other.ID && (anywhere || f.Node == other.Node)
	})
}

// withoutDoubles leaves out what another finding says better.
func withoutDoubles(all []Finding) []Finding {
	return slices.DeleteFunc(slices.Clone(all), func(f Finding) bool {
		return slices.ContainsFunc(all, func(other Finding) bool { return f.ID != other.ID && f.names(f.unless, &other) })
	})
}
