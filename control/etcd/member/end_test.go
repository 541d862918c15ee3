package member_test

import (
	"context"
	"testing"
	"time"

	"github.com/warren-net/warren/control/etcd/member"
)

// TestEndWithoutMajority: a member that has not found the majority since it started ends when it is asked to.
func TestEndWithoutMajority(t *testing.T) {
	a, b := first(t, "a"), newHost(t, "b")
	b.admit(a)
	b.run() // until it votes
	b.end()
	a.end()

	ctx, stop := context.WithTimeout(t.Context(), 2*time.Second)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- member.Run(ctx, a.o) }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("it does not end")
	}
}
