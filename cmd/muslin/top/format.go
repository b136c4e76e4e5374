package top

import (
	"fmt"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"
)

const prefixes = " kMGTPE"

// si is a number in five cells at most: three digits that count, and the unit's prefix.
func si(n float64) string {
	unit := 0
	for n >= 999.5 && unit < len(prefixes)-1 {
		n /= 1000
		unit++
	}
	digits := 0
	switch {
	case n == 0:
	case n < 9.995 && unit > 0:
		digits = 2
	case n < 99.95 && (unit > 0 || n < 9.95):
		digits = 1
	}
	return strings.TrimRight(fmt.Sprintf("%.*f%c", digits, n, prefixes[unit]), " ")
}

// bits is a rate of bytes as one of bits.
func bits(bytes float64) string { return si(8 * bytes) }

// bitText is it in running text.
func bitText(bytes float64) string {
	n := bits(bytes)
	number := strings.TrimRight(n, prefixes)
	return number + " " + n[len(number):] + "b/s"
}

// short is a time in four cells at most, cut and not rounded.
func short(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, d/time.Second))
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// clock is a time of today, or its day.
func clock(now time.Time, t *time.Time) string {
	switch {
	case t == nil:
		return "-"
	case now.Sub(*t) < 24*time.Hour:
		return t.Local().Format(time.TimeOnly)
	}
	return t.Local().Format("Jan _2")
}

// clean has no control characters: what others wrote into the store reaches the terminal.
func clean(s string) string {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return strings.Map(func(r rune) rune {
				if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
					return '?'
				}
				return r
			}, strings.ToValidUTF8(s, "?"))
		}
	}
	return s
}

// plain says whether each byte is a cell.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func wide(s string) int {
	if plain(s) {
		return len(s)
	}
	return ansi.StringWidth(s)
}

// cut is s in so many cells at most.
func cut(s string, cells int) string {
	switch {
	case cells <= 0:
		return ""
	case wide(s) <= cells:
		return s
	}
	return ansi.Truncate(s, cells, "…")
}

// fit is s in exactly so many cells.
func fit(s string, cells int, right bool) string {
	s = cut(s, cells)
	pad := strings.Repeat(" ", max(0, cells-wide(s)))
	if right {
		return pad + s
	}
	return s + pad
}

// wrap cuts a sentence into lines.
func wrap(s string, cells int) []string {
	return strings.Split(ansi.Wrap(s, max(1, cells), ""), "\n")
}
