package kubernetes

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/warren-net/warren/control"
)

// TestChanges goes through what happens to nodes; an update says what changed and nothing else.
func TestChanges(t *testing.T) {
	for _, streams := range []bool{false, true} {
		t.Run(map[bool]string{false: "list", true: "streamed list"}[streams], func(t *testing.T) {
			a := newAPIServer(t)
			a.streams = streams
			a.set(object("a", 1))
			a.set(object("b", 2))
			r := start(t, a, "a")
			r.update(control.Update{Whole: true, Nodes: []control.Node{claim("a", 1), claim("b", 2)}})

			a.change("b", heartbeat)
			a.set(object("c", 3))
			r.update(control.Update{Nodes: []control.Node{claim("c", 3)}})

			a.change("b", heartbeat)
			a.change("b", func(n *corev1.Node) { n.Status.Addresses[1].Address = "198.51.100.2" })
			moved := claim("b", 2)
			moved.Addresses = []netip.Addr{netip.MustParseAddr("198.51.100.2"), moved.Addresses[1]}
			r.update(control.Update{Nodes: []control.Node{moved}})

			a.remove("c")
			r.update(control.Update{Gone: []string{"c"}})

			// Deleted and back with another CIDR; both may come as one update.
			a.remove("b")
			r.update(control.Update{Gone: []string{"b"}})
			a.set(object("b", 4))
			r.update(control.Update{Nodes: []control.Node{claim("b", 4)}})
			r.noProblem()
		})
	}
}

// TestNotThereYet has nodes that are being made, by everybody's order of steps.
func TestNotThereYet(t *testing.T) {
	a := newAPIServer(t)
	a.set(object("a", 1))
	for name, lack := range map[string]func(*corev1.Node){
		"cidr":    func(n *corev1.Node) { n.Spec.PodCIDR, n.Spec.PodCIDRs = "", nil },
		"address": func(n *corev1.Node) { n.Status.Addresses = n.Status.Addresses[:1] },
		"key":     func(n *corev1.Node) { delete(n.Annotations, AnnotationPublicKey) },
		"nothing": func(n *corev1.Node) {
			n.Spec.PodCIDRs, n.Status.Addresses, n.Annotations = nil, nil, nil
		},
	} {
		n := object(name, 2)
		lack(n)
		a.set(n)
	}
	r := start(t, a, "a")
	r.update(control.Update{Whole: true, Nodes: []control.Node{claim("a", 1)}})
	a.set(object("cidr", 2))
	r.update(control.Update{Nodes: []control.Node{claim("cidr", 2)}})
	a.set(object("address", 3))
	r.update(control.Update{Nodes: []control.Node{claim("address", 3)}})
	a.remove("nothing")
	a.set(object("key", 4))
	r.update(control.Update{Nodes: []control.Node{claim("key", 4)}})

	// Without a key and asked for by name: a kernel VXLAN node.
	n := object("kernel", 5)
	n.Annotations = map[string]string{AnnotationEncapsulation: "vxlan", AnnotationVXLANMAC: "0e:57:c0:00:02:05"}
	a.set(n)
	kernel := claim("kernel", 5)
	kernel.PublicKey, kernel.Encapsulation = [32]byte{}, control.VXLAN
	kernel.MAC = []byte{0x0e, 0x57, 0xc0, 0, 2, 5}
	r.update(control.Update{Nodes: []control.Node{kernel}})
	r.noProblem()
}

// TestIncompleteLater takes away from a node what it needs: what it said before stays in force, as long as it is the
// same object.
func TestIncompleteLater(t *testing.T) {
	a := newAPIServer(t)
	a.set(object("a", 1))
	a.set(object("b", 2))
	r := start(t, a, "a")
	r.update(control.Update{Whole: true, Nodes: []control.Node{claim("a", 1), claim("b", 2)}})
	for _, c := range []struct {
		want  string
		spoil func(*corev1.Node)
	}{
		{"Node b has no annotation warren.network/public-key; its Warren daemon writes it when it starts: look at the pod " +
			"of the DaemonSet on that node", func(n *corev1.Node) { n.Annotations = nil }},
		{"Node b has no InternalIP in status.addresses; its kubelet (--node-ip) or the cloud's controller sets one; or " +
			"name the address of the tunnel by `kubectl annotate node b warren.network/override-addresses=ADDRESS`",
			func(n *corev1.Node) { n.Status.Addresses = nil }},
	} {
		a.change("b", c.spoil)
		r.update(control.Update{Nodes: []control.Node{{Name: "b", Broken: c.want}}})
		a.set(object("b", 2))
		r.update(control.Update{Nodes: []control.Node{claim("b", 2)}})
	}
	// Another object of the name has nothing to do with the claims of the one before.
	a.remove("b")
	r.update(control.Update{Gone: []string{"b"}})
	n := object("b", 2)
	n.Annotations = nil
	a.set(n)
	a.set(object("c", 3))
	r.update(control.Update{Nodes: []control.Node{claim("c", 3)}})
	r.noProblem()
}

// TestAway has the API server go away, with changes meanwhile: nothing is forgotten, and then only what changed comes.
func TestAway(t *testing.T) {
	for name, back := range map[string]func(*apiServer){
		"watch goes on":     func(*apiServer) {},
		"history compacted": (*apiServer).compact,
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPIServer(t)
			for i, name := range []string{"a", "b", "c", "d", "e"} {
				a.set(object(name, i+1))
			}
			r := start(t, a, "a")
			r.update(control.Update{Whole: true, Nodes: []control.Node{claim("a", 1), claim("b", 2), claim("c", 3),
				claim("d", 4), claim("e", 5)}})
			a.down()
			r.problem("the API server at http://"+a.address+" cannot be reached: ", "connection refused",
				"see that it runs", "stays in force")
			a.remove("c")
			a.remove("d")
			a.set(object("d", 7))
			a.change("e", heartbeat)
			a.set(object("f", 6))
			a.change("b", func(n *corev1.Node) { n.Annotations[AnnotationWireGuardPort] = "5000" })
			back(a)
			a.up()
			b := claim("b", 2)
			b.WireGuardPort = 5000
			all := map[string]control.Node{}
			for gone := map[string]bool{}; len(all) < 3 || !gone["c"]; {
				u := <-r.updates
				if u.Whole {
					t.Fatalf("a whole update after the API server was away: %+v", u)
				}
				for _, n := range u.Nodes {
					all[n.Name] = n
				}
				for _, n := range u.Gone {
					gone[n] = true
				}
			}
			for _, want := range []control.Node{b, claim("d", 7), claim("f", 6)} {
				if got := all[want.Name]; !got.Equal(&want) {
					t.Errorf("got  %+v\nwant %+v", got, want)
				}
			}
			if len(all) != 3 {
				t.Errorf("nodes that did not change came too: %v", all)
			}
			r.problem()
			r.noProblem()
		})
	}
}

// TestCompacted has the API server forget the history while the watch goes on.
func TestCompacted(t *testing.T) {
	a := newAPIServer(t)
	a.set(object("a", 1))
	a.set(object("b", 2))
	r := start(t, a, "a")
	r.update(control.Update{Whole: true, Nodes: []control.Node{claim("a", 1), claim("b", 2)}})
	a.compact()
	a.set(object("c", 3))
	r.update(control.Update{Nodes: []control.Node{claim("c", 3)}})
	a.remove("b")
	r.update(control.Update{Gone: []string{"b"}})
	r.noProblem()
}

// TestReborn has a node deleted and made anew while nobody looked, with nothing in it that can be read: what the old
// one said is not the new one's.
func TestReborn(t *testing.T) {
	a := newAPIServer(t)
	a.set(object("a", 1))
	a.set(object("b", 2))
	r := start(t, a, "a")
	r.update(control.Update{Whole: true, Nodes: []control.Node{claim("a", 1), claim("b", 2)}})
	a.down()
	r.problem("cannot be reached")
	a.remove("b")
	n := object("b", 2)
	n.Annotations[AnnotationVXLANPort] = "many"
	a.set(n)
	a.compact()
	a.up()
	r.update(control.Update{Gone: []string{"b"}})
	got := <-r.updates
	const want = `annotation warren.network/vxlan-port: "many" is not a UDP port`
	if len(got.Nodes) != 1 || !strings.Contains(got.Nodes[0].Broken, want) {
		t.Errorf("%+v", got)
	}
	r.problem()
}

// TestRefused goes through the answers of an API server that won't; each is told once, and that it is over.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		verb   string
		status int
		want   []string
	}{
		{"list", http.StatusForbidden, []string{"does not let Warren list Node objects", "ClusterRole", "stays in force"}},
		{"watch", http.StatusForbidden, []string{"does not let Warren watch Node objects", "get, list, watch and patch"}},
		{"list", http.StatusUnauthorized, []string{"does not accept Warren's credentials", "service account was deleted"}},
		{"list", http.StatusInternalServerError, []string{"fails to list Node objects", "no list: 500", "look at its log"}},
	} {
		t.Run(c.verb+http.StatusText(c.status), func(t *testing.T) {
			a := newAPIServer(t)
			a.set(object("a", 1))
			a.refusing(c.verb, c.status)
			r := start(t, a, "a")
			if c.verb == "watch" { // the list is there, and goes on to be read again
				r.update(control.Update{Whole: true, Nodes: []control.Node{claim("a", 1)}})
			}
			r.problem(append(c.want, a.address)...)
			n := a.called(c.verb)
			eventually(t, "it is tried again", func() bool { return a.called(c.verb) > n+1 })
			r.noProblem()
			a.refusing(c.verb, 0)
			if c.verb == "list" {
				r.update(control.Update{Whole: true, Nodes: []control.Node{claim("a", 1)}})
			}
			r.problem()
			a.set(object("b", 2))
			r.update(control.Update{Nodes: []control.Node{claim("b", 2)}})
			r.noProblem()
		})
	}
}

// TestOwnObject goes through what the own object may lack.
func TestOwnObject(t *testing.T) {
	a := newAPIServer(t)
	a.set(object("b", 2))
	r := start(t, a, "a")
	r.update(control.Update{Whole: true, Nodes: []control.Node{claim("b", 2)}})
	r.problem(`no Node object "a"`, "kubectl get nodes", "NODE_NAME")

	n := object("a", 1)
	cidrs := n.Spec.PodCIDRs
	n.Spec.PodCIDRs, n.Annotations = nil, nil
	a.set(n)
	r.problem("Node a has no spec.podCIDRs", "--allocate-node-cidrs", "--cluster-cidr")

	// It needs no key to be there: it has to know its CIDRs before it tells others.
	n.Spec.PodCIDRs = cidrs
	a.set(n)
	own := claim("a", 1)
	own.PublicKey = [32]byte{}
	r.update(control.Update{Nodes: []control.Node{own}})
	r.problem()

	// What others wrote into its annotations does not keep it from starting.
	n.Annotations = map[string]string{AnnotationPublicKey: "garbage", AnnotationVXLANPort: "0"}
	a.set(n)
	n.Annotations[AnnotationOverrideAddresses] = "nowhere"
	a.set(n)
	for {
		if u := <-r.updates; u.Nodes[0].Broken != "" {
			break
		}
	}
	r.problem(`Node a: annotation warren.network/override-addresses: "nowhere" is not a list of IP addresses`)
	n.Annotations[AnnotationOverrideAddresses] = "203.0.113.7"
	a.set(n)
	own.Addresses = []netip.Addr{netip.MustParseAddr("203.0.113.7")}
	r.update(control.Update{Nodes: []control.Node{own}})
	r.problem()
}

// TestSilent has an API server that takes connections and says nothing.
func TestSilent(t *testing.T) {
	over := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-over }))
	defer silent.Close()
	defer close(over)
	s, err := newSource(Options{NodeName: "a"}, &rest.Config{Host: silent.URL})
	if err != nil {
		t.Fatal(err)
	}
	s.client.patience = 50 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, listErr := s.ListWithContext(ctx, metav1.ListOptions{})
	_, watchErr := s.WatchWithContext(ctx, metav1.ListOptions{})
	for what, err := range map[string]error{"list": listErr, "watch": watchErr} {
		if !errors.Is(err, errSilent) {
			t.Errorf("%s: %v", what, err)
		}
	}
	const want = "cannot be reached: it takes connections and does not answer; see that it runs"
	if worst := s.worst(); worst == nil || !strings.Contains(worst.err.Error(), want) {
		t.Errorf("told: %+v", worst)
	}
	if err := s.Leave(ctx); err == nil || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("Leave: %v", err)
	}
}
