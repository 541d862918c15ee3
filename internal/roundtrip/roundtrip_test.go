package roundtrip

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

func TestMeasure(t *testing.T) {
	lab.NeedRoot(t)
	l := lab.ForTest(t, lab.Options{Prefix: "rtt"})
	n, err := l.AddNode("a")
	if err != nil {
		t.Fatal(err)
	}
	nobody := netip.MustParseAddr("192.0.2.99")
	err = n.NS.Do(func() error {
		got, err := Measure(context.Background(), []netip.Addr{n.V4, n.V6, lab.OutsideV4(), lab.OutsideV6(), nobody},
			500*time.Millisecond)
		if err != nil {
			return err
		}
		for _, a := range []netip.Addr{n.V4, n.V6, lab.OutsideV4(), lab.OutsideV6()} {
			if got[a] <= 0 || got[a] > 500*time.Millisecond {
				t.Errorf("%v: %v", a, got[a])
			}
		}
		if _, there := got[nobody]; there || len(got) != 4 {
			t.Errorf("%v", got)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if got, err := Measure(ctx, []netip.Addr{nobody}, time.Minute); err != nil || len(got) > 0 {
		t.Errorf("after its end: %v, %v", got, err)
	}
}
