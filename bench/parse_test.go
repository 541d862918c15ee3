package bench

import (
	"math"
	"strings"
	"testing"
)

// What iperf3 3.12 says, without what is not read.
const (
	iperfTCP = `{"start": {"test_start": {"protocol": "TCP"}}, "end": {
		"sum_sent": {"seconds": 1.00008, "bytes": 2812805120},
		"sum_received": {"seconds": 1.25, "bytes": 2801008640, "bits_per_second": 1},
		"sender_tcp_congestion": "cubic", "receiver_tcp_congestion": "cubic",
		"cpu_utilization_percent": {"host_total": 20, "remote_total": 60}}}`
	iperfBidir = `{"start": {"test_start": {"protocol": "TCP"}}, "end": {
		"sum_received": {"seconds": 2, "bytes": 600}, "sum_received_bidir_reverse": {"seconds": 2, "bytes": 400},
		"cpu_utilization_percent": {"host_total": 50, "remote_total": 50}}}`
	iperfReverse = `{"start": {"test_start": {"protocol": "TCP", "reverse": 1}}, "end": {
		"sum_received": {"seconds": 2, "bytes": 600},
		"cpu_utilization_percent": {"host_total": 50, "remote_total": 50}}}`
	// 1,000 sent, 250 lost on the way to the 980th, 20 lost behind it.
	iperfUDP = `{"start": {"test_start": {"protocol": "UDP", "blksize": 1400}}, "end": {
		"sum": {"seconds": 2, "bytes": 1400000, "lost_packets": 250, "packets": 1000},
		"sum_received": {"seconds": 2, "bytes": 1022000, "lost_packets": 250, "packets": 980},
		"cpu_utilization_percent": {"host_total": 1, "remote_total": 1}}}`
)

func TestParseIperf(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want iperfResult
	}{
		"TCP":     {iperfTCP, iperfResult{forward: 2801008640, seconds: 1.25}},
		"reverse": {iperfReverse, iperfResult{reverse: 600, seconds: 2}},
		"both":    {iperfBidir, iperfResult{forward: 600, reverse: 400, seconds: 2}},
		"UDP":     {iperfUDP, iperfResult{forward: 1022000, packets: 730, seconds: 2}},
	} {
		if got, err := parseIperf([]byte(c.text), "cubic"); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
	}
	for text, want := range map[string]string{
		`{"start": {}, "end": {}, "error": "unable to connect"}`: "unable to connect",
		`{"start": {}, "end": {}}`:                               "nothing arrived",
		`{"start": {}, "end": {"sender_tcp_congestion": "bbr"}}`: "bbr instead of cubic",
		`iperf3: no such option`:                                 "no such option",
	} {
		if _, err := parseIperf([]byte(text), "cubic"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", text, err, want)
		}
	}
}

func TestCPUModel(t *testing.T) {
	const text = "processor\t: 0\nmodel name\t: A CPU @ 3.00GHz\nstepping\t: 1\n"
	if got := cpuModel(text); got != "A CPU @ 3.00GHz" {
		t.Errorf("model %q", got)
	}
	if got := cpuModel(""); got != "" {
		t.Errorf("model %q of nothing", got)
	}
}

func TestParsePing(t *testing.T) {
	const out = "64 bytes from 10.244.2.2: icmp_seq=1 ttl=62 time=0.212 ms\n" +
		"64 bytes from 10.244.2.2: icmp_seq=2 ttl=62 time=1.5 ms\n" +
		"rtt min/avg/max/mdev = 0.212/0.9/1.5/0.1 ms\n"
	times, err := parsePing(out, pingRun{2, 2})
	if err != nil || len(times) != 2 || math.Abs(times[0]-212) > 1e-6 || times[1] != 1500 {
		t.Errorf("round trips %v, %v", times, err)
	}
	if _, err := parsePing(out, pingRun{3, 3}); err == nil {
		t.Error("a missing answer is no error")
	}
	if times, err := parsePing(out, pingRun{3, 2}); err != nil || len(times) != 2 {
		t.Errorf("an answer may be missing, but: %v, %v", times, err)
	}
	if _, err := parsePing("", pingRun{1, 0}); err == nil {
		t.Error("no answer at all is no error")
	}
}

func TestParseDevices(t *testing.T) {
	const text = `Inter-|   Receive            |  Transmit
 face |bytes    packets errs |bytes    packets errs
    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0    0
  eth0:10 2 0 0 0 0 0 0 30 4 0 0 0 0 0 0
`
	stats, err := parseDevices(text)
	if want := (devStats{10, 2, 30, 4}); err != nil || len(stats) != 2 || stats["eth0"] != want {
		t.Errorf("%v, %v, want eth0 with %v", stats, err, want)
	}
	if _, err := parseDevices("eth0: x 2 0 0 0 0 0 0 30 4 0 0 0 0 0 0"); err == nil {
		t.Error("a counter that is no number is no error")
	}
}

func TestParseBusy(t *testing.T) {
	if s, err := parseBusy("cpu  100 20 30 4000 500 60 140 8 0 0\ncpu0 1"); err != nil || s != 3.5 {
		t.Errorf("busy for %v s, %v, want 3.5", s, err)
	}
	for _, bad := range []string{"", "cpu 1 2", "cpu 1 2 3 4 5 6 x 8", "42 (name) S 1 2 3 4 5 6"} {
		if _, err := parseBusy(bad); err == nil {
			t.Errorf("%q is taken for the machine's statistics", bad)
		}
	}
}

func TestParseCounters(t *testing.T) {
	const rules = `iifname "eth0" ip saddr 10.244.0.0/16 counter packets 17 bytes 900 accept
		iifname "eth0" ip daddr 10.244.0.0/16 counter packets 4 bytes 200`
	if n, err := parseCounters(rules); err != nil || n != 21 {
		t.Errorf("%d packets, %v, want 21", n, err)
	}
	first, _, _ := strings.Cut(rules, "accept")
	for _, listing := range []string{"table inet warrenbench {}", first} {
		if _, err := parseCounters(listing); err == nil {
			t.Errorf("a missing counter is no error: %q", listing)
		}
	}
}
