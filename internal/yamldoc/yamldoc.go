// Package yamldoc decodes a YAML file strictly and remembers where everything stood, so that whoever checks the values
// later can still name file, line and key. go.yaml.in/yaml/v3 has a strict mode of its own (KnownFields), but it tells
// a Go type's name instead of the key's place, and forgets the lines of what it decoded.
//
// Nothing here is kept between calls; a Doc is immutable once Decode returned and safe for concurrent use.
package yamldoc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// An Error is one thing wrong with the file.
type Error struct {
	File  string
	Line  int    // 1-based; 0 when it concerns the file as a whole
	Key   string // "nodes[1].podCIDRs[0]"; empty when it concerns the file as a whole
	Value string // the wrong value; empty when there is none
	Why   string
	Fix   string // what would be right
}

// Error implements error: FILE:LINE: KEY: "VALUE" WHY; FIX.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	b.WriteString(": ")
	if e.Key != "" {
		b.WriteString(shortened(e.Key) + ": ")
	}
	if e.Value != "" {
		b.WriteString(strconv.Quote(shortened(e.Value)) + " ")
	}
	b.WriteString(e.Why)
	if e.Fix != "" {
		b.WriteString("; " + e.Fix)
	}
	return b.String()
}

// shortened keeps of a text what a message has room for. A file that is no configuration may be one value as a whole.
func shortened(text string) string {
	const most = 60 // characters
	n := 0
	for i := range text {
		if n++; n > most {
			return text[:i] + "…"
		}
	}
	return text
}

// A Doc knows where the keys of a decoded file stand.
type Doc struct {
	file  string
	lines map[string]int
}

// Line is the line of the key, or of the nearest key above it that the file has; 0 when there is none.
func (d *Doc) Line(key string) int {
	for key != "" {
		if line, ok := d.lines[key]; ok {
			return line
		}
		key = key[:max(0, strings.LastIndexAny(key, ".["))]
	}
	return 0
}

// Has reports whether the file sets the key.
func (d *Doc) Has(key string) bool {
	_, ok := d.lines[key]
	return ok
}

// A Finding is what is wrong with one key's value.
type Finding struct{ Key, Value, Why, Fix string }

// Error turns a finding into an error that names the file and the line.
func (d *Doc) Error(f Finding) error {
	return &Error{File: d.file, Line: d.Line(f.Key), Key: f.Key, Value: f.Value, Why: f.Why, Fix: f.Fix}
}

// Decode decodes data, the content of the named file, into the struct that into points to. Fields are found by their
// `yaml` tag; embedded structs tagged `,inline` lend their fields. Types may be string, bool, int, structs and slices
// of those. What the file does not mention, or sets to null, stays as it is in *into: put the defaults there.
// Every error is an *Error.
func Decode(file string, data []byte, into any) (*Doc, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var root yaml.Node
	switch err := dec.Decode(&root); {
	case errors.Is(err, io.EOF):
		return nil, emptyFile(file)
	case err != nil:
		return nil, syntaxError(file, err)
	}
	var second yaml.Node
	switch err := dec.Decode(&second); {
	case err == nil:
		return nil, &Error{File: file, Line: second.Line, Why: "a second YAML document begins here",
			Fix: "keep everything in one document, without a line ---"}
	case !errors.Is(err, io.EOF):
		return nil, syntaxError(file, err)
	}
	if len(root.Content) == 0 || isNull(root.Content[0]) {
		return nil, emptyFile(file)
	}
	d := &Doc{file: file, lines: map[string]int{}}
	if err := d.decode("", root.Content[0], reflect.ValueOf(into).Elem()); err != nil {
		return nil, err
	}
	return d, nil
}

func emptyFile(file string) error {
	return &Error{File: file, Why: "the file is empty",
		Fix: "it needs at least `cluster` and `nodes`; if it was being written, it is read again when it changes"}
}

// syntaxError takes the line out of the message of yaml, which has it in no other form.
func syntaxError(file string, err error) error {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 0
	if rest, ok := strings.CutPrefix(msg, "line "); ok {
		if num, why, ok := strings.Cut(rest, ": "); ok {
			if n, convErr := strconv.Atoi(num); convErr == nil {
				line, msg = n, why
			}
		}
	}
	fix := "look at this line and the one before it"
	switch {
	case strings.Contains(msg, "control characters"), strings.Contains(msg, "UTF-"):
		fix = "save it as plain text in UTF-8"
	case line == 0: // yaml counts lines from 0 and leaves that one out
		fix = "look at the first line"
	}
	return &Error{File: file, Line: line, Why: "not valid YAML: " + msg, Fix: fix}
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func (d *Doc) decode(key string, n *yaml.Node, v reflect.Value) error {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if isNull(n) {
		return nil
	}
	if key != "" {
		d.lines[key] = n.Line
	}
	switch v.Kind() {
	case reflect.Struct:
		return d.decodeStruct(key, n, v)
	case reflect.Slice:
		return d.decodeSlice(key, n, v)
	case reflect.String, reflect.Bool, reflect.Int:
		return d.decodeScalar(key, n, v)
	}
	return d.wrong(key, n, "cannot be read into a "+v.Type().String(), "")
}

func (d *Doc) wrong(key string, n *yaml.Node, why, fix string) error {
	value := ""
	if n.Kind == yaml.ScalarNode {
		value = n.Value
	}
	return &Error{File: d.file, Line: n.Line, Key: key, Value: value, Why: why, Fix: fix}
}

func (d *Doc) decodeScalar(key string, n *yaml.Node, v reflect.Value) error {
	if n.Kind != yaml.ScalarNode {
		return d.wrong(key, n, "is "+kindName(n)+" where one value belongs", "write a single value after the colon")
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(n.Value)
	case reflect.Bool:
		var b bool
		if err := n.Decode(&b); err != nil {
			return d.wrong(key, n, "is neither true nor false", "write true or false")
		}
		v.SetBool(b)
	default:
		var i int
		if err := n.Decode(&i); err != nil || n.Tag != "!!int" {
			return d.wrong(key, n, "is not a whole number", "write digits only")
		}
		v.SetInt(int64(i))
	}
	return nil
}

func (d *Doc) decodeSlice(key string, n *yaml.Node, v reflect.Value) error {
	if n.Kind != yaml.SequenceNode {
		return d.wrong(key, n, "is "+kindName(n)+" where a list belongs",
			"write [first, second] or a line `- item` for each")
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, item := range n.Content {
		if err := d.decode(fmt.Sprintf("%s[%d]", key, i), item, out.Index(i)); err != nil {
			return err
		}
	}
	v.Set(out)
	return nil
}

func (d *Doc) decodeStruct(key string, n *yaml.Node, v reflect.Value) error {
	if n.Kind != yaml.MappingNode {
		return d.wrong(key, n, "is "+kindName(n)+" where keys with values belong", "write `key: value`, a line for each")
	}
	fields := map[string]reflect.Value{}
	names := collect(v, fields, nil)
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, item := n.Content[i], n.Content[i+1]
		full := k.Value
		if key != "" {
			full = key + "." + k.Value
		}
		if first, dup := seen[k.Value]; dup {
			return &Error{File: d.file, Line: k.Line, Key: full, Why: "the key stands here a second time",
				Fix: fmt.Sprintf("keep this one or the one in line %d", first)}
		}
		seen[k.Value] = k.Line
		f, ok := fields[k.Value]
		if !ok {
			return &Error{File: d.file, Line: k.Line, Key: full, Why: "unknown key", Fix: suggest(k.Value, names)}
		}
		if err := d.decode(full, item, f); err != nil {
			return err
		}
		if d.Has(full) {
			d.lines[full] = k.Line // the key's own line: a list's or a mapping's content may begin below it
		}
	}
	return nil
}

// collect maps the keys that v takes to its fields, and appends them to names in their order.
func collect(v reflect.Value, fields map[string]reflect.Value, names []string) []string {
	for i := range v.NumField() {
		name, opt, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		switch {
		case opt == "inline":
			names = collect(v.Field(i), fields, names)
		case name != "":
			fields[name] = v.Field(i)
			names = append(names, name)
		}
	}
	return names
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	return "a single value"
}
