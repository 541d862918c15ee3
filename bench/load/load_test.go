package load

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
)

// here is the place where the test runs; the generators meet on loopback, which needs no root.
type here struct{}

func (here) Do(f func() error) error { return f() }

func loopback() Route {
	return Route{From: here{}, To: here{}, Addr: netip.MustParseAddr("127.0.0.1")}
}

func TestDatagrams(t *testing.T) {
	d, err := OpenDatagrams(loopback(), 64)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const rate, duration = 2000, 200 * time.Millisecond
	for range 2 { // what an earlier probe sent is not counted again
		out, err := d.Probe(t.Context(), Offer{Rate: rate, Time: duration})
		if err != nil {
			t.Fatal(err)
		}
		// A machine that is busy with other tests sends less, but never more.
		if want := int(rate * duration.Seconds()); out.Sent < want/4 || out.Sent > want+batch || out.Received > out.Sent ||
			out.Loss() > 0.05 || out.Took < duration {
			t.Errorf("%+v, want about %d sent and received", out, want)
		}
	}
	full, err := d.Probe(t.Context(), Offer{Time: duration})
	if err != nil || full.Sent < 4*rate || full.Received == 0 || full.Received > full.Sent {
		t.Errorf("at full rate: %+v, %v", full, err)
	}
	if _, err := OpenDatagrams(loopback(), headerSize-1); err == nil {
		t.Error("a datagram without room for its number is no error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Probe(ctx, Offer{Rate: 1, Time: time.Minute}); !errors.Is(err, context.Canceled) {
		t.Errorf("a probe that is not wanted any more: error %v", err)
	}
}

func TestConnect(t *testing.T) {
	const duration = 300 * time.Millisecond
	r, err := Connect(t.Context(), loopback(), ConnectOptions{Clients: 8, Time: duration})
	if err != nil || r.Connections < 50 || r.Took < duration || r.Took > duration+5*time.Second {
		t.Errorf("%+v, %v, want some hundred connections in %v", r, err, duration)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Connect(ctx, loopback(), ConnectOptions{Clients: 1, Time: time.Minute}); err == nil {
		t.Error("an interrupted run is no error")
	}
}

// TestConnectCountsResets holds that a connection which is reset is counted as such, and ends nothing.
func TestConnectCountsResets(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		b := make([]byte, 1)
		for n := 0; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if n%4 == 0 {
				_ = conn.(*net.TCPConn).SetLinger(0)
			} else if _, err := conn.Read(b); err == nil {
				_, _ = conn.Write(b)
			}
			_ = conn.Close()
		}
	}()
	c := &connectClient{route: loopback(), ports: []int{l.Addr().(*net.TCPAddr).Port}, open: make(map[int32]bool)}
	if _, err := c.run(t.Context(), ConnectOptions{Clients: 4, Time: 300 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	if c.done < 10 || c.reset < c.done/5 || c.reset > c.done {
		t.Errorf("%d done, %d reset, want a third as many", c.done, c.reset)
	}
}

func TestFlows(t *testing.T) {
	const flows, duration = 100, 300 * time.Millisecond
	r, err := Flows(t.Context(), loopback(), FlowsOptions{Flows: flows, Warm: duration / 2, Time: duration})
	if err != nil || r.Moving < flows*9/10 || r.Bytes < 1<<20 || r.All <= r.Bytes || r.Took < duration {
		t.Errorf("%+v, %v, want %d flows moving for %v", r, err, flows, duration)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := Flows(ctx, loopback(), FlowsOptions{Flows: 2, Time: time.Minute}); err == nil {
		t.Error("an interrupted run is no error")
	}
}

func TestUnknownCongestionControl(t *testing.T) {
	r := loopback()
	r.CongestionControl = "nonesuch"
	if _, err := Flows(t.Context(), r, FlowsOptions{Flows: 1, Time: time.Second}); err == nil {
		t.Error("a congestion control that the kernel lacks is no error")
	}
}
