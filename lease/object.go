package lease

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// object is a JSON object taken apart field by field, so that every complaint can name its field.
type object struct {
	fields []field
}

type field struct {
	name string
	raw  json.RawMessage // compact
	at   int             // offset of the end of the name in the input
	used bool            // somebody has asked for a field of this name
}

// decodeObject wants exactly one JSON object. It keeps duplicate fields, in order.
func decodeObject(data []byte) (*object, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	o := new(object)
	first, err := dec.Token()
	if err != nil {
		return nil, syntaxError(data, dec, err)
	}
	if first != json.Delim('{') {
		return nil, fmt.Errorf("want a JSON object {…}, have %s", kindOf(data))
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, syntaxError(data, dec, err)
		}
		at := int(dec.InputOffset())
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, syntaxError(data, dec, err)
		}
		o.fields = append(o.fields, field{name: name.(string), raw: compact(raw), at: at})
	}
	if _, err := dec.Token(); err != nil {
		return nil, syntaxError(data, dec, err)
	}
	end := dec.InputOffset()
	if rest := bytes.TrimSpace(data[end:]); len(rest) > 0 {
		return nil, fmt.Errorf("%s: %q follows the end of the JSON object", position(data, int(end)), clip(string(rest)))
	}
	return o, nil
}

func syntaxError(data []byte, dec *json.Decoder, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		if len(bytes.TrimSpace(data)) == 0 {
			return errors.New("is empty: want a JSON object {…}")
		}
		return fmt.Errorf("%s: the JSON ends too early", position(data, len(data)))
	}
	// The decoder's offsets are relative to the value at hand, so let the whole be read once more.
	at := int(dec.InputOffset())
	var whole json.RawMessage
	var syntax *json.SyntaxError
	if errors.As(json.Unmarshal(data, &whole), &syntax) {
		at, err = int(syntax.Offset)-1, syntax
	}
	return fmt.Errorf("%s: not JSON: %w", position(data, at), err)
}

// position names a place in the input for people: lines and columns count from 1, in bytes.
func position(data []byte, offset int) string {
	offset = max(0, min(offset, len(data)))
	before := data[:offset]
	line := bytes.Count(before, []byte("\n")) + 1
	return fmt.Sprintf("line %d, column %d", line, offset-bytes.LastIndexByte(before, '\n'))
}

// clip keeps foreign text in messages short.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

func kindOf(raw []byte) string {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		return "nothing"
	}
	text := clip(string(raw))
	switch raw[0] {
	case '"':
		return "the string " + text
	case '{':
		return "an object"
	case '[':
		return "an array"
	case 't', 'f':
		return "the boolean " + text
	case 'n':
		return "null"
	}
	return "the number " + text
}

// compact takes the blanks out of a value, which mostly has none: that of a lease is written by a program.
func compact(raw json.RawMessage) json.RawMessage {
	if !bytes.ContainsAny(raw, " \t\r\n") {
		return raw
	}
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return raw
	}
	return b.Bytes()
}

// raw returns the last value of that name in compact form, or nil if it is missing or null. Names match
// without regard to case, as encoding/json matches them for flannel.
func (o *object) raw(name string) json.RawMessage {
	var found json.RawMessage
	for i := range o.fields {
		if f := &o.fields[i]; strings.EqualFold(f.name, name) {
			f.used = true
			found = f.raw
		}
	}
	if string(found) == "null" {
		return nil
	}
	return found
}

// has reports whether the field is there, be it null.
func (o *object) has(name string) bool {
	return slices.ContainsFunc(o.fields, func(f field) bool { return strings.EqualFold(f.name, name) })
}

func (o *object) text(name string) (string, error) {
	raw := o.raw(name)
	if raw == nil {
		return "", nil
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return "", fmt.Errorf("%s is %s: want a string in quotes", name, kindOf(raw))
	}
	return s, nil
}

func (o *object) boolean(name string, absent bool) (bool, error) {
	raw := o.raw(name)
	if raw == nil {
		return absent, nil
	}
	var b bool
	if json.Unmarshal(raw, &b) != nil {
		return false, fmt.Errorf("%s is %s: want true or false, without quotes", name, kindOf(raw))
	}
	return b, nil
}

// integer returns the number and whether the field is there.
func (o *object) integer(name string, least, most int64) (int64, bool, error) {
	raw := o.raw(name)
	if raw == nil {
		return 0, false, nil
	}
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil {
		return 0, true, fmt.Errorf("%s is %s: want a whole number from %d to %d, without quotes", name, kindOf(raw), least, most)
	}
	if n < least || n > most {
		return 0, true, fmt.Errorf("%s is %d: want a number from %d to %d", name, n, least, most)
	}
	return n, true, nil
}

// addr returns the zero Addr for a field that is missing or null. IPv4 written as IPv6 counts as IPv4,
// as it does for flannel.
func (o *object) addr(name string, version int) (netip.Addr, error) {
	text, err := o.text(name)
	if err != nil || o.raw(name) == nil {
		return netip.Addr{}, err
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%s %q is not an IP address", name, clip(text))
	}
	if a = a.Unmap(); a.Is4() != (version == 4) || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%s %q is not an IPv%d address", name, clip(text), version)
	}
	return a, nil
}

// prefix returns the zero Prefix for a field that is missing or null.
func (o *object) prefix(name string, version int) (netip.Prefix, error) {
	text, err := o.text(name)
	if err != nil || o.raw(name) == nil {
		return netip.Prefix{}, err
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%s %q is not a CIDR: want an address and a length, such as %s", name, clip(text), exampleCIDR(version))
	}
	if p.Addr().Is4() != (version == 4) {
		return netip.Prefix{}, fmt.Errorf("%s %q is not IPv%d: want a CIDR such as %s", name, clip(text), version, exampleCIDR(version))
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%s %s has bits set behind its length: write %s", name, p, p.Masked())
	}
	return p, nil
}

func exampleCIDR(version int) string {
	if version == 4 {
		return "10.244.0.0/16"
	}
	return "2001:db8:42::/56"
}

// complaints names what was given twice, and what nobody has asked for; where is what the object is,
// with a dot at its end, or "". known are the names that a typo is measured against.
func (o *object) complaints(where string, known []string) []string {
	var out []string
	seen := make(map[string]int)
	for _, f := range o.fields {
		lower := strings.ToLower(f.name)
		seen[lower]++
		switch {
		case seen[lower] == 2:
			out = append(out, fmt.Sprintf("field %s%s is given more than once; the last one counts", where, clip(f.name)))
		case seen[lower] == 1 && !f.used:
			text := fmt.Sprintf("field %s%s is not known and is ignored", where, clip(f.name))
			if near := Nearest(f.name, known); near != "" {
				text += fmt.Sprintf(" (did you mean %s?)", near)
			}
			out = append(out, text)
		}
	}
	return out
}

// Nearest returns the known name that text is likely a typo of, or "".
func Nearest(text string, known []string) string {
	best, least := "", 3 // at most two slips
	for _, k := range known {
		d := editDistance(strings.ToLower(clip(text)), strings.ToLower(k))
		if d < least && d*2 < len(k) {
			best, least = k, d
		}
	}
	return best
}

// editDistance counts insertions, deletions and substitutions of bytes (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
