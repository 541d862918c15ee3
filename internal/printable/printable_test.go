package printable

import (
	"strings"
	"testing"
)

func TestName(t *testing.T) {
	for in, want := range map[string]string{
		"node-1.example": "node-1.example", "": "", "ü": "ü",
		"a\nlevel=INFO": `"a\nlevel=INFO"`, "\x1b[2J": `"\x1b[2J"`, `a"b`: `"a\"b"`, "a\u202eb": `"a\u202eb"`,
		"\xff": `"\xff"`, strings.Repeat("n", 61): strings.Repeat("n", 60) + "…",
		strings.Repeat("n", 60):       strings.Repeat("n", 60),
		strings.Repeat("n", 59) + "ü": `"` + strings.Repeat("n", 59) + `\xc3…"`,
	} {
		if got := Name(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}
