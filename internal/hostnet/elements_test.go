package hostnet

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/nftables"
	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// elementsMessage is a part of a set's dump as the kernel makes it.
func elementsMessage(t *testing.T, flags mdnetlink.HeaderFlags, keys ...string) mdnetlink.Message {
	t.Helper()
	e := mdnetlink.NewAttributeEncoder()
	e.String(unix.NFTA_SET_ELEM_LIST_TABLE, "warren")
	e.Nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(list *mdnetlink.AttributeEncoder) error {
		for _, key := range keys {
			list.Nested(unix.NFTA_LIST_ELEM, func(elem *mdnetlink.AttributeEncoder) error {
				elem.Nested(unix.NFTA_SET_ELEM_KEY, func(data *mdnetlink.AttributeEncoder) error {
					data.Bytes(unix.NFTA_DATA_VALUE, []byte(key))
					return nil
				})
				elem.Uint32(unix.NFTA_SET_ELEM_FLAGS, 0)
				return nil
			})
		}
		return nil
	})
	b, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return mdnetlink.Message{Header: mdnetlink.Header{Flags: flags}, Data: append(make([]byte, 4), b...)}
}

// TestTornSets: a set that changed or was rehashed between two messages of its dump is dumped again.
func TestTornSets(t *testing.T) {
	const ok, interrupted = mdnetlink.Multi, mdnetlink.Multi | mdnetlink.DumpInterrupted
	m := func(flags mdnetlink.HeaderFlags, keys ...string) mdnetlink.Message {
		return elementsMessage(t, flags, keys...)
	}
	later := func(m mdnetlink.Message) mdnetlink.Message {
		m.Data[3]++ // the number of the last transaction
		return m
	}
	for _, tc := range []struct {
		name  string
		parts []mdnetlink.Message
		want  []string
		torn  bool
	}{
		{"no element", nil, nil, false},
		{"one message", []mdnetlink.Message{m(ok, "0001", "0002")}, []string{"0001", "0002"}, false},
		{"two messages", []mdnetlink.Message{m(ok, "0001", "0002"), m(ok, "0003")}, []string{"0001", "0002", "0003"},
			false},
		{"changed between", []mdnetlink.Message{m(ok, "0001", "0002"), m(interrupted, "0003")}, nil, true},
		{"changed between, as Linux tells it", []mdnetlink.Message{m(ok, "0001", "0002"), later(m(ok, "0003"))}, nil, true},
		{"rehashed between", []mdnetlink.Message{m(ok, "0001", "0002"), m(ok, "0001")}, nil, true}, // 0003 is missing
	} {
		keys, err := readElements(tc.parts)
		if errors.Is(err, netlink.ErrDumpInterrupted) != tc.torn || !tc.torn && err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		var got []string
		for _, k := range keys {
			got = append(got, string(k))
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
	for _, data := range [][]byte{nil, {10, 0, 0}, {10, 0, 0, 0, 255, 0, 3, 0}} {
		if _, err := readElements([]mdnetlink.Message{{Data: data}}); err == nil {
			t.Errorf("message % x was taken", data)
		}
	}
}

// TestElementsOfManySizes: what is read is what is there, in one message or many, after the set grew and shrank.
func TestElementsOfManySizes(t *testing.T) {
	w := newWorld(t)
	w.tun("warren0")
	w.apply(testSpec())
	fw, set := newFirewall(), nodeSets(inetTable())[0]
	first, err := fw.elements(set)
	w.must(err)
	var keys [][]byte
	for i := range 3000 {
		keys = append(keys, []byte{198, 51, byte(i >> 8), byte(i)})
	}
	have := 0
	for _, want := range []int{1, 100, 50, 2500, 20, 3000, 1000, 0} {
		tx := fw.begin(inetTable())
		if want > have {
			tx.change(set, keys[have:want], (*nftables.Conn).SetAddElements)
		} else {
			tx.change(set, keys[want:have], (*nftables.Conn).SetDeleteElements)
		}
		w.must(tx.commit())
		have = want
		got, err := fw.elements(set)
		w.must(err)
		if extra, lost := difference(got, slices.Concat(first, keys[:want])), difference(slices.Concat(first,
			keys[:want]), got); len(extra)+len(lost) > 0 {
			t.Errorf("of %d elements %d are missing, and %d are not in the set", want, len(lost), len(extra))
		}
	}
	gone, err := fw.elements(nodeSets(bridgeTable())[0])
	if err != nil || len(gone) != 0 {
		t.Errorf("a set that does not exist: %q, %v", gone, err)
	}
}
