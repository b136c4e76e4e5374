package top

import (
	"slices"
	"strings"
)

// column is one of a table's. Its functions take a row's number.
type column struct {
	name  string // of --sort
	title string
	wide  func() int // cells of the widest; nil: title's
	right bool
	rest  bool // takes what is left of the line
	keep  int  // the less, the longer it stays when the terminal is narrow
	desc  bool // the largest comes first
	cell  func(i int) string
	cmp   func(a, b int) int
}

// table is rows in an order, of which a window is seen. Only those in the window are ever made into text.
type table struct {
	columns []column
	rows    func() int
	matches func(i int, words []string) bool // whether a row is one that the filter lets through
	look    func(i int) look
	then    func(a, b int) int // which comes first where the column says nothing; nil: by number

	by      int // column
	reverse bool
	order   []int // rows, filtered and sorted
	cursor  int   // in order
	top     int   // first of the window
}

// arrange filters and sorts anew.
func (t *table) arrange(words []string) {
	t.order = t.order[:0]
	for i := range t.rows() {
		if len(words) == 0 || t.matches(i, words) {
			t.order = append(t.order, i)
		}
	}
	c := t.columns[t.by]
	slices.SortStableFunc(t.order, func(a, b int) int {
		n := c.cmp(a, b)
		if c.desc != t.reverse {
			n = -n
		}
		if n == 0 && t.then != nil {
			n = t.then(a, b)
		}
		return n
	})
	t.cursor = max(0, min(t.cursor, len(t.order)-1))
}

func (t *table) sortBy(column int) {
	t.by, t.reverse = (column+len(t.columns))%len(t.columns), false
}

// column finds one by its name.
func (t *table) column(name string) (int, bool) {
	i := slices.IndexFunc(t.columns, func(c column) bool { return c.name == name })
	return i, i >= 0
}

func (t *table) move(by int) { t.cursor = max(0, min(t.cursor+by, len(t.order)-1)) }

// selected is the row under the cursor.
func (t *table) selected() (i int, ok bool) {
	if t.cursor >= len(t.order) {
		return 0, false
	}
	return t.order[t.cursor], true
}

const gap = " "

// fitting are the columns that a line has room for: those that are kept longest, and the one that is sorted by if there is room for
// two.
func (t *table) fitting(cells int) (shown []int, widths []int) {
	ranked := make([]int, len(t.columns))
	for i := range ranked {
		ranked[i] = i
	}
	keep := func(i int) int {
		if i == t.by {
			return 1
		}
		return t.columns[i].keep
	}
	slices.SortStableFunc(ranked, func(a, b int) int { return keep(a) - keep(b) })
	left := cells + len(gap)
	for _, i := range ranked {
		need := t.width(i) + len(gap)
		if need > left {
			break // what is kept less long does not slip in
		}
		left -= need
		shown = append(shown, i)
	}
	if len(shown) == 0 {
		shown = ranked[:1]
	}
	slices.Sort(shown)
	for _, i := range shown {
		widths = append(widths, t.width(i))
	}
	for at, i := range shown {
		if t.columns[i].rest {
			widths[at] += max(0, left)
		}
	}
	return shown, widths
}

// width is a column's, with its title and the mark of the one that is sorted by.
func (t *table) width(i int) int {
	c := &t.columns[i]
	w := wide(c.title) + 1
	if c.wide != nil {
		w = max(w, c.wide())
	}
	return w
}

// lines draws the title and the rows that there is room for.
func (t *table) lines(cells, height int, s *styles) []string {
	if height <= 0 {
		return nil
	}
	shown, widths := t.fitting(cells)
	var b strings.Builder
	for at, i := range shown {
		c := &t.columns[i]
		title := c.title
		if i == t.by {
			title += "▼"
			if c.desc == t.reverse {
				title = c.title + "▲"
			}
		}
		if at > 0 {
			b.WriteString(gap)
		}
		b.WriteString(fit(title, widths[at], c.right))
	}
	lines := []string{s.title.apply(fit(b.String(), cells, false))}
	height--
	t.top = max(0, min(t.top, len(t.order)-height))
	if t.cursor < t.top {
		t.top = t.cursor
	}
	if height > 0 && t.cursor >= t.top+height {
		t.top = t.cursor - height + 1
	}
	for at := t.top; at < min(t.top+height, len(t.order)); at++ {
		lines = append(lines, t.line(t.order[at], at == t.cursor, shown, widths, cells, s))
	}
	return lines
}

func (t *table) line(row int, current bool, shown, widths []int, cells int, s *styles) string {
	var b strings.Builder
	for at, i := range shown {
		if at > 0 {
			b.WriteString(gap)
		}
		b.WriteString(fit(clean(t.columns[i].cell(row)), widths[at], t.columns[i].right))
	}
	line := strings.TrimRight(cut(b.String(), cells), " ")
	switch {
	case current:
		return s.cursor.apply(fit(line, cells, false))
	case t.look != nil:
		return s.of(t.look(row)).apply(line)
	}
	return line
}
