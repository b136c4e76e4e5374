package top

import "github.com/charmbracelet/x/ansi"

// look is what a line is to the eye. Without colour, what matters is said by words as well.
type look int

const (
	normal look = iota
	faint
	bad
	odd
)

// style is an escape sequence in front of a text; empty: none.
type style string

func (s style) apply(text string) string {
	if s == "" || text == "" {
		return text
	}
	return string(s) + text + ansi.ResetStyle
}

type styles struct{ title, cursor, tab, faint, bad, odd style }

// newStyles are bold and reverse, which every terminal has, and colours unless NO_COLOR says otherwise (no-color.org).
func newStyles(colour bool) *styles {
	s := &styles{
		title:  style(ansi.NewStyle().Bold().String()),
		cursor: style(ansi.NewStyle().Reverse(true).String()),
		tab:    style(ansi.NewStyle().Reverse(true).String()),
	}
	if colour {
		s.faint = style(ansi.NewStyle().ForegroundColor(ansi.BrightBlack).String())
		s.bad = style(ansi.NewStyle().Bold().ForegroundColor(ansi.Red).String())
		s.odd = style(ansi.NewStyle().ForegroundColor(ansi.Yellow).String())
	}
	return s
}

func (s *styles) of(l look) style {
	switch l {
	case faint:
		return s.faint
	case bad:
		return s.bad
	case odd:
		return s.odd
	}
	return ""
}
