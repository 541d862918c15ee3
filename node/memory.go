package node

import (
	"context"
	"time"

	"github.com/warren-net/warren/control/remember"
)

// A memory says when what is known of the cluster is written down.
type memory struct {
	every time.Duration // at most so often
	soon  time.Duration // after the first change
	dirty chan struct{} // there is something to write down
	said  string        // why the last attempt failed; of the goroutine that writes
}

func newMemory() memory {
	return memory{every: 30 * time.Second, soon: 2 * time.Second, dirty: make(chan struct{}, 1)}
}

// changed notes that there is something to write down.
func (m *memory) changed() { poke(m.dirty) }

// keep writes down what is known of the cluster until ctx ends: soon after it has changed, but not more often than
// every now and then, and again when that failed.
func (f *feed) keep(ctx context.Context) {
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.dirty:
		}
		wait(ctx, max(f.soon, time.Until(last.Add(f.every))))
		if ctx.Err() != nil {
			f.changed() // which keepLast sees
			return
		}
		last = time.Now()
		if !f.write() {
			f.changed()
		}
	}
}

// keepLast writes down what keep has not.
func (f *feed) keepLast() {
	select {
	case <-f.dirty:
		f.write()
	default:
	}
}

// write writes down what is known of the cluster, and reports whether it could.
func (f *feed) write() bool {
	f.mu.Lock()
	known := remember.Cluster{Node: f.name, CIDRs: f.cluster, Nodes: f.ledger.Nodes()}
	f.mu.Unlock()
	err := remember.Write(f.dir, known)
	if err == nil {
		f.said = ""
		return true
	}
	if why := err.Error(); why != f.said {
		f.said = why
		f.log.Warn("a start without the control plane will know an older state of the cluster; it is tried again", "error",
			err)
	}
	return false
}
