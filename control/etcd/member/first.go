package member

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/warren-net/warren/control/etcd"
)

// renewFirstPeers asks the others for the list of members, where this one begins with such a list: etcd refuses to
// start by one that is older than the last change. The list that it got when it was admitted does where nobody answers.
func (o *Options) renewFirstPeers(ctx context.Context) error {
	if len(o.FirstPeers) < 2 || len(o.Others) == 0 {
		return nil
	}
	c, err := clientAt(o, o.Others)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	resp, err := c.Etcd().MemberList(ctx)
	if err = c.Explain(err); errors.Is(err, etcd.ErrDenied) {
		return fmt.Errorf("%w: %w", ErrRemoved, err)
	} else if err != nil {
		o.Log.Debug("the members are not asked for their list", "error", err)
		return nil
	}
	self, peers := "https://"+o.Peer, map[string]string{o.Name: "https://" + o.Peer}
	there := false
	for _, m := range resp.Members {
		switch {
		case slices.Contains(m.PeerURLs, self):
			there = true
		case len(m.PeerURLs) > 0:
			peers[etcd.PeerName(m)] = m.PeerURLs[0]
		}
	}
	if !there {
		return fmt.Errorf("%w: the others do not list %s", ErrRemoved, o.Peer)
	}
	o.FirstPeers = peers
	return nil
}
