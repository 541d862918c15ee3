package tunnel

import (
	"net/netip"
	"testing"
)

func TestAppendJoinsWhatOneSegmentationDescribes(t *testing.T) {
	a := netip.MustParseAddrPort("192.0.2.1:4789")
	b := netip.MustParseAddrPort("192.0.2.2:4789")
	type in struct {
		to   netip.AddrPort
		tos  uint8
		size int
	}
	tests := []struct {
		name string
		in   []in
		want []Send // To, TOS, Len, SegmentSize, Segments
	}{
		{"equal sizes", []in{{a, 0, 100}, {a, 0, 100}, {a, 0, 100}}, []Send{{To: a, Len: 300, SegmentSize: 100,
			Segments: 3}}},
		{"short last", []in{{a, 0, 100}, {a, 0, 60}}, []Send{{To: a, Len: 160, SegmentSize: 100, Segments: 2}}},
		{"nothing after a short one", []in{{a, 0, 100}, {a, 0, 60}, {a, 0, 60}},
			[]Send{{To: a, Len: 160, SegmentSize: 100, Segments: 2}, {To: a, Len: 60, SegmentSize: 60, Segments: 1}}},
		{"larger", []in{{a, 0, 100}, {a, 0, 101}},
			[]Send{{To: a, Len: 100, SegmentSize: 100, Segments: 1}, {To: a, Len: 101, SegmentSize: 101, Segments: 1}}},
		{"another peer", []in{{a, 0, 100}, {b, 0, 100}, {a, 0, 100}},
			[]Send{{To: a, Len: 100, SegmentSize: 100, Segments: 1}, {To: b, Len: 100, SegmentSize: 100, Segments: 1},
				{To: a, Len: 100, SegmentSize: 100, Segments: 1}}},
		{"another TOS", []in{{a, 0, 100}, {a, 2, 100}},
			[]Send{{To: a, Len: 100, SegmentSize: 100, Segments: 1}, {To: a, TOS: 2, Len: 100, SegmentSize: 100, Segments: 1}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var o Outbound
			for _, d := range tt.in {
				o.Append(Send{To: d.to, TOS: d.tos}, make([]byte, 22), make([]byte, d.size-22))
			}
			if len(o.Sends) != len(tt.want) {
				t.Fatalf("%d sends, want %d: %+v", len(o.Sends), len(tt.want), o.Sends)
			}
			pieces := 0
			for k, got := range o.Sends {
				if got.First != pieces {
					t.Errorf("send %d begins at piece %d, want %d", k, got.First, pieces)
				}
				pieces += got.N
				sum := 0
				for _, p := range o.Pieces[got.First : got.First+got.N] {
					sum += len(p)
				}
				if sum != got.Len {
					t.Errorf("send %d: pieces have %d bytes, Len says %d", k, sum, got.Len)
				}
				got.First, got.N = 0, 0
				if got != tt.want[k] {
					t.Errorf("send %d is %+v, want %+v", k, got, tt.want[k])
				}
			}
		})
	}
}

func TestAppendRespectsTheLimitsOfOneSend(t *testing.T) {
	var o Outbound
	to := netip.MustParseAddrPort("[2001:db8::1]:4789")
	for range 200 {
		o.Append(Send{To: to}, make([]byte, 22), make([]byte, 1420))
	}
	total := 0
	for _, s := range o.Sends {
		total += s.Segments
		if s.Segments > MaxSendSegments || s.Len > maxSendBytes6 {
			t.Errorf("a send of %d datagrams, %d bytes", s.Segments, s.Len)
		}
	}
	if total != 200 {
		t.Errorf("%d datagrams, want 200", total)
	}
}
