package kubernetes

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/warren-net/warren/control"
)

// Reasons of the condition NetworkUnavailable, as `kubectl describe node` shows them.
const (
	ReasonUp   = "WarrenIsUp"
	ReasonDown = "WarrenIsDown"
)

// Publish implements control.Publisher. What somebody else removes or changes is put back.
func (s *Source) Publish(self control.Node) {
	want := annotations(&self)
	s.mu.Lock()
	s.urgent = s.urgent || s.want == nil || !maps.Equal(s.want, want)
	s.want = want
	s.mu.Unlock()
	poke(s.told)
}

// Ready tells the cluster whether pods of this node can talk, by the node's condition NetworkUnavailable: while that is
// True the scheduler sends no pods that need a network. It does not wait, and the latest call counts; until the first
// one the condition is left as it is.
//
// A daemon that ends and leaves its device for a successor should leave the condition alone: pods go on, and a cluster
// whose nodes are tainted one after the other during an upgrade moves pods for nothing.
func (s *Source) Ready(up bool) {
	s.mu.Lock()
	s.urgent = s.urgent || s.ready == nil || *s.ready != up
	s.ready = &up
	s.mu.Unlock()
	poke(s.told)
}

// Leave says that the node's network is unavailable, and waits until the API server has it or ctx ends. It is for the
// end of a node that takes its network away, and works after Run has returned.
func (s *Source) Leave(ctx context.Context) error {
	s.Ready(false)
	own, _ := s.store.ownNode()
	_, err := s.patchCondition(ctx, own.unavailable, false)
	if err != nil {
		return s.client.patchTrouble("nodes/status", s.opt.NodeName, "pods may be scheduled to this node", err).err
	}
	return nil
}

// A publisher keeps the own object as it is wanted.
type publisher struct {
	*Source
	names, cond backoff

	// What somebody else does to this node's annotations: a person, or a second machine of the same name, whose daemon
	// puts back its own ones as this one does. Both would write as fast as they can.
	stands bool // what was written last has not been undone
	undone int
	last   time.Time // when it was undone last
}

// How a fight goes: undone so often it is told of, after so long without it is over, and a write waits so long at most.
const (
	fightTold = 3
	fightOver = 5 * time.Minute
	fightPace = time.Minute
)

// publish keeps the own object as it is wanted until ctx ends.
func (s *Source) publish(ctx context.Context) {
	p := publisher{Source: s}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.told:
		case <-timer.C:
		}
		s.mu.Lock()
		want, ready, urgent := s.want, s.ready, s.urgent
		s.urgent = false
		s.mu.Unlock()
		if urgent {
			p = publisher{Source: s}
			s.set(troubleFight, nil)
		}
		own, _ := s.store.ownNode()
		if !own.there {
			continue // its coming wakes us
		}
		if want != nil {
			p.annotate(ctx, want, own.annotations)
		}
		if ready != nil {
			p.condition(ctx, own.unavailable, *ready)
		}
		timer.Reset(p.rest())
	}
}

// rest is how long it is until something is due again.
func (p *publisher) rest() time.Duration {
	first, now := time.Hour, time.Now()
	for _, t := range []time.Time{p.names.next, p.cond.next} {
		if !t.IsZero() {
			first = min(first, max(0, t.Sub(now)))
		}
	}
	if p.undone > 0 {
		first = min(first, max(0, p.last.Add(fightOver).Sub(now)))
	}
	return first
}

// annotate makes what the object has into what is wanted.
func (p *publisher) annotate(ctx context.Context, want, have map[string]string) {
	now := time.Now()
	if p.undone > 0 && now.Sub(p.last) >= fightOver {
		p.undone = 0
		p.set(troubleFight, nil)
	}
	change := difference(want, have)
	if len(change) == 0 {
		p.set(troublePublish, nil)
		p.names = backoff{}
		return
	}
	if p.stands {
		p.stands, p.last = false, now
		p.undone++
		if p.undone >= fightTold {
			p.set(troubleFight, fought(p.opt.NodeName, have))
		}
		if p.undone > 1 {
			p.names.next = now.Add(min(time.Second<<min(p.undone, 10), fightPace))
		}
	}
	if p.names.wait(now) {
		return
	}
	obj, err := p.client.patch(ctx, p.opt.NodeName, patch{kind: types.MergePatchType,
		body: map[string]any{"metadata": map[string]any{"annotations": change}}})
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		p.names.failed(now)
		p.set(troublePublish, p.client.patchTrouble("nodes", p.opt.NodeName, "the other nodes do not know of changes here "+
			"until it can be written; it is tried again", err))
		return
	}
	p.names, p.stands = backoff{}, true
	p.set(troublePublish, nil)
	p.store.patched(obj)
	p.opt.Log.Info("told the cluster of this node", "node", p.opt.NodeName, "changed", len(change))
}

func fought(node string, have map[string]string) *trouble {
	return &trouble{"fight", fmt.Errorf("somebody else writes Warren's annotations of Node %s, where %s is now %s: a "+
		"person or a tool, or a second machine of that name that runs Warren; `kubectl get node %s -o yaml "+
		"--show-managed-fields` shows who; each machine needs a name of its own", node, AnnotationPublicKey,
		excerpt(have[AnnotationPublicKey]), node)}
}

// difference is what a merge patch has to say so that the daemon's annotations become the wanted ones: nil removes.
func difference(want, have map[string]string) map[string]*string {
	change := map[string]*string{}
	for _, name := range published {
		wanted, is := want[name]
		has, had := have[name]
		switch {
		case is && (!had || has != wanted):
			change[name] = &wanted
		case !is && had:
			change[name] = nil
		}
	}
	return change
}

// condition makes the condition that the object has into what is wanted.
func (p *publisher) condition(ctx context.Context, have *condition, up bool) {
	now := time.Now()
	if p.cond.wait(now) {
		return
	}
	if have != nil && have.status == status(up) {
		p.set(troubleCondition, nil)
		p.cond = backoff{}
		return
	}
	obj, err := p.patchCondition(ctx, have, up)
	if ctx.Err() != nil {
		return
	}
	// Also after a success: whoever else sets the condition, such as a cloud's route controller, is answered now and then
	// and not in a race.
	p.cond.failed(now)
	if err != nil {
		p.set(troubleCondition, p.client.patchTrouble("nodes/status", p.opt.NodeName, "the condition NetworkUnavailable is "+
			"not right until it can be written, so pods may be kept from this node; it is tried again", err))
		return
	}
	p.set(troubleCondition, nil)
	p.store.patched(obj)
}

func status(up bool) corev1.ConditionStatus {
	if up {
		return corev1.ConditionFalse
	}
	return corev1.ConditionTrue
}

// patchCondition writes the condition; the other conditions are not touched.
func (s *Source) patchCondition(ctx context.Context, before *condition, up bool) (*corev1.Node, error) {
	now := time.Now().UTC().Truncate(time.Second)
	since := now
	if before != nil && before.status == status(up) {
		since = before.since
	}
	reason, message := ReasonUp, "Warren is running on this node"
	if !up {
		reason, message = ReasonDown, "Warren has stopped on this node and taken its pod network away"
	}
	return s.client.patch(ctx, s.opt.NodeName, patch{kind: types.StrategicMergePatchType, sub: "status",
		body: map[string]any{"status": map[string]any{"conditions": []map[string]any{{
			"type": corev1.NodeNetworkUnavailable, "status": status(up), "reason": reason, "message": message,
			"lastHeartbeatTime": now, "lastTransitionTime": since,
		}}}}})
}

// A backoff says when the next attempt is due. The zero value: at once.
type backoff struct {
	next  time.Time
	delay time.Duration
}

func (b *backoff) wait(now time.Time) bool { return now.Before(b.next) }

func (b *backoff) failed(now time.Time) {
	b.delay = min(max(2*b.delay, firstRetry), longestRetry)
	b.next = now.Add(b.delay + rand.N(b.delay))
}
