package kubernetes

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/warren-net/warren/control"
)

// said is what the daemon tells in the tests.
func said() control.Node {
	return control.Node{Name: "ignored", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.9.0/24")},
		PublicKey: testKey('k'), WireGuardPort: 51821, Encapsulation: control.WireGuard, Port: 4790,
		MAC:       []byte{0x0e, 0x57, 1, 2, 3, 4},
		Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::99")}}
}

var saidAnnotations = map[string]string{AnnotationPublicKey: testKey('k').String(), AnnotationWireGuardPort: "51821",
	AnnotationEncapsulation: "wireguard", AnnotationVXLANPort: "4790", AnnotationVXLANMAC: "0e:57:01:02:03:04",
	AnnotationAddresses: "198.51.100.1,2001:db8::99"}

// has waits until the object has exactly these annotations of Warren's, and all others that it had.
func has(t *testing.T, a *apiServer, want map[string]string) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("got %v", a.get("a").Annotations)
		}
	}()
	eventually(t, "the annotations are as wanted", func() bool {
		n := a.get("a")
		return maps.Equal(warrens(n.Annotations), want) && n.Annotations["node.alpha.kubernetes.io/ttl"] == "0"
	})
}

// TestPublish writes everything, then less, and puts back what others remove. Everybody reads what was meant.
func TestPublish(t *testing.T) {
	a := newAPIServer(t)
	n := object("a", 1)
	delete(n.Annotations, AnnotationPublicKey)
	a.set(n)
	r := start(t, a, "b")
	r.update(control.Update{Whole: true})
	self := start(t, a, "a")
	own := claim("a", 1)
	own.PublicKey = [32]byte{}
	self.update(control.Update{Whole: true, Nodes: []control.Node{own}})
	self.source.Publish(said())
	has(t, a, saidAnnotations)
	told := said()
	told.Name, told.PodCIDRs, told.Order = own.Name, own.PodCIDRs, own.Order
	r.update(control.Update{Nodes: []control.Node{told}})
	self.update(control.Update{Nodes: []control.Node{told}})

	// The same again, and a kubelet's heartbeats, are no reason to write.
	count := a.called("patch")
	self.source.Publish(said())
	a.change("a", heartbeat)
	less := control.Node{PublicKey: testKey('l')}
	self.source.Publish(less)
	has(t, a, map[string]string{AnnotationPublicKey: testKey('l').String()})
	if got := a.called("patch"); got != count+1 {
		t.Errorf("%d patches, want one", got-count)
	}
	a.change("a", func(n *corev1.Node) { n.Annotations = map[string]string{"node.alpha.kubernetes.io/ttl": "0"} })
	has(t, a, map[string]string{AnnotationPublicKey: testKey('l').String()})

	// A person's own word stays.
	a.change("a", func(n *corev1.Node) { n.Annotations[AnnotationOverrideAddresses] = "203.0.113.9" })
	self.source.Publish(said())
	want := maps.Clone(saidAnnotations)
	want[AnnotationOverrideAddresses] = "203.0.113.9"
	has(t, a, want)

	// The object is deleted and made anew.
	a.remove("a")
	a.set(n)
	has(t, a, saidAnnotations)
	self.stop()
}

// TestPublishRefused is told once, and goes on until it is written.
func TestPublishRefused(t *testing.T) {
	a := newAPIServer(t)
	a.set(object("a", 1))
	a.refusing("patch", http.StatusForbidden)
	r := start(t, a, "a")
	r.update(control.Update{Whole: true, Nodes: []control.Node{claim("a", 1)}})
	r.source.Publish(said())
	r.problem("does not let Warren patch nodes of a", "no patch: 403", "apply deploy/kubernetes", "admission policy",
		"tried again")
	n := a.called("patch")
	eventually(t, "it is tried again", func() bool { return a.called("patch") > n })
	r.noProblem()
	a.refusing("patch", 0)
	has(t, a, saidAnnotations)
	r.problem()
}

// TestPublishEarly has Publish called before the API server is there, several times.
func TestPublishEarly(t *testing.T) {
	a := newAPIServer(t)
	a.set(object("a", 1))
	a.down()
	r := start(t, a, "a")
	r.source.Publish(control.Node{PublicKey: testKey('x')})
	r.source.Ready(false)
	r.problem("cannot be reached")
	r.source.Publish(said())
	r.source.Ready(true)
	a.up()
	<-r.updates
	has(t, a, saidAnnotations)
	a.mu.Lock()
	defer a.mu.Unlock()
	if strings.Contains(string(a.patches[0]), testKey('x').String()) {
		t.Errorf("what was not wanted any more was written: %s", a.patches[0])
	}
}

// TestFight has another daemon of the same name, or a tool, that always writes something else.
func TestFight(t *testing.T) {
	a := newAPIServer(t)
	a.set(object("a", 1))
	r := start(t, a, "a")
	<-r.updates
	go func() {
		for range r.updates {
			continue
		}
	}()
	defer func() { r.stop(); close(r.updates) }()
	r.source.Publish(said())
	for range 3 {
		eventually(t, "it is written", func() bool {
			return a.get("a").Annotations[AnnotationPublicKey] == testKey('k').String()
		})
		a.change("a", func(n *corev1.Node) { n.Annotations[AnnotationPublicKey] = testKey('o').String() })
	}
	r.problem("somebody else writes Warren's annotations of Node a", excerpt(testKey('o').String()),
		"second machine of that name", "--show-managed-fields")
	// What the daemon itself wants anew is written at once, and starts afresh.
	next := said()
	next.PublicKey = testKey('n')
	r.source.Publish(next)
	r.problem()
	eventually(t, "the new key is written", func() bool {
		return a.get("a").Annotations[AnnotationPublicKey] == testKey('n').String()
	})
}

func networkUnavailable(n *corev1.Node) *corev1.NodeCondition {
	for i, c := range n.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable {
			return &n.Status.Conditions[i]
		}
	}
	return nil
}

// TestCondition sets and clears NetworkUnavailable, and leaves the other conditions.
func TestCondition(t *testing.T) {
	a := newAPIServer(t)
	n := object("a", 1)
	long := metav1.NewTime(created)
	n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable,
		Status: corev1.ConditionTrue, Reason: "NoRouteCreated", LastTransitionTime: long})
	a.set(n)
	r := start(t, a, "a")
	r.update(control.Update{Whole: true, Nodes: []control.Node{claim("a", 1)}})
	a.set(object("b", 2))
	r.update(control.Update{Nodes: []control.Node{claim("b", 2)}})
	if a.called("patch status") != 0 {
		t.Error("the condition was set before Ready")
	}
	is := func(status corev1.ConditionStatus, reason string) {
		t.Helper()
		eventually(t, "NetworkUnavailable is "+string(status), func() bool {
			n := a.get("a")
			c := networkUnavailable(n)
			return c != nil && c.Status == status && c.Reason == reason && c.LastTransitionTime.After(long.Time) &&
				len(n.Status.Conditions) == 2
		})
	}
	r.source.Ready(true)
	is(corev1.ConditionFalse, ReasonUp)
	// A cloud's route controller puts it back.
	a.change("a", func(n *corev1.Node) { networkUnavailable(n).Status = corev1.ConditionTrue })
	is(corev1.ConditionFalse, ReasonUp)
	r.source.Ready(false)
	is(corev1.ConditionTrue, ReasonDown)
	r.source.Ready(true)
	is(corev1.ConditionFalse, ReasonUp)

	a.refusing("patch status", http.StatusForbidden)
	r.source.Ready(false)
	r.problem("patch nodes/status of a", "NetworkUnavailable")
	a.refusing("patch status", 0)
	is(corev1.ConditionTrue, ReasonDown)
	r.problem()
	r.source.Ready(true)
	is(corev1.ConditionFalse, ReasonUp)

	r.stop()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.source.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	if c := networkUnavailable(a.get("a")); c.Status != corev1.ConditionTrue || c.Reason != ReasonDown {
		t.Errorf("after Leave: %+v", c)
	}
	a.down()
	if err := r.source.Leave(ctx); err == nil || !strings.Contains(err.Error(), "pods may be scheduled to this node") {
		t.Errorf("Leave without an API server: %v", err)
	}
}

// TestOlderEvents has the watch tell of a state from before the patch.
func TestOlderEvents(t *testing.T) {
	s := newStore("a", func() {}, func() {})
	at := func(version, key string) *corev1.Node {
		n := object("a", 1)
		n.ResourceVersion, n.Annotations[AnnotationPublicKey] = version, key
		return n
	}
	if err := s.Add(at("10", "before")); err != nil {
		t.Fatal(err)
	}
	s.patched(at("12", "after"))
	for _, c := range []struct{ version, key, want string }{
		{"11", "before", "after"}, {"13", "later", "later"}, {"opaque", "last", "last"},
	} {
		if err := s.Update(at(c.version, c.key)); err != nil {
			t.Fatal(err)
		}
		if own, _ := s.ownNode(); own.annotations[AnnotationPublicKey] != c.want {
			t.Errorf("after version %s: %q, want %q", c.version, own.annotations[AnnotationPublicKey], c.want)
		}
	}
}

func TestBackoff(t *testing.T) {
	var b backoff
	now := time.Now()
	if b.wait(now) {
		t.Error("waits before it failed")
	}
	last := time.Duration(0)
	for range 12 {
		b.failed(now)
		if d := b.next.Sub(now); d < firstRetry || d > 2*longestRetry || b.delay < last {
			t.Errorf("waits %v after %v", d, last)
		}
		last = b.delay
	}
	if last != longestRetry {
		t.Errorf("%v in the end", last)
	}
}

// TestPatchIsSmall holds that a patch says only what changes.
func TestPatchIsSmall(t *testing.T) {
	have := maps.Clone(saidAnnotations)
	have["kubernetes.io/other"] = "x"
	have[AnnotationOverrideAddresses] = "192.0.2.1"
	want := maps.Clone(saidAnnotations)
	want[AnnotationVXLANPort] = "4789"
	delete(want, AnnotationVXLANMAC)
	got, err := json.Marshal(difference(want, have))
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"warren.network/vxlan-mac":null,"warren.network/vxlan-port":"4789"}`; string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
