package kubernetes

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

// testList is a list of three nodes, the own one and one without anything among them.
func testList(t testing.TB) (*corev1.NodeList, []byte) {
	list := &corev1.NodeList{Items: []corev1.Node{*object("a", 1), *object("b", 2), {}}}
	list.ResourceVersion, list.Continue = "7", "more"
	list.Items[2].Name = "c"
	for i := range list.Items {
		list.Items[i].UID, list.Items[i].ResourceVersion = "some-uid", "6"
		list.Items[i].Labels = map[string]string{"a": "b"}
		list.Items[i].Status.Images = []corev1.ContainerImage{{Names: []string{"example.org/image"}}}
	}
	text, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return list, text
}

// TestReadList compares with the whole list decoded at once and stripped.
func TestReadList(t *testing.T) {
	list, text := testList(t)
	slim := newStore("a", nil, nil).Transformer()
	want := &corev1.NodeList{ListMeta: list.ListMeta}
	for i := range list.Items {
		n, err := slim(&list.Items[i])
		if err != nil {
			t.Fatal(err)
		}
		want.Items = append(want.Items, *n.(*corev1.Node))
	}
	got, err := readList(bytes.NewReader(text), slim)
	if err != nil {
		t.Fatal(err)
	}
	if !equality.Semantic.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if len(got.Items[0].Status.Conditions) == 0 || len(got.Items[1].Status.Conditions) != 0 {
		t.Error("conditions are to be kept of the own node alone")
	}
	for i := range text {
		if _, err := readList(bytes.NewReader(text[:i]), slim); err == nil {
			t.Fatalf("a list that ends after %d of %d bytes is taken for whole", i, len(text))
		}
	}
}

func TestReadListOdd(t *testing.T) {
	slim := newStore("a", nil, nil).Transformer()
	for text, want := range map[string]string{
		`{"items":null,"metadata":{"resourceVersion":"7"}}`:            "",
		`{"metadata":{"resourceVersion":"7"}}`:                         "",
		`{"kind":"NodeList","metadata":{"resourceVersion":"7"},"x":1}`: "",
		`{"items":[]}`: "no resourceVersion",
		`{}`:           "no resourceVersion",
		``:             "EOF",
		`[]`:           "[ where { was due",
		`{"items":{},"metadata":{"resourceVersion":"7"}}`:                        "{ where a list was due",
		`{"items":[1],"metadata":{"resourceVersion":"7"}}`:                       "cannot unmarshal",
		`{"items":[{"spec":{"podCIDRs":1}}],"metadata":{"resourceVersion":"7"}}`: "cannot unmarshal",
		`<html>`: "invalid character",
	} {
		_, err := readList(strings.NewReader(text), slim)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// FuzzReadList holds that whatever is taken for a list is read as encoding/json reads it as a whole.
func FuzzReadList(f *testing.F) {
	_, text := testList(f)
	f.Add(text)
	f.Add([]byte(`{"items":null,"metadata":{"resourceVersion":"7"}}`))
	slim := newStore("a", nil, nil).Transformer()
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := readList(bytes.NewReader(text), slim)
		if err != nil {
			return
		}
		var whole struct {
			Items []listed `json:"items"`
		}
		if json.NewDecoder(bytes.NewReader(text)).Decode(&whole) != nil || strings.Count(string(text), "items") > 1 ||
			strings.Contains(strings.ToLower(string(text)), `"it`) != strings.Contains(string(text), `"items"`) {
			return // a name twice, or in another case, which encoding/json takes
		}
		if len(got.Items) != len(whole.Items) {
			t.Fatalf("%d nodes, want %d", len(got.Items), len(whole.Items))
		}
		for i := range whole.Items {
			n, _ := slim(whole.Items[i].node())
			if !reflect.DeepEqual(&got.Items[i], n) {
				t.Errorf("got  %+v\nwant %+v", got.Items[i], n)
			}
		}
	})
}
