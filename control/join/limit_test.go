package join

import (
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"
)

// TestOneStrangerIsNotAll: what one address asks leaves room for others, and what strangers ask for those who have a
// certificate.
func TestOneStrangerIsNotAll(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLimiter(func() time.Time { return now })
	ask := func(from string, by who, times int) int {
		n := 0
		for range times {
			if l.allow(from, by) {
				n++
			}
		}
		return n
	}
	if n := ask("192.0.2.1", stranger, 1000); n != perSecondEach {
		t.Errorf("one address asked %d times", n)
	}
	for i := range 1000 { // of one /64
		l.allow(fmt.Sprintf("2001:db8::%x", i+1), stranger)
	}
	if n := ask("192.0.2.2", stranger, 10); n != 0 {
		t.Errorf("strangers asked %d times more than all may", n)
	}
	if n := ask("192.0.2.1", host, 1000); n != perSecondEach {
		t.Errorf("a host with a certificate asked %d times", n)
	}
	now = now.Add(time.Second)
	for i := range 5 {
		ask(fmt.Sprintf("2001:db8::%x", i+1), stranger, 20)
	}
	if n := ask("192.0.2.2", stranger, 10); n != 10 {
		t.Errorf("beside one /64 another address asked %d times", n)
	}
}

// TestOneStrangersConnections: an address that opens connections and says nothing leaves room for others, and has
// its own back when it closes them.
func TestOneStrangersConnections(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := limitListener(inner)
	defer l.Close()
	accepted := make(chan net.Conn, maxConns)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	dial := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	var open []net.Conn
	for range maxConnsEach {
		dial("127.0.0.2")
		open = append(open, <-accepted)
	}
	more := dial("127.0.0.2")
	_ = more.SetReadDeadline(time.Now().Add(time.Minute)) // of a socket that is open
	if _, err := more.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one address has more connections than it may: %v", err)
	}
	dial("127.0.0.3")
	(<-accepted).Close()
	open[0].Close()
	dial("127.0.0.2")
	open[0] = <-accepted
	for _, c := range open {
		c.Close()
	}
	if used := len(l.(*limited).free); used > 1 { // but for the one that waits
		t.Errorf("%d connections count that are closed", used)
	}
}
