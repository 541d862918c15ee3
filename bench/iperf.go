package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

// iperfRun says what iperf3 is to send.
type iperfRun struct {
	streams int
	udp     bool
	length  int // bytes of a UDP datagram's payload
	time    time.Duration
}

// iperfResult is what is taken from iperf3's JSON output. Bytes and packets are those that arrived.
type iperfResult struct {
	bytes      float64
	packets    float64 // of UDP
	seconds    float64
	cpuSeconds float64 // of the client and the server
}

// iperfPort is where iperf3 listens when nothing else is said.
const iperfPort = 5201

// iperfSlack is how much longer than its time iperf3 may take.
const iperfSlack = 10 * time.Second

// iperf sends from the first end of the path to the second.
func iperf(ctx context.Context, l *lab.Lab, p *Path, r iperfRun) (iperfResult, error) {
	ctx, cancel := context.WithTimeout(ctx, r.time+iperfSlack)
	defer cancel()
	server, err := l.Start(p.Ends[1].NS, "iperf3-server", "iperf3", "--server", "--one-off")
	if err != nil {
		return iperfResult{}, err
	}
	defer func() { _ = server.Kill() }()
	if err := waitListening(ctx, server.Pid(), iperfPort); err != nil {
		return iperfResult{}, fmt.Errorf("%w: %s", err, server.LogTail())
	}
	args := []string{"iperf3", "--json", "--client", p.Ends[1].Addr.String(), "--interval", "0",
		"--time", strconv.FormatFloat(r.time.Seconds(), 'f', -1, 64), "--parallel", strconv.Itoa(r.streams)}
	if r.udp {
		args = append(args, "--udp", "--bitrate", "0", "--length", strconv.Itoa(r.length))
	}
	out, err := p.Ends[0].NS.Run(ctx, args...)
	// A failure is told in the output, whatever the exit status.
	result, parseErr := parseIperf([]byte(out))
	if err != nil && (parseErr == nil || out == "") {
		return result, err
	}
	return result, parseErr
}

// waitListening waits until something listens on the TCP port in the process's network namespace.
func waitListening(ctx context.Context, pid, port int) error {
	const listen = "0A" // the state TCP_LISTEN in /proc/net/tcp
	want := fmt.Sprintf(":%04X", port)
	for {
		for _, file := range []string{"tcp", "tcp6"} {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, file))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("waiting for port %d: %w", port, err)
			}
			for _, line := range strings.Split(string(text), "\n") {
				if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], want) && f[3] == listen {
					return nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nothing listens on port %d: %w", port, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// parseIperf reads the output of iperf3 --json, version 3.9 or newer.
func parseIperf(out []byte) (iperfResult, error) {
	type sum struct {
		Bytes   float64 `json:"bytes"`
		Seconds float64 `json:"seconds"`
		Packets float64 `json:"packets"`
		Lost    float64 `json:"lost_packets"`
	}
	var j struct {
		Error string `json:"error"` // iperf3 3.12 exits with 0 all the same
		Start struct {
			Test struct {
				Protocol string `json:"protocol"`
			} `json:"test_start"`
		} `json:"start"`
		End struct {
			UDP      sum `json:"sum"`
			Received sum `json:"sum_received"`
			CPU      struct {
				Host   float64 `json:"host_total"`
				Remote float64 `json:"remote_total"`
			} `json:"cpu_utilization_percent"`
		} `json:"end"`
	}
	if err := json.Unmarshal(out, &j); err != nil {
		return iperfResult{}, fmt.Errorf("output of iperf3: %w: %.200q", err, out)
	}
	if j.Error != "" {
		return iperfResult{}, fmt.Errorf("iperf3: %s", j.Error)
	}
	r := iperfResult{bytes: j.End.Received.Bytes, seconds: j.End.Received.Seconds}
	if j.Start.Test.Protocol == "UDP" {
		// `bytes` are the sender's, in every sum of version 3.12: what arrived follows from the counts.
		u := j.End.UDP
		r.packets, r.seconds = u.Packets-u.Lost, u.Seconds
		if r.bytes = 0; u.Packets > 0 {
			r.bytes = u.Bytes * r.packets / u.Packets
		}
	}
	if r.bytes <= 0 || r.seconds <= 0 {
		return r, fmt.Errorf("iperf3 says that nothing arrived: %.0f bytes in %g s", r.bytes, r.seconds)
	}
	r.cpuSeconds = (j.End.CPU.Host + j.End.CPU.Remote) / 100 * r.seconds
	return r, nil
}
