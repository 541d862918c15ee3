package cni_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/cni"
	"golang.org/x/sys/unix"
)

// While one network's ADD is at any of its steps, another runtime has another network collected. Neither harms the
// other, also when the collection goes on only after the ADD is done.
func TestGCBesideAnotherNetwork(t *testing.T) {
	n := newNode(t)
	n.warm(cni.ModeRouted)
	empty := n.dump()
	conf := n.conf("1.1.0", cni.ModeRouted)
	keep := n.pod(strings.Replace(conf, `"pods"`, `"other"`, 1))
	keep.add()
	gc := call{command: "GC", conf: strings.TrimSuffix(keep.conf, "}") +
		fmt.Sprintf(`, "cni.dev/valid-attachments": [{"containerID": %q, "ifname": "eth0"}]}`, keep.id)}
	before := n.dump()
	p := n.pod(conf)
	var steps []string
	// beside holds ADD at a call, starts a collection there, and lets ADD go on when the collection is done, is held
	// itself, or waits for ADD.
	beside := func(at int, collect func(added <-chan struct{}, held chan<- struct{}) string) string {
		p.id = fmt.Sprintf("beside-%d", at)
		added, held, collected := make(chan struct{}), make(chan struct{}, 1), make(chan string, 1)
		what, failure := n.holdAt(p.call("ADD"), at, func(string) {
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer close(collected)
				collected <- collect(added, held)
			}()
			select {
			case <-held:
			case <-done:
			case <-time.After(150 * time.Millisecond):
			}
		})
		close(added)
		when := fmt.Sprintf("collected at call %d of ADD (%s)", at, what)
		if failure != "" {
			t.Errorf("%s: ADD failed: %s", when, failure)
		}
		if what != "" {
			if failure := <-collected; failure != "" {
				t.Errorf("%s: GC failed: %s", when, failure)
			}
		}
		if failure == "" && !exists(p.record()) {
			t.Errorf("%s: the pod has no record", when)
		}
		p.del()
		unchanged(t, when, before, n.dump())
		return what
	}
	for at := 1; !t.Failed(); at++ {
		what := beside(at, func(<-chan struct{}, chan<- struct{}) string {
			if _, err := n.do(gc); err != nil {
				return err.Msg
			}
			return ""
		})
		if what == "" {
			break
		}
		steps = append(steps, what)
	}
	files := []string{fmt.Sprintf("call %d", unix.SYS_LINKAT), fmt.Sprintf("call %d", unix.SYS_UNLINKAT)}
	if !t.Failed() && !slices.Contains(steps, files[0]) {
		t.Errorf("ADD linked no file: the test looks at too little: %q", steps)
	}
	for i, what := range steps {
		if !slices.Contains(files, what) || t.Failed() {
			continue
		}
		for gcAt := range 3 { // it looks around before its first call that changes anything
			beside(i+1, func(added <-chan struct{}, held chan<- struct{}) string {
				_, failure := n.holdAt(gc, gcAt+1, func(string) {
					held <- struct{}{}
					<-added
				})
				return failure
			})
		}
	}
	keep.del()
	unchanged(t, "at the end", empty, n.dump())
}

// What a killed ADD of any network left unfinished is collected, when it is not at work any more.
func TestGCOfUnfinishedRecords(t *testing.T) {
	n := newNode(t)
	n.warm(cni.ModeRouted)
	before := n.dump()
	p := n.pod(n.conf("1.1.0", cni.ModeRouted))
	link := fmt.Sprintf("call %d", unix.SYS_LINKAT)
	for at := 1; ; at++ {
		what, _ := n.killAt(p.call("ADD"), at, killCaller)
		if what == "" {
			t.Fatal("ADD links no record")
		}
		if what == link {
			break
		}
		p.del()
	}
	if files := n.files(); len(files) != 1 || !strings.HasSuffix(files[0], ".json.tmp") {
		t.Fatalf("a killed ADD left %v", files)
	}
	n.must(call{command: "GC", conf: strings.Replace(n.gc(cni.ModeRouted, noAttachments).conf, `"pods"`, `"other"`, 1)})
	unchanged(t, "after another network's GC", before, n.dump())
}
