// Package printable makes what somebody else chose fit for a line of a log or of a table.
package printable

import (
	"fmt"
	"strings"
	"unicode"
)

// most is how many bytes of a name are shown.
const most = 60

// Name is a name as it is, or quoted where it has something in it that would break the line or steer a terminal. A long
// one is cut.
func Name(s string) string {
	if len(s) > most {
		s = s[:most] + "…"
	}
	q := fmt.Sprintf("%q", s)
	if q == `"`+s+`"` {
		return s
	}
	return q
}

// Text is a text with a question mark for each character that would break the line or steer a terminal: controls, also
// those of C1, and what turns the direction of writing.
func Text(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
