package kubernetes

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/warren-net/warren/control"
)

// A store is where the reflector puts what it sees. It keeps claims, not Node objects, and which of them are news.
type store struct {
	self   string // name of the own node
	wake   func() // something may be news
	synced func() // a list is complete

	mu      sync.Mutex
	listed  bool // known is all there is
	begun   bool // the first update was taken
	known   map[string]known
	changed map[string]struct{} // names
	reborn  map[string]struct{} // names whose object is another one now, so that what the old one said ends first
	own     own
}

type known struct {
	uid  types.UID
	node control.Node
}

// own is what the own Node object says that is no claim.
type own struct {
	there       bool
	uid         types.UID
	version     uint64 // resourceVersion
	missing     gap
	broken      string
	annotations map[string]string // Warren's
	unavailable *condition
}

// A condition is NetworkUnavailable as it stands in an object.
type condition struct {
	status corev1.ConditionStatus
	since  time.Time
}

var _ cache.TransformingStore = (*store)(nil)

func newStore(self string, wake, synced func()) *store {
	return &store{self: self, wake: wake, synced: synced, known: map[string]known{}, changed: map[string]struct{}{},
		reborn: map[string]struct{}{}}
}

// Add implements cache.ReflectorStore.
func (s *store) Add(obj any) error { return s.put(obj) }

// Update implements cache.ReflectorStore.
func (s *store) Update(obj any) error { return s.put(obj) }

func (s *store) put(obj any) error {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return fmt.Errorf("got %T where a Node was due", obj)
	}
	s.mu.Lock()
	s.apply(n)
	s.mu.Unlock()
	s.wake()
	return nil
}

// Delete implements cache.ReflectorStore.
func (s *store) Delete(obj any) error {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return fmt.Errorf("got %T where a Node was due", obj)
	}
	s.mu.Lock()
	s.remove(n.Name)
	s.mu.Unlock()
	s.wake()
	return nil
}

// Replace implements cache.ReflectorStore. After a time without contact it finds the difference.
func (s *store) Replace(list []any, _ string) error {
	s.mu.Lock()
	there := make(map[string]struct{}, len(list))
	for _, obj := range list {
		if n, ok := obj.(*corev1.Node); ok {
			there[n.Name] = struct{}{}
			s.apply(n)
		}
	}
	for name := range s.known {
		if _, ok := there[name]; !ok {
			s.remove(name)
		}
	}
	if _, ok := there[s.self]; !ok {
		s.own = own{}
	}
	s.listed = true
	s.mu.Unlock()
	s.synced()
	s.wake()
	return nil
}

// Resync implements cache.ReflectorStore.
func (s *store) Resync() error { return nil }

// Transformer implements cache.TransformingStore: what the reflector collects before it has all is as small as it can
// be, since a Node object may have 50 KiB.
func (s *store) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		n, ok := obj.(*corev1.Node)
		if !ok {
			return obj, nil
		}
		slim := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion,
			CreationTimestamp: n.CreationTimestamp, Annotations: warrens(n.Annotations)}}
		slim.Spec.PodCIDRs = n.Spec.PodCIDRs
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				slim.Status.Addresses = append(slim.Status.Addresses, a)
			}
		}
		if n.Name == s.self {
			slim.Status.Conditions = n.Status.Conditions
		}
		return slim, nil
	}
}

// warrens are Warren's annotations of an object.
func warrens(all map[string]string) map[string]string {
	var out map[string]string
	for name, value := range all {
		if strings.HasPrefix(name, Domain) {
			if out == nil {
				out = map[string]string{}
			}
			out[name] = value
		}
	}
	return out
}

// apply takes up an object; s.mu is held.
func (s *store) apply(obj *corev1.Node) {
	n, missing := translate(obj, obj.Name == s.self)
	if obj.Name == s.self {
		s.applyOwn(obj, missing, n.Broken)
	}
	before, had := s.known[obj.Name]
	same := had && before.uid == obj.UID
	switch {
	case missing != (gap{}) && !same:
		if had {
			s.remove(obj.Name)
		}
		return
	case missing != (gap{}):
		n = control.Node{Name: n.Name, Broken: missing.String()}
	}
	if same && before.node.Equal(&n) {
		return
	}
	if had && !same && n.Broken != "" {
		s.reborn[n.Name] = struct{}{}
	}
	s.known[n.Name] = known{types.UID(strings.Clone(string(obj.UID))), n}
	s.changed[n.Name] = struct{}{}
}

// applyOwn keeps what the own object says beside the claim, unless it is older than what is known.
func (s *store) applyOwn(obj *corev1.Node, missing gap, broken string) {
	version, _ := strconv.ParseUint(obj.ResourceVersion, 10, 64) // 0 where it is no number: then the last one counts
	if s.own.uid == obj.UID && version != 0 && version < s.own.version {
		return
	}
	s.own = own{there: true, uid: obj.UID, version: version, missing: missing, broken: broken,
		annotations: warrens(obj.Annotations)}
	for _, c := range obj.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable {
			s.own.unavailable = &condition{c.Status, c.LastTransitionTime.Time}
		}
	}
}

// patched takes up the own object as a patch of ours left it, which the watch may tell later.
func (s *store) patched(obj *corev1.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, missing := translate(obj, true)
	s.applyOwn(obj, missing, n.Broken)
}

// remove forgets a node; s.mu is held.
func (s *store) remove(name string) {
	if name == s.self {
		s.own = own{}
	}
	if _, had := s.known[name]; had {
		delete(s.known, name)
		s.changed[name] = struct{}{}
	}
}

// take returns what is news, if anything is.
func (s *store) take() (control.Update, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var u control.Update
	switch {
	case !s.listed:
		return u, false
	case !s.begun:
		s.begun, u.Whole = true, true
		for _, name := range slices.Sorted(maps.Keys(s.known)) {
			u.Nodes = append(u.Nodes, s.known[name].node)
		}
		clear(s.changed)
		clear(s.reborn)
		return u, true
	case len(s.reborn) > 0:
		u.Gone = slices.Sorted(maps.Keys(s.reborn))
		clear(s.reborn)
		return u, true
	case len(s.changed) == 0:
		return u, false
	}
	for _, name := range slices.Sorted(maps.Keys(s.changed)) {
		if k, there := s.known[name]; there {
			u.Nodes = append(u.Nodes, k.node)
		} else {
			u.Gone = append(u.Gone, name)
		}
	}
	clear(s.changed)
	return u, true
}

// ownNode returns what is known of the own object; listed says whether all there is was seen.
func (s *store) ownNode() (o own, listed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.own, s.listed
}
