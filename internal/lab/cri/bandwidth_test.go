//go:build runtime

package cri_test

import (
	"errors"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/warren-net/warren/internal/lab/cri"
)

// The limit in bits per second. containerd asks the plugin for a burst of 2^32-1 bits: so much passes before it limits.
const (
	limit      = 20e6
	limitText  = "20M"
	burstBytes = (1<<32 - 1) / 8
)

// bandwidth: limits for what a pod sends and for what it receives, asked for as Kubernetes does.
func bandwidth(c *cluster) {
	a, b := c.nodes[0], c.nodes[1]
	limited := c.run(a, "limited", cri.PodOptions{Annotations: map[string]string{
		"kubernetes.io/ingress-bandwidth": limitText, "kubernetes.io/egress-bandwidth": limitText,
	}})
	free := c.run(a, "free", cri.PodOptions{})
	for _, way := range []struct {
		name     string
		transfer func(c *cluster, from *node, to *cri.Pod, m *meter)
	}{{"out of the pod", download}, {"into the pod", upload}} {
		var with, without meter
		way.transfer(c, b, free, &without)
		way.transfer(c, b, limited, &with)
		c.t.Logf("%s: without a limit %.0f Mbit/s; with one of %.0f, after %d MB, %.1f", way.name, without.rate()/1e6,
			limit/1e6, with.bytes>>20, with.last/1e6)
		if !with.slow() {
			c.t.Errorf("%s: still %.1f Mbit/s after %d MB, with a limit of %.0f", way.name, with.last/1e6, with.bytes>>20,
				limit/1e6)
		}
		if without.slow() || without.rate() < 3*with.last {
			c.t.Errorf("%s: %.1f Mbit/s without a limit, %.1f with one: it is not the limit that limits", way.name,
				without.rate()/1e6, with.last/1e6)
		}
	}
	c.deleteAll([]*cri.Pod{limited, free})
}

// download and upload transfer until the meter has seen enough.
func download(c *cluster, from *node, to *cri.Pod, m *meter) {
	c.t.Helper()
	url := "http://" + netip.AddrPortFrom(to.V6, cri.Port).String() + "/send?bytes=" + strconv.Itoa(maxBytes)
	request, err := http.NewRequestWithContext(c.ctx, http.MethodGet, url, nil)
	c.ok(err)
	m.begin()
	response, err := cri.Client(from.NS).Do(request)
	c.ok(err)
	defer response.Body.Close()
	if _, err = io.Copy(m, response.Body); !errors.Is(err, errEnough) {
		c.t.Fatalf("transfer from pod %s ended after %d bytes: %v", to.Name, m.bytes, err)
	}
}

// upload counts what the kernel took, which is a send buffer ahead of what the pod got.
func upload(c *cluster, from *node, to *cri.Pod, m *meter) {
	c.t.Helper()
	url := "http://" + netip.AddrPortFrom(to.V4, cri.Port).String() + "/take"
	request, err := http.NewRequestWithContext(c.ctx, http.MethodPost, url, io.TeeReader(zeros{}, m))
	c.ok(err)
	m.begin()
	if _, err = cri.Client(from.NS).Do(request); !errors.Is(err, errEnough) {
		c.t.Fatalf("transfer to pod %s ended after %d bytes: %v", to.Name, m.bytes, err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// maxBytes is more than the burst, and what the limit lets through meanwhile, and what buffers hold.
const maxBytes = 2 * burstBytes

// window is what a rate is measured over: a second at the limit.
const window = limit / 8

// slowWindows is how many windows in a row have to be at the limit: the first may begin in the burst.
const slowWindows = 3

var errEnough = errors.New("seen enough")

// A meter sees bytes pass, until they have been slow for some time or are more than a limit could have let through.
type meter struct {
	bytes       int
	start, now  time.Time
	windowStart time.Time
	windowBytes int
	last        float64 // rate in the last window, bits per second
	slowOnes    int     // windows in a row
}

func (m *meter) begin() {
	m.start = time.Now()
	m.windowStart = m.start
}

func (m *meter) Write(b []byte) (int, error) {
	m.now = time.Now()
	m.bytes += len(b)
	m.windowBytes += len(b)
	if m.windowBytes < window {
		return len(b), nil
	}
	m.last = 8 * float64(m.windowBytes) / m.now.Sub(m.windowStart).Seconds()
	m.windowStart, m.windowBytes = m.now, 0
	if m.last <= 1.5*limit {
		m.slowOnes++
	} else {
		m.slowOnes = 0
	}
	if m.slow() || m.bytes > maxBytes-window {
		return len(b), errEnough
	}
	return len(b), nil
}

func (m *meter) slow() bool { return m.slowOnes >= slowWindows }

// rate is that of the whole transfer, in bits per second.
func (m *meter) rate() float64 { return 8 * float64(m.bytes) / m.now.Sub(m.start).Seconds() }
