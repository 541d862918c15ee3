package kubernetes

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/key"
)

// patience is how long anything may take before a test gives up.
const patience = 30 * time.Second

// created is when test nodes were created.
var created = time.Unix(1_700_000_000, 0)

func testKey(b byte) key.Public { return key.Public([]byte(strings.Repeat(string(rune(b)), key.Size))) }

// object is node number i, with all that its daemon says and much that does not matter.
func object(name string, i int) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(created.Add(
		time.Duration(i) * time.Second)), Annotations: map[string]string{
		AnnotationPublicKey: testKey(byte('a' + i)).String(), "node.alpha.kubernetes.io/ttl": "0"}}}
	n.Spec.PodCIDR = fmt.Sprintf("10.244.%d.0/24", i)
	n.Spec.PodCIDRs = []string{n.Spec.PodCIDR, fmt.Sprintf("fd00:10:244:%x::/64", i)}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name},
		{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.0.2.%d", i)},
		{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("2001:db8::%x", i)},
		{Type: corev1.NodeExternalIP, Address: fmt.Sprintf("203.0.113.%d", i)}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	return n
}

// claim is what object(name, i) says.
func claim(name string, i int) control.Node {
	return control.Node{Name: name, Order: created.Unix() + int64(i), PublicKey: testKey(byte('a' + i)),
		Addresses: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i)),
			netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i))},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i)),
			netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%x::/64", i))}}
}

// heartbeat is what a kubelet does all the time.
func heartbeat(n *corev1.Node) {
	n.Status.Conditions[0].LastHeartbeatTime = metav1.Now()
	n.Status.Images = append(n.Status.Images, corev1.ContainerImage{Names: []string{"example.org/image"}})
}

// A run is a Source that runs against an apiServer.
type run struct {
	t        *testing.T
	source   *Source
	updates  chan control.Update
	problems chan error
	stop     func()
}

func start(t *testing.T, a *apiServer, self string) *run {
	t.Helper()
	s, err := newSource(Options{NodeName: self, Version: "test"}, &rest.Config{Host: "http://" + a.address})
	if err != nil {
		t.Fatal(err)
	}
	r := &run{t: t, source: s, updates: make(chan control.Update), problems: make(chan error, 100)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, r.updates, func(err error) { r.problems <- err }) }()
	r.stop = func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
			done <- nil
		case <-time.After(patience):
			t.Error("Run does not return")
		}
	}
	t.Cleanup(r.stop)
	return r
}

// update waits for the next update and compares.
func (r *run) update(want control.Update) {
	r.t.Helper()
	select {
	case got := <-r.updates:
		if got.Whole != want.Whole || !reflect.DeepEqual(got.Gone, want.Gone) || !sameNodes(got.Nodes, want.Nodes) {
			r.t.Fatalf("got  %+v\nwant %+v", got, want)
		}
	case <-time.After(patience):
		r.t.Fatalf("no update; want %+v", want)
	}
}

func sameNodes(a, b []control.Node) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !a[i].Equal(&b[i]) {
			return false
		}
	}
	return true
}

// problem waits for the next problem, which has to have all the parts; none: nil is wanted.
func (r *run) problem(parts ...string) {
	r.t.Helper()
	select {
	case err := <-r.problems:
		if (err == nil) != (len(parts) == 0) {
			r.t.Fatalf("problem %v, want %q", err, parts)
		}
		for _, part := range parts {
			if !strings.Contains(err.Error(), part) {
				r.t.Fatalf("problem %q lacks %q", err, part)
			}
		}
	case <-time.After(patience):
		r.t.Fatalf("no problem; want %q", parts)
	}
}

// noProblem asserts that nothing was reported since.
func (r *run) noProblem() {
	r.t.Helper()
	select {
	case err := <-r.problems:
		r.t.Fatalf("problem: %v", err)
	default:
	}
}

// eventually waits until the condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so: %s", what)
		}
	}
}
