package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

const (
	transferBytes = 1 << 30
	iperfSeconds  = 5
)

// throughput shows a transfer that arrives unharmed and what iperf3 measures.
func (d *demo) throughput(family int) {
	path := d.path("a1", "b1", family)
	d.checkFamily(family, "1 GiB over TCP, SHA-256 the same at both ends", func() (string, error) {
		t, err := lab.StartTransfer(d.ctx, path, transferBytes)
		if err != nil {
			return "", err
		}
		r, err := t.Wait()
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%.1f s, %s, %.4x…", r.Took.Seconds(), gigabits(r.BitsPerSecond()), r.SHA256), nil
	})
	d.checkFamily(family, fmt.Sprintf("iperf3, one stream, %d s, across nodes", iperfSeconds), func() (string, error) {
		return d.iperf(path)
	})
}

// path leads from one pod to another.
func (d *demo) path(from, to string, family int) lab.Path {
	return lab.Path{From: d.pods[from].NS, To: d.pods[to].NS, Addr: d.pods[to].Address(family)}
}

func gigabits(bitsPerSecond float64) string { return fmt.Sprintf("%.2f Gbit/s", bitsPerSecond/1e9) }

func (d *demo) iperf(p lab.Path) (string, error) {
	server, err := d.lab.Start(p.To, "iperf3", "iperf3", "--server", "--one-off", "--bind", p.Addr.String())
	if err != nil {
		return "", err
	}
	defer func() { _ = server.Kill() }()
	var out string
	// The server needs a moment until it listens.
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		out, err = p.From.Run(d.ctx, "iperf3", "--client", p.Addr.String(), "--time", fmt.Sprint(iperfSeconds), "--json")
		if err == nil || !strings.Contains(err.Error(), "refused") || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		return "", err
	}
	var result struct {
		End struct {
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
			Sent struct {
				Retransmits int `json:"retransmits"`
			} `json:"sum_sent"`
		} `json:"end"`
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		return "", fmt.Errorf("output of iperf3: %w", err)
	}
	if result.End.Received.BitsPerSecond == 0 {
		return "", fmt.Errorf("iperf3 says that nothing arrived: %s", out)
	}
	return fmt.Sprintf("%s, %d retransmits", gigabits(result.End.Received.BitsPerSecond), result.End.Sent.Retransmits), nil
}
