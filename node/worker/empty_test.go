package worker

import (
	"testing"

	devmem "github.com/warren-net/warren/device/memory"
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/tunnel"
)

// emptySocket has an empty datagram whenever it is looked at.
type emptySocket struct{ tunnel.Socket }

func (emptySocket) Receive(in *tunnel.Inbound) error {
	in.N, in.Slots[0].N = 1, 0
	return nil
}

// TestEmptyDatagramsAreWork holds that a lane in which empty datagrams arrive, from whomever, takes turns with the
// others: a turn in which it received some was not one with nothing to do.
func TestEmptyDatagramsAreWork(t *testing.T) {
	queue := devmem.New(devmem.Config{Queues: 1}).Queues()[0]
	w := New(Config{Lanes: []Lane{{Queue: queue, Socket: emptySocket{}}}})
	work, _, err := w.drainSocket()
	if err != nil || work == 0 || w.Counters.Drops[forwarder.EncapShort].Load() != 1 {
		t.Errorf("an empty datagram is %d bytes of work, %d are counted, error %v", work,
			w.Counters.Drops[forwarder.EncapShort].Load(), err)
	}
}
