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

// TestAppendJoinsPiecesInMemory: datagrams that were written one behind the other leave as one piece, but never with
// what another send holds.
func TestAppendJoinsPiecesInMemory(t *testing.T) {
	a := Send{To: netip.MustParseAddrPort("192.0.2.1:51820")}
	b := Send{To: netip.MustParseAddrPort("192.0.2.2:51820")}
	mem := make([]byte, 1000)
	var o Outbound
	o.Append(a, mem[:100], nil)
	o.Append(a, mem[100:110], mem[110:200])
	o.Append(a, nil, mem[200:300])
	o.Append(b, mem[300:400], nil) // another send
	o.Append(b, mem[500:600], nil) // not adjacent
	o.Append(b, make([]byte, 100), nil)
	o.Append(b, mem[600:700:700], nil)
	o.Append(b, mem[700:800], nil) // behind one that may not grow
	want := [][][]byte{{mem[:300]}, {mem[300:400], mem[500:600], make([]byte, 100), mem[600:700], mem[700:800]}}
	if len(o.Sends) != len(want) {
		t.Fatalf("%d sends, want %d", len(o.Sends), len(want))
	}
	for k, s := range o.Sends {
		pieces := o.Pieces[s.First : s.First+s.N]
		if len(pieces) != len(want[k]) {
			t.Fatalf("send %d has %d pieces, want %d", k, len(pieces), len(want[k]))
		}
		for n, p := range pieces {
			if len(p) != len(want[k][n]) || n != 2 && &p[0] != &want[k][n][0] {
				t.Errorf("send %d, piece %d: %d bytes, or they lie elsewhere; want %d", k, n, len(p), len(want[k][n]))
			}
		}
	}
}
