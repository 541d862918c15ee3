package bench

import (
	"strings"
	"testing"
	"time"
)

// TestExpect holds that what is to come is known from the start: only what a system has a part in, less what failed.
func TestExpect(t *testing.T) {
	r := &runner{progress: newProgress(nil), Config: Config{
		Systems: []System{vethSystem{}, &warrenSystem{}, &ptp{}}, Wires: Wires(), Rounds: 3,
		Scenarios: []string{"tcp-1", "cni", "same-node"},
	}}
	if err := r.choose(); err != nil {
		t.Fatal(err)
	}
	r.expect()
	if got, want := r.progress.all(), 3*2*2*3; got != want {
		t.Errorf("%d measurements, want %d: of each scenario two systems, two wires, three rounds", got, want)
	}
	r.skip(vethSystem{})
	if got, want := r.progress.all(), 3*2*2*3-2*3; got != want {
		t.Errorf("%d measurements without veth on one wire, want %d", got, want)
	}
}

func TestProgress(t *testing.T) {
	var out strings.Builder
	p := newProgress(&out)
	list := []scenario{{name: "a", time: 4 * time.Second}, {name: "b", time: 2 * time.Second}}
	p.pending["a"], p.pending["b"] = 3, 2
	if got, want := p.left(list), 3*(4*time.Second+setUp)+2*(2*time.Second+setUp); got != want || p.all() != 5 {
		t.Errorf("before anything: %d with %v left, want 5 with %v", p.all(), got, want)
	}
	p.measured("a", 10*time.Second)
	p.measured("a", 20*time.Second)
	if got, want := p.left(list), 15*time.Second+2*(2*time.Second+setUp); got != want || p.all() != 5 || p.done != 2 {
		t.Errorf("after two: %d of %d with %v left, want 2 of 5 with %v", p.done, p.all(), got, want)
	}
	p.say("%s", "hello")
	if !strings.HasSuffix(out.String(), "s  hello\n") {
		t.Errorf("it says %q", &out)
	}
	newProgress(nil).say("to nobody")
	for d, want := range map[time.Duration]string{31400 * time.Millisecond: "31s", 95 * time.Second: "2 min"} {
		if got := about(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}
