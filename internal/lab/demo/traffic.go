package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

const (
	transferBytes = 1 << 30
	listenedBytes = 64 << 20
	iperfSeconds  = 5
)

// throughput shows a transfer that arrives unharmed and what iperf3 measures.
func (d *demo) throughput(family int) {
	path := d.path("a1", "b1", family)
	d.checkFamily(family, "1 GiB over TCP, SHA-256 the same at both ends", func() (string, error) {
		t, err := lab.StartTransfer(d.ctx, path, lab.TransferOptions{Bytes: transferBytes})
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

// iperfResult is the part of iperf3's JSON output that is shown.
type iperfResult struct {
	Error string `json:"error"` // iperf3 3.12 exits with 0 all the same
	End   struct {
		Received struct {
			BitsPerSecond float64 `json:"bits_per_second"`
		} `json:"sum_received"`
		Sent struct {
			Retransmits int `json:"retransmits"`
		} `json:"sum_sent"`
	} `json:"end"`
}

func (d *demo) iperf(p lab.Path) (string, error) {
	server, err := d.lab.Start(p.To, "iperf3", "iperf3", "--server", "--one-off", "--bind", p.Addr.String())
	if err != nil {
		return "", err
	}
	defer func() { _ = server.Kill() }()
	var r iperfResult
	// The server needs a moment until it listens.
	err = d.eventually(3*time.Second, func() (err error) {
		r, err = d.iperfClient(p)
		return err
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s, %d retransmits", gigabits(r.End.Received.BitsPerSecond), r.End.Sent.Retransmits), nil
}

func (d *demo) iperfClient(p lab.Path) (r iperfResult, err error) {
	out, err := p.From.Run(d.ctx, "iperf3", "--client", p.Addr.String(), "--time", fmt.Sprint(iperfSeconds), "--json")
	if jsonErr := json.Unmarshal([]byte(out), &r); jsonErr == nil && r.Error != "" {
		return r, fmt.Errorf("iperf3: %s", r.Error)
	} else if err == nil && jsonErr != nil {
		err = fmt.Errorf("output of iperf3: %w", jsonErr)
	}
	if err == nil && r.End.Received.BitsPerSecond == 0 {
		err = fmt.Errorf("iperf3 says that nothing arrived: %s", out)
	}
	return r, err
}

// unreadable listens at a node's underlay device while its pods talk, and wants to recognise nothing.
func (d *demo) unreadable() {
	d.check(d.ctx, "nothing of what pods send is readable on the underlay", func() (string, error) {
		var packets, readable atomic.Int64
		plaintext := lab.NewPlaintext()
		tap, err := d.a.NS.Tap("eth0", func(_ uint16, packet []byte) {
			packets.Add(1)
			if plaintext.In(packet) {
				readable.Add(1)
			}
		})
		if err != nil {
			return "", err
		}
		var errs []error
		for _, family := range families() {
			t, err := lab.StartTransfer(d.ctx, d.path("a1", "b1", family), lab.TransferOptions{Bytes: listenedBytes})
			if err == nil {
				_, err = t.Wait()
			}
			_, pingErr := d.pods["a1"].NS.Ping(d.ctx, d.pods["c1"].Address(family), lab.Ping{})
			errs = append(errs, err, pingErr)
		}
		errs = append(errs, tap.Stop())
		switch n, of := readable.Load(), packets.Load(); {
		case n > 0:
			errs = append(errs, fmt.Errorf("%d packets of %d show what is in them", n, of))
		case of < listenedBytes/(64<<10):
			errs = append(errs, fmt.Errorf("only %d packets were seen", of))
		}
		return fmt.Sprintf("%d packets looked at", packets.Load()), errors.Join(errs...)
	})
}
