package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

// iperfRun says what iperf3 is to send.
type iperfRun struct {
	from, to  End
	streams   int
	direction direction
	udp       bool
	length    int           // bytes of a UDP datagram's payload
	time      time.Duration // of which iperf3 takes whole seconds only: it is rounded up
	// congestionControl is set on the sockets of both ends: a namespace would refuse one that the machine has not made
	// its default nor allowed to everybody, and the machine's settings are not the bench's to change.
	congestionControl string
}

// A direction says who sends.
type direction int

const (
	forward direction = iota // from the client to the server
	reverse                  // from the server to the client
	both                     // as many streams each way, at once
)

// iperfResult is what is taken from iperf3's JSON output: what arrived.
type iperfResult struct {
	forward float64 // bytes at the server
	reverse float64 // bytes at the client
	packets float64 // of UDP
	seconds float64
}

// iperfPort is where iperf3 listens when nothing else is said.
const iperfPort = 5201

// iperfSlack is how much longer than its time iperf3 may take.
const iperfSlack = 10 * time.Second

func (r iperfResult) bytes() float64 { return r.forward + r.reverse }

// iperf runs a client and a server.
func iperf(ctx context.Context, l *lab.Lab, r iperfRun) (iperfResult, error) {
	ctx, cancel := context.WithTimeout(ctx, r.time+iperfSlack)
	defer cancel()
	server, err := l.Start(r.to.NS, "iperf3-server", "iperf3", "--server", "--one-off")
	if err != nil {
		return iperfResult{}, err
	}
	defer func() { _ = server.Kill() }()
	if err := waitListening(ctx, server.Pid(), iperfPort); err != nil {
		return iperfResult{}, fmt.Errorf("%w: %s", err, server.LogTail())
	}
	args := []string{"iperf3", "--json", "--client", r.to.Addr.String(), "--interval", "0",
		"--time", strconv.Itoa(int(math.Ceil(r.time.Seconds()))), "--parallel", strconv.Itoa(r.streams)}
	if !r.udp {
		args = append(args, "--congestion", r.congestionControl)
	}
	switch r.direction {
	case reverse:
		args = append(args, "--reverse")
	case both:
		args = append(args, "--bidir")
	}
	if r.udp {
		args = append(args, "--udp", "--bitrate", "0", "--length", strconv.Itoa(r.length))
	}
	out, err := r.from.NS.Run(ctx, args...)
	// A failure is told in the output, whatever the exit status.
	result, parseErr := parseIperf([]byte(out), r.congestionControl)
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

// parseIperf reads the output of iperf3 --json, version 3.9 or newer. It fails when an end used another congestion
// control than this.
func parseIperf(out []byte, congestionControl string) (iperfResult, error) {
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
				Protocol string  `json:"protocol"`
				Length   float64 `json:"blksize"` // of a UDP datagram's payload
				Reverse  int     `json:"reverse"`
			} `json:"test_start"`
		} `json:"start"`
		End struct {
			Received sum    `json:"sum_received"`
			Reverse  sum    `json:"sum_received_bidir_reverse"`
			Sender   string `json:"sender_tcp_congestion"`
			Receiver string `json:"receiver_tcp_congestion"`
		} `json:"end"`
	}
	if err := json.Unmarshal(out, &j); err != nil {
		return iperfResult{}, fmt.Errorf("output of iperf3: %w: %.200q", err, out)
	}
	if j.Error != "" {
		return iperfResult{}, fmt.Errorf("iperf3: %s", j.Error)
	}
	for _, cc := range []string{j.End.Sender, j.End.Receiver} {
		if cc != "" && cc != congestionControl {
			return iperfResult{}, fmt.Errorf("iperf3 used congestion control %s instead of %s", cc, congestionControl)
		}
	}
	received := j.End.Received
	r := iperfResult{forward: received.Bytes, reverse: j.End.Reverse.Bytes, seconds: received.Seconds}
	if j.Start.Test.Reverse != 0 {
		r.forward, r.reverse = 0, received.Bytes
	}
	if j.Start.Test.Protocol == "UDP" {
		// Packets are those that the receiver knows of, the lost ones among them; what was lost behind the last that
		// arrived it can't know. The sender's own count, `sum`, would take those for received.
		r.packets = received.Packets - received.Lost
		r.forward = r.packets * j.Start.Test.Length
	}
	if r.bytes() <= 0 || r.seconds <= 0 {
		return r, fmt.Errorf("iperf3 says that nothing arrived: %.0f bytes in %g s", r.bytes(), r.seconds)
	}
	return r, nil
}
