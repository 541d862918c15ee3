package hostnet

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestCookiesAreNotTracked answers datagrams to the port as a node under a flood does: to the kernel nobody answered
// them. What has another type, or leaves another port, is tracked as ever.
func TestCookiesAreNotTracked(t *testing.T) {
	w := newWorld(t)
	outside := w.underlay()
	w.tun("warren0")
	s := testSpec()
	w.apply(s)
	if c := w.apply(s); len(c.Made) > 0 {
		t.Errorf("made again: %v", c.Made)
	}
	w.run("nft add table inet look; nft add chain inet look in '{ type filter hook input priority 0; }'")
	const cookie, data = 3, 4
	for _, host := range []string{"192.0.2.1", "2001:db8::1"} {
		for _, k := range []struct {
			name   string
			port   int
			answer byte
			seen   bool // that there was an answer
		}{
			{"a cookie", int(s.CookiePort), cookie, false},
			{"data", int(s.CookiePort), data, true},
			{"another port", 50000, cookie, true},
		} {
			node, err := net.ListenUDP("udp", &net.UDPAddr{Port: k.port})
			w.must(err)
			var far net.Conn
			w.in(outside, func() {
				far, err = net.Dial("udp", net.JoinHostPort(host, strconv.Itoa(k.port)))
				w.must(err)
			})
			w.must(node.SetDeadline(time.Now().Add(5 * time.Second)))
			w.must(far.SetDeadline(time.Now().Add(5 * time.Second)))
			w.run("nft flush chain inet look in")
			w.run(fmt.Sprintf("nft add rule inet look in udp dport %d ct status seen-reply counter", k.port))
			for range 2 { // the second one comes after the answer to the first
				_, err = far.Write([]byte{1, 0, 0, 0})
				w.must(err)
				buf := make([]byte, 8)
				_, from, err := node.ReadFromUDPAddrPort(buf)
				w.must(err)
				_, err = node.WriteToUDPAddrPort([]byte{k.answer, 0, 0, 0}, from)
				w.must(err)
				_, err = far.Read(buf)
				w.must(err)
			}
			if seen := !strings.Contains(w.run("nft list chain inet look in"), "packets 0 "); seen != k.seen {
				t.Errorf("%s to %s: the kernel knows of an answer: %t, want %t", k.name, host, seen, k.seen)
			}
			w.must(node.Close())
			w.must(far.Close())
		}
	}
}
