package yamldoc

import (
	"errors"
	"strings"
	"testing"
)

type inner struct {
	Names []string `yaml:"names"`
	Size  int      `yaml:"size"`
}

// Inlined is exported so that reflection may set its fields.
type Inlined struct {
	Title string `yaml:"title"`
}

type document struct {
	Inlined `yaml:",inline"`
	On      bool    `yaml:"on"`
	Inner   inner   `yaml:"inner"`
	Many    []inner `yaml:"many"`
}

func TestDecode(t *testing.T) {
	in := "title: x\non: true\ninner: {names: [a, 5], size: 3}\nmany:\n  - size: 1\n  -\n    names:\n      - z\n"
	doc := document{Inner: inner{Size: 9}}
	d, err := Decode("f", []byte(in), &doc)
	if err != nil {
		t.Fatal(err)
	}
	if doc.Title != "x" || !doc.On || doc.Inner.Names[1] != "5" || doc.Inner.Size != 3 || doc.Many[1].Names[0] != "z" {
		t.Fatalf("%+v", doc)
	}
	for key, line := range map[string]int{"title": 1, "inner.size": 3, "many[1].names[0]": 8, "many[1].size": 7, "no": 0} {
		if got := d.Line(key); got != line {
			t.Errorf("line of %s: %d, want %d", key, got, line)
		}
	}
	if !d.Has("title") || d.Has("many[1].size") {
		t.Error("Has is wrong")
	}
}

func TestDecodeKeepsDefaults(t *testing.T) {
	doc := document{On: true, Inner: inner{Size: 7, Names: []string{"d"}}}
	if _, err := Decode("f", []byte("title: x\ninner:\non: null\n"), &doc); err != nil {
		t.Fatal(err)
	}
	if !doc.On || doc.Inner.Size != 7 || len(doc.Inner.Names) != 1 {
		t.Fatalf("%+v", doc)
	}
}

func TestDecodeErrors(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"empty", "", "f: the file is empty; it needs"},
		{"comment only", "# nothing\n", "f: the file is empty; it needs"},
		{"null", "~\n", "f: the file is empty; it needs"},
		{"separator only", "---\n", "f: the file is empty; it needs"},
		{"unknown", "tilte: x\n", "f:1: tilte: unknown key; did you mean title?"},
		{"unknown case", "on: true\nTitle: x\n", "f:2: Title: unknown key; did you mean title?"},
		{"unknown far", "inner:\n  wireguardKey: x\n", "f:2: inner.wireguardKey: unknown key; the keys here are names, size"},
		{"duplicate", "title: x\non: true\ntitle: y\n",
			"f:3: title: the key stands here a second time; keep this one or the one in line 1"},
		{"two documents", "title: x\n---\ntitle: y\n", "f:2: a second YAML document begins here"},
		{"syntax", "title: [x\n", "not valid YAML"},
		{"tab", "inner:\n\tsize: 1\n", "f:2: not valid YAML"},
		{"text as number", "inner: {size: many}\n", `f:1: inner.size: "many" is not a whole number`},
		{"float as number", "inner: {size: 1.5}\n", `inner.size: "1.5" is not a whole number`},
		{"huge number", "inner: {size: 99999999999999999999}\n", "is not a whole number"},
		{"bool", "on: perhaps\n", `f:1: on: "perhaps" is neither true nor false`},
		{"list for a value", "title: [x]\n", "f:1: title: is a list where one value belongs"},
		{"value for a list", "many: 3\n", `f:1: many: "3" is a single value where a list belongs`},
		{"value for a mapping", "inner: 3\n", `f:1: inner: "3" is a single value where keys`},
		{"another file", strings.Repeat("ä", 59) + "\n" + strings.Repeat("b", 99) + "\n",
			`f:1: "` + strings.Repeat("ä", 59) + ` …" is a single value where keys`},
		{"a long key", strings.Repeat("k", 70) + ": 1\n", "f:1: " + strings.Repeat("k", 60) + "…: unknown key"},
		{"root is a list", "- a\n", "f:1: is a list where keys"},
		{"merge key", "x: &x {size: 1}\n", "f:1: x: unknown key"},
		{"alias to itself", "inner: &a {names: [*a]}\n", "names[0]: is a mapping where one value belongs"},
		{"first line", "\t- x\n", "f: not valid YAML: found character that cannot start any token; look at the first line"},
		{"binary", "\x00\x01", "f: not valid YAML: control characters are not allowed; save it as plain text in UTF-8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var doc document
			_, err := Decode("f", []byte(c.in), &doc)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q in it", err, c.want)
			}
			var e *Error
			if !errors.As(err, &e) || strings.Contains(err.Error(), "\n") {
				t.Errorf("not one line of *Error: %T %v", err, err)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("title: x\ninner: {names: [a]}\n"))
	f.Add([]byte("many: &a [{size: 1}, *a]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var doc document
		d, err := Decode("f", data, &doc)
		if (d == nil) == (err == nil) {
			t.Fatal("either a document or an error")
		}
	})
}
