package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/internal/lab"
)

const testPrefix = "benchtest"

// TestSmoke measures for a moment, through everything that a long run uses.
func TestSmoke(t *testing.T) {
	c := smokeConfig(t)
	c.Wires, c.Scenarios = Wires(), []string{"tcp-1", "tcp-4-bidir", "udp-1400", "udp-64", "connect", "flows-1000",
		"same-node"}
	c.Systems = []System{vethSystem{}, c.Systems[0]}
	report, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for _, wire := range c.Wires {
		for _, metric := range []string{metricRate, metricCPU} {
			for _, system := range []string{"veth", "warren-vxlan"} {
				if !slices.ContainsFunc(report.Rows, func(r Row) bool {
					return r.System == system && r.Wire == wire && r.Scenario == "tcp-1" && r.Metric == metric &&
						r.Rounds == c.Rounds && 0 < r.Min && r.Min <= r.Median && r.Median <= r.Max
				}) {
					t.Errorf("no row for %s, %s, %s: %+v", system, wire, metric, report.Rows)
				}
			}
		}
		for _, scenario := range c.Scenarios {
			if !slices.ContainsFunc(report.Ratios, func(r Ratio) bool {
				return r.System == "warren-vxlan" && r.Over == "veth" && r.Wire == wire && r.Scenario == scenario && r.Median > 0
			}) {
				t.Errorf("no ratio for %s, %s: %+v", wire, scenario, report.Ratios)
			}
		}
	}
	if !slices.ContainsFunc(report.Notes, func(n string) bool { return strings.HasPrefix(n, "1 of the 3 rounds") }) {
		t.Errorf("notes %q: none of them says that one round proves nothing", report.Notes)
	}
	wantNothingLeft(t)
}

// TestWireguardGo holds that it is built, carries the traffic, and leaves no socket.
func TestWireguardGo(t *testing.T) {
	lab.NeedRoot(t)
	c := Config{Systems: []System{&wireguardGo{dir: t.TempDir()}}, Wires: []string{WireSegmented},
		Scenarios: []string{"tcp-1"}, Rounds: 1, Time: time.Second, Prefix: testPrefix, Progress: t.Output()}
	report, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Rows) == 0 || report.Rows[0].Median <= 0 {
		t.Errorf("rows %+v", report.Rows)
	}
	if left, err := filepath.Glob(fmt.Sprintf("/var/run/wireguard/*%d*", os.Getpid())); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	wantNothingLeft(t)
}

// TestSmokeEncrypted does it with encryption, where the proof of the path looks for plaintext.
func TestSmokeEncrypted(t *testing.T) {
	c := smokeConfig(t)
	c.Wires = Wires()
	c.Scenarios = []string{"tcp-1", "tcp-4-bidir", "udp-1400", "udp-64", "rtt-idle", "connect", "same-node"}
	c.Systems = []System{&warrenSystem{encapsulation: encrypted, binDir: c.Systems[0].(*warrenSystem).binDir}}
	report, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for _, wire := range c.Wires {
		for _, scenario := range c.Scenarios {
			if !slices.ContainsFunc(report.Rows, func(r Row) bool {
				return r.System == encryptedSystem && r.Wire == wire && r.Scenario == scenario && r.Median > 0
			}) {
				t.Errorf("no row for %s, %s: %+v", wire, scenario, report.Rows)
			}
		}
	}
	wantNothingLeft(t)
}

// TestFlood measures a stream beside a flood, twice on one bed, and without.
func TestFlood(t *testing.T) {
	c := smokeConfig(t)
	c.Systems[0].(*warrenSystem).encapsulation = encrypted
	c.Scenarios, c.Rounds = []string{"tcp-1", "flood"}, 2
	report, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for _, metric := range []string{metricRate, metricCPU, metricRSS, metricFlood} {
		if !slices.ContainsFunc(report.Rows, func(r Row) bool {
			return r.System == encryptedSystem && r.Scenario == "flood" && r.Metric == metric && r.Rounds == 2 && r.Min > 0
		}) {
			t.Errorf("no row of %s: %+v", metric, report.Rows)
		}
	}
	if len(report.Within) != 1 || report.Within[0].Min <= 0 {
		t.Errorf("within: %+v, want what the flood leaves of the stream", report.Within)
	}
	wantNothingLeft(t)
}

// jumbo is Warren, and says of its pods what a jumbo frame has room for.
type jumbo struct {
	*warrenSystem
	t *testing.T
}

func (s jumbo) Up(ctx context.Context, b *Bed) (*Path, error) {
	p, err := s.warrenSystem.Up(ctx, b)
	if err != nil {
		return nil, err
	}
	const mtu = 9000
	if b.MTU != mtu || b.PodMTU() != mtu-podRoom {
		s.t.Errorf("the wire's MTU is %d, the pods' %d", b.MTU, b.PodMTU())
	}
	echo := lab.Ping{Count: 1, Payload: b.PodMTU() - udpHeaders, DontFragment: true} // ICMP's headers are as long
	if _, err := p.Ends[0].NS.Ping(ctx, p.Ends[1].Addr, echo); err != nil {
		return nil, fmt.Errorf("a packet of the pods' MTU: %w", err)
	}
	echo.Payload++
	if _, err := p.Ends[0].NS.Ping(ctx, p.Ends[1].Addr, echo); err == nil {
		s.t.Error("a packet beyond the pods' MTU arrives")
	}
	return p, nil
}

// TestJumboFrames measures on a wire that carries packets of 9,000 bytes.
func TestJumboFrames(t *testing.T) {
	c := smokeConfig(t)
	c.Systems = []System{jumbo{c.Systems[0].(*warrenSystem), t}}
	c.MTU, c.Wires, c.Scenarios = 9000, []string{WireSegmented}, []string{"tcp-1", "udp-1400"}
	report, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if report.Machine["underlay MTU"] != "9000" || len(report.Rows) < len(c.Scenarios) {
		t.Errorf("report of %q with rows %+v", report.Machine["underlay MTU"], report.Rows)
	}
	wantNothingLeft(t)
}

// TestMasqueradedLeakIsCounted holds that a packet to a pod is counted on the wire also when it does not bear a pod's
// source address any more: the node's own sends one here.
func TestMasqueradedLeakIsCounted(t *testing.T) {
	lab.NeedRoot(t)
	b, err := NewBed(t.Context(), BedOptions{Prefix: testPrefix + "0", Wire: WireOffload})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	p, err := vethSystem{}.Up(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	to := b.Nodes[1]
	if err := countBare(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	if n, err := bareArrived(t.Context(), to); err != nil || n != 0 {
		t.Errorf("%d packets before any was sent: %v", n, err)
	}
	if _, err := b.Nodes[0].NS.Ping(t.Context(), p.Ends[1].Addr, lab.Ping{Count: 3}); err != nil {
		t.Fatal(err)
	}
	if n, err := bareArrived(t.Context(), to); err != nil || n != 3 {
		t.Errorf("%d packets: %v, want 3", n, err)
	}
}

// smokeConfig runs this tree's Warren for a second at a time.
func smokeConfig(t *testing.T) Config {
	lab.NeedRoot(t)
	bin := t.TempDir()
	build := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "../cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building Warren: %v\n%s", err, out)
	}
	return Config{Systems: []System{&warrenSystem{encapsulation: "vxlan", binDir: bin}}, Wires: []string{WireOffload},
		Scenarios: []string{"tcp-1"}, Rounds: 1, Time: time.Second, Prefix: testPrefix, Progress: t.Output()}
}

func wantNothingLeft(t *testing.T) {
	t.Helper()
	for i := range 2 {
		// A namespace that this process made is named after it; others' runs are not this test's business.
		left, err := lab.Remains(fmt.Sprintf("%s%d", testPrefix, i))
		left = slices.DeleteFunc(left, func(s string) bool { return !strings.Contains(s, fmt.Sprint(os.Getpid())) })
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
}

// leaky is a system that claims a device which the traffic does not take.
type leaky struct{ vethSystem }

func (leaky) Name() string { return "leaky" }

func (l leaky) Up(ctx context.Context, b *Bed) (*Path, error) {
	p, err := l.vethSystem.Up(ctx, b)
	if err == nil {
		p.Devices = sameDevice("lo")
	}
	return p, err
}

// TestLeakFails holds that a system which does not encapsulate fails the run, and has no figure in the report.
func TestLeakFails(t *testing.T) {
	c := smokeConfig(t)
	c.Systems = []System{leaky{}, vethSystem{}}
	var progress bytes.Buffer
	c.Progress = &progress
	report, err := Run(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "outside of the tunnel") || len(report.Failures) != 1 {
		t.Errorf("a system that leaks passes: %v\n%s", err, &progress)
	}
	if slices.ContainsFunc(report.Rows, func(r Row) bool { return r.System == "leaky" }) {
		t.Error("the report has figures of a system that leaks")
	}
	wantNothingLeft(t)
}

// readable is a system that claims to encrypt.
type readable struct{ kernelVXLAN }

func (readable) Name() string { return "readable" }

func (r readable) Up(ctx context.Context, b *Bed) (*Path, error) {
	p, err := r.kernelVXLAN.Up(ctx, b)
	if err == nil {
		p.Encrypts = true
	}
	return p, err
}

// TestPlaintextFails holds that a system which is to encrypt and only encapsulates fails the run.
func TestPlaintextFails(t *testing.T) {
	lab.NeedRoot(t)
	for _, wire := range Wires() {
		report, err := Run(t.Context(), Config{Systems: []System{readable{}}, Wires: []string{wire},
			Scenarios: []string{"tcp-1"}, Rounds: 1, Time: time.Second, Prefix: testPrefix, Progress: t.Output()})
		if err == nil || !strings.Contains(err.Error(), "data in the clear") || len(report.Rows) > 0 {
			t.Errorf("%s: a system that does not encrypt passes: %v", wire, err)
		}
	}
	wantNothingLeft(t)
}

// throttled lets fewer connections come about than a thousand in the time that they have.
type throttled struct {
	vethSystem
	name string
}

func (s throttled) Name() string { return s.name }

func (s throttled) Up(ctx context.Context, b *Bed) (*Path, error) {
	p, err := s.vethSystem.Up(ctx, b)
	if err == nil {
		err = commands(ctx, p.Ends[0].NS, "nft add table ip slow",
			"nft add chain ip slow out { type filter hook output priority 0 ; }",
			"nft add rule ip slow out tcp flags syn limit rate over 20/second burst 50 packets drop")
	}
	return p, err
}

// TestUnable holds that what another system can't do is noted, and fails the run when it is Warren that can't.
func TestUnable(t *testing.T) {
	c := smokeConfig(t)
	c.Systems, c.Scenarios = []System{throttled{name: "slow"}, throttled{name: "warren-slow"}}, []string{"flows-1000"}
	report, err := Run(t.Context(), c)
	if err == nil || len(report.Failures) != 1 || !strings.HasPrefix(report.Failures[0], "warren-slow, ") {
		t.Errorf("error %v, failures %q, want one, of warren-slow", err, report.Failures)
	}
	notes := slices.DeleteFunc(slices.Clone(report.Notes), func(n string) bool { return !strings.Contains(n, "slow, ") })
	if len(notes) != 1 || !strings.HasPrefix(notes[0], "slow, ") || len(report.Rows) > 0 {
		t.Errorf("notes %q, want one, of slow; rows %+v, want none", report.Notes, report.Rows)
	}
	wantNothingLeft(t)
}

// TestInterrupted holds that a run which is told to end ends soon, and takes its labs along.
func TestInterrupted(t *testing.T) {
	c := smokeConfig(t)
	c.Systems, c.Time = []System{vethSystem{}}, time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	begin := time.Now()
	if _, err := Run(ctx, c); err == nil || time.Since(begin) > 15*time.Second {
		t.Errorf("interrupted after 3 s, ended after %v with error %v", time.Since(begin), err)
	}
	wantNothingLeft(t)
}

// TestEveryScenarioChecks holds that no kind of scenario gives figures of traffic that takes another way than the
// system's: here there is no tunnel at all, while the path claims one.
func TestEveryScenarioChecks(t *testing.T) {
	lab.NeedRoot(t)
	b, err := NewBed(t.Context(), BedOptions{Prefix: testPrefix, Wire: WireOffload})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	p, err := vethSystem{}.Up(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	p.Devices, p.Near = sameDevice("lo"), []Hop{{Device: "lo"}}
	m := measurement{bed: b, path: p, wire: WireOffload, time: 200 * time.Millisecond, congestionControl: "cubic"}
	// One of each kind.
	kinds := []string{"tcp-1", "tcp-1-reverse", "tcp-4-bidir", "udp-1400", "udp-64", "rtt-idle", "rtt-load", "connect",
		"flows-1000", "same-node", "flood"}
	p.Victim = &Victim{Key: key.NewPrivate().Public(), Port: wireguardPort} // nobody is there
	for _, s := range scenarios() {
		if !slices.Contains(kinds, s.name) {
			continue
		}
		kinds = slices.DeleteFunc(kinds, func(k string) bool { return k == s.name })
		if figures, err := s.run(t.Context(), m); err == nil || !strings.Contains(err.Error(), "took another way") {
			t.Errorf("%s: figures %v, error %v, want none and a failed self-check", s.name, figures, err)
		}
	}
	if len(kinds) > 0 {
		t.Errorf("no scenario %v", kinds)
	}
}
