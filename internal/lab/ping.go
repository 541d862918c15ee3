package lab

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"time"
)

// Ping says how to ping. The zero value sends three echo requests of ping's default size.
type Ping struct {
	Count        int // 0: 3
	Payload      int // bytes after the ICMP header; 0: 56
	DontFragment bool
}

var rttLine = regexp.MustCompile(`= [\d.]+/([\d.]+)/`)

// Ping sends echo requests from the namespace, all at once, and returns the average round trip. It is an error when one
// of them is not answered within a second.
func (ns *NS) Ping(ctx context.Context, to netip.Addr, p Ping) (time.Duration, error) {
	if p.Count == 0 {
		p.Count = 3
	}
	// Once ping has an answer, it waits for the others no longer than the interval or twice the longest round trip; -W is
	// only for when nothing is answered. With an interval of 50 ms, a machine that is busy for longer after the last
	// request "loses" a packet whose answer then comes.
	count := strconv.Itoa(p.Count)
	args := []string{"ping", "-n", "-q", "-c", count, "-l", count, "-i", "1", "-W", "1"}
	if p.Payload > 0 {
		args = append(args, "-s", strconv.Itoa(p.Payload))
	}
	if p.DontFragment {
		args = append(args, "-M", "do")
	}
	out, err := ns.Run(ctx, append(args, to.String())...)
	if err != nil {
		return 0, err
	}
	if !regexp.MustCompile(fmt.Sprintf(`\b%d received`, p.Count)).MatchString(out) {
		return 0, fmt.Errorf("ping from %s to %s lost packets: %s", ns.Name, to, out)
	}
	m := rttLine.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("ping from %s to %s: no round trip in %q", ns.Name, to, out)
	}
	ms, err := strconv.ParseFloat(m[1], 64)
	return time.Duration(ms * float64(time.Millisecond)), err
}

// PayloadFor is the ICMP payload in bytes that makes a packet of exactly mtu bytes for this address family.
func PayloadFor(mtu int, to netip.Addr) int {
	const icmpHeader, v4Header, v6Header = 8, 20, 40
	if to.Is4() {
		return mtu - v4Header - icmpHeader
	}
	return mtu - v6Header - icmpHeader
}
