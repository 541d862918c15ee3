package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/control/remember"
	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/node/config"
)

// A said is a source that says what a test has it say.
type said struct {
	updates   chan control.Update
	problems  chan error
	published chan control.Node
	end       chan error
}

func newSaid() *said {
	return &said{updates: make(chan control.Update, 10), problems: make(chan error),
		published: make(chan control.Node, 10), end: make(chan error, 1)}
}

func (s *said) Run(ctx context.Context, updates chan<- control.Update, problem func(error)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-s.end:
			return err
		case err := <-s.problems:
			problem(err)
		case u := <-s.updates:
			updates <- u
		}
	}
}

func (s *said) Publish(self control.Node) { s.published <- self }

const fedConfig = `node: a
control: etcd
etcd: {endpoints: ["192.0.2.9:8789"]}
addresses: [192.0.2.1]
wireguard: {port: 5555}
log: {level: warn}
`

// fed is a feed in a directory of its own that runs until the test ends or stop is called.
func runFeed(t *testing.T, dir string) (f *feed, s *said, stop func()) {
	t.Helper()
	cfg, err := config.Parse(config.Source{File: "w.yaml", Data: []byte(fedConfig + "stateDir: " + dir + "\n")})
	if err != nil {
		t.Fatal(err)
	}
	s = newSaid()
	f = newFeed(cfg, s, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = f.run(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return f, s, stop
}

func (s *said) say(t *testing.T, u control.Update) {
	t.Helper()
	select {
	case s.updates <- u:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody listens")
	}
}

// node is one that says that it has 10.244.cidr.0/24.
func fedNode(name string, cidr byte) control.Node {
	return control.Node{
		Name: name, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, cidr})}, PublicKey: key.Public{cidr},
		PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, cidr, 0}), 24)},
	}
}

func named(nodes []control.Node) string {
	var out []string
	for _, n := range nodes {
		out = append(out, n.Name)
	}
	return strings.Join(out, " ")
}

// await is what the node would start with.
func (f *feed) awaited(t *testing.T) (*config.Config, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cfg, err := config.Parse(config.Source{File: "w.yaml", Data: []byte(fedConfig)})
	if err != nil {
		t.Fatal(err)
	}
	cfg, nodes, err := f.await(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return cfg, named(nodes)
}

// until gathers what is fetched until it is what is waited for.
func (f *feed) until(t *testing.T, is func(fed) bool) (got fed) {
	t.Helper()
	late := time.After(10 * time.Second)
	for {
		select {
		case <-f.news:
			more := f.fetch()
			got.set, got.gone = append(got.set, more.set...), append(got.gone, more.gone...)
			got.self, got.restart, got.warnings = more.self, more.restart, more.warnings
		case <-late:
			t.Fatalf("what was waited for does not come: %+v", got)
		}
		if is(got) {
			return got
		}
	}
}

var fedRange = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}

func TestFeed(t *testing.T) {
	dir := t.TempDir()
	f, s, stop := runFeed(t, dir)
	s.say(t, control.Update{Whole: true, Nodes: []control.Node{fedNode("b", 2)}, Cluster: fedRange})
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if _, _, err := f.await(ctx, &config.Config{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a node that the cluster does not know starts: %v", err)
	}
	s.say(t, control.Update{Nodes: []control.Node{fedNode("a", 1)}})
	cfg, peers := f.awaited(t)
	if peers != "b" || cfg.Self.PodCIDRs[0].String() != "10.244.1.0/24" || cfg.Cluster[0] != fedRange[0] {
		t.Errorf("peers %s, self %+v", peers, cfg.Self)
	}

	// What comes while nobody asks is gathered.
	s.say(t, control.Update{Nodes: []control.Node{fedNode("c", 3), fedNode("d", 4)}})
	s.say(t, control.Update{Nodes: []control.Node{fedNode("e", 4)}, Gone: []string{"c"}})
	got := f.until(t, func(got fed) bool { return len(got.warnings) > 0 && len(got.set) > 0 })
	if !strings.Contains(named(got.set), "d") || strings.Contains(named(got.set), "e") || got.self != nil || got.restart ||
		!strings.Contains(got.warnings[0], "what node e says of itself is refused") {
		t.Errorf("%+v", got)
	}

	// The own node, and the ranges.
	self := fedNode("a", 1)
	self.PublicKey = key.Public{99}
	s.say(t, control.Update{Nodes: []control.Node{self}})
	f.until(t, func(got fed) bool { return got.self != nil && got.self.PublicKey == self.PublicKey })
	s.say(t, control.Update{Gone: []string{"a"}})
	s.say(t, control.Update{Nodes: []control.Node{fedNode("f", 6)}})
	if got := f.until(t, func(got fed) bool { return len(got.set) > 0 }); got.self != nil || len(got.gone) > 0 {
		t.Errorf("the own node left: %+v", got)
	}
	wider := append(fedRange, netip.MustParsePrefix("10.245.0.0/16"))
	s.say(t, control.Update{Nodes: []control.Node{self}, Cluster: wider})
	f.until(t, func(got fed) bool { return got.restart })

	// Problems come and go.
	s.problems <- errors.New("no answer")
	f.until(t, func(got fed) bool {
		return strings.Contains(strings.Join(got.warnings, ""), "what it said last stays in force: no answer")
	})
	s.problems <- nil
	f.until(t, func(got fed) bool { return len(got.warnings) == 1 })

	// The next start knows all of that, and who was in force still is.
	stop()
	f, s, _ = runFeed(t, dir)
	cfg, peers = f.awaited(t)
	if peers != "b d f" || cfg.Self.PublicKey != self.PublicKey || len(cfg.Cluster) != 2 {
		t.Errorf("after another start: peers %s, %+v", peers, cfg)
	}
	older := fedNode("e", 4)
	older.Order = -1
	s.say(t, control.Update{Whole: true, Nodes: []control.Node{self, fedNode("d", 4), older}})
	if got := f.until(t, func(got fed) bool { return len(got.gone) == 2 }); len(got.set) > 0 ||
		!reflect.DeepEqual(got.gone, []string{"b", "f"}) {
		t.Errorf("after another start: %+v", got)
	}
}

// TestFeedOfAMovedNode: what a node knows of itself from before is an address that it has no more. It waits for the
// cluster's word.
func TestFeedOfAMovedNode(t *testing.T) {
	dir := t.TempDir()
	f, s, stop := runFeed(t, dir)
	s.say(t, control.Update{Whole: true, Nodes: []control.Node{fedNode("a", 1), fedNode("b", 2)}, Cluster: fedRange})
	f.awaited(t)
	stop()

	f, s, _ = runFeed(t, dir)
	moved := fedNode("a", 1)
	moved.Addresses = []netip.Addr{addr("192.0.2.9")}
	fresh, err := config.Parse(config.Source{File: "w.yaml", Data: []byte(fedConfig)})
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan netip.Addr, 1000)
	check := func(addresses []netip.Addr) error {
		asked <- addresses[0]
		if addresses[0] != moved.Addresses[0] {
			return fmt.Errorf("%w: %s", hostnet.ErrNoUnderlay, addresses[0])
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	go func() {
		if old := <-asked; old != addr("192.0.2.1") {
			t.Errorf("it knows %s from before", old)
		}
		s.say(t, control.Update{Nodes: []control.Node{moved}})
	}()
	cfg, nodes, err := f.awaitHere(ctx, fresh, check)
	if err != nil || cfg.Self.Addresses[0] != moved.Addresses[0] || named(nodes) != "b" {
		t.Fatalf("it starts with %+v, %v", cfg, err)
	}

	// It gives up only when it is told to.
	ctx, cancel = context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	check = func([]netip.Addr) error { return hostnet.ErrNoUnderlay }
	if _, _, err := f.awaitHere(ctx, fresh, check); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a node that is nowhere: %v", err)
	}
	// What else is wrong with an address is the start's to say.
	check = func([]netip.Addr) error { return errors.New("something else") }
	if _, _, err := f.awaitHere(context.Background(), fresh, check); err != nil {
		t.Error(err)
	}
}

// TestFeedWithoutMemory: what was kept and is another's, of another form or garbage is not used, and no reason to fail.
func TestFeedWithoutMemory(t *testing.T) {
	for name, content := range map[string]string{
		"another node's": `{"version": 1, "Node": "b", "CIDRs": ["10.244.0.0/16"], "Nodes": [{"Name": "a"}]}`,
		"another form":   `{"version": 2}`, "garbage": `{`, "empty": ``,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, remember.File), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		f, s, _ := runFeed(t, dir)
		if f.ledger.Node("a") != nil || len(f.cluster) > 0 {
			t.Errorf("%s: it is used", name)
		}
		s.say(t, control.Update{Whole: true, Nodes: []control.Node{fedNode("a", 1)}, Cluster: fedRange})
		f.awaited(t)
	}
}

func TestFeedTellsOfTheNode(t *testing.T) {
	f, s, _ := runFeed(t, t.TempDir())
	cfg, err := config.Parse(config.Source{File: "w.yaml", Data: []byte(fedConfig + "encapsulation: vxlan\n")})
	if err != nil {
		t.Fatal(err)
	}
	f.tell(cfg, key.Public{1})
	f.tell(cfg, key.Public{1})
	f.tell(cfg, key.Public{2})
	for _, want := range []key.Public{{1}, {2}} {
		got := <-s.published
		if got.Name != "a" || got.PublicKey != want || got.WireGuardPort != 5555 || got.Encapsulation != control.VXLAN ||
			got.Addresses[0] != addr("192.0.2.1") || got.Port != 4789 {
			t.Errorf("%+v", got)
		}
	}
	if len(s.published) > 0 {
		t.Error("it is told again what it knows")
	}
	var none *feed
	none.tell(cfg, key.Public{1}) // peers that stand in the file are told nothing
}

func TestFeedThatEnds(t *testing.T) {
	f, s, stop := runFeed(t, t.TempDir())
	stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.end <- errors.New("its state cannot be read")
	if err := f.run(ctx); err == nil || !strings.Contains(err.Error(), "control plane: its state cannot be read") {
		t.Errorf("a source that gives up: %v", err)
	}
}

// TestFeedForgotten: a node that the cluster knows no longer goes on as it is, and what it has is given to nobody else
// here, as two owners of one prefix would keep everything else of an update out too.
func TestFeedForgotten(t *testing.T) {
	for name, forget := range map[string]control.Update{
		"by a change": {Gone: []string{"a"}, Nodes: []control.Node{fedNode("y", 1), fedNode("c", 3)}},
		"as a whole":  {Whole: true, Nodes: []control.Node{fedNode("y", 1), fedNode("c", 3)}},
	} {
		f, s, _ := runFeed(t, t.TempDir())
		s.say(t, control.Update{Whole: true, Nodes: []control.Node{fedNode("a", 1)}, Cluster: fedRange})
		f.awaited(t)
		s.say(t, forget)
		got := f.until(t, func(got fed) bool { return len(got.warnings) > 0 && len(got.set) > 0 })
		if named(got.set) != "c" || got.self != nil || !strings.Contains(got.warnings[0], "node y") {
			t.Errorf("%s: %+v", name, got)
		}
		// It comes back with something else, so the other one gets what it had.
		s.say(t, control.Update{Nodes: []control.Node{fedNode("a", 9)}})
		got = f.until(t, func(got fed) bool { return got.self != nil })
		if named(got.set) != "y" || got.self.PodCIDRs[0].String() != "10.244.9.0/24" || len(got.warnings) > 0 {
			t.Errorf("%s: after it came back: %+v", name, got)
		}
	}
}

// TestFeedTellsOfOldTroubles: a node that starts again learns of what was refused before.
func TestFeedTellsOfOldTroubles(t *testing.T) {
	f, s, _ := runFeed(t, t.TempDir())
	s.say(t, control.Update{Whole: true, Nodes: []control.Node{fedNode("a", 1), fedNode("b", 2), fedNode("c", 2)},
		Cluster: fedRange})
	for range 2 {
		f.awaited(t)
		f.until(t, func(got fed) bool { return len(got.warnings) == 1 })
	}
}

// TestFeedQuotesNames: a name is what somebody wrote as a key into an etcd.
func TestFeedQuotesNames(t *testing.T) {
	f, s, _ := runFeed(t, t.TempDir())
	s.say(t, control.Update{Whole: true, Cluster: fedRange,
		Nodes: []control.Node{fedNode("a", 1), {Name: "x\n\x1b[2Jlevel=INFO", Broken: "garbage"}}})
	got := f.until(t, func(got fed) bool { return len(got.warnings) > 0 })
	if want := `what node "x\n\x1b[2Jlevel=INFO" says of itself is refused: garbage`; got.warnings[0] != want {
		t.Errorf("%q, want %q", got.warnings[0], want)
	}
}

// TestFeedOfNamesakes: a peer in the file and a node of the cluster that have one name.
func TestFeedOfNamesakes(t *testing.T) {
	const peers = `
cluster: [10.244.0.0/16]
peers: [{name: b, publicKey: "CQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", addresses: [10.244.255.7]}]
`
	parse := func(more string) *config.Config {
		t.Helper()
		cfg, err := config.Parse(config.Source{File: "w.yaml", Data: []byte(fedConfig + more)})
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	dir := t.TempDir()
	f, s, stop := runFeed(t, dir)
	f.configured(parse(peers))
	s.say(t, control.Update{Whole: true, Cluster: fedRange, Nodes: []control.Node{fedNode("a", 1), fedNode("b", 2)}})
	got := f.until(t, func(got fed) bool { return len(got.set) > 0 && len(got.warnings) > 0 })
	if len(got.set) != 1 || !got.set[0].Roams || len(got.warnings) != 1 ||
		!strings.Contains(got.warnings[0], "b says of itself is refused: a peer in this host's configuration has that name") {
		t.Errorf("%+v", got)
	}
	f.configured(parse(""))
	got = f.until(t, func(got fed) bool { return len(got.set) > 0 && len(got.warnings) == 0 })
	if len(got.set) != 1 || got.set[0].Roams || len(got.warnings) > 0 {
		t.Errorf("without the peer: %+v", got)
	}
	f.configured(parse(peers))
	f.until(t, func(got fed) bool { return len(got.set) == 1 && got.set[0].Roams && len(got.warnings) == 1 })

	// Who asks without a running node sees each name once.
	f.configured(parse(""))
	stop()
	cfg := parse(peers)
	cfg.StateDir = dir
	known, err := Known(cfg)
	if err != nil || named(known.State.Nodes) != "a b" || !known.State.Nodes[1].Roams {
		t.Errorf("%+v, %v", known.State.Nodes, err)
	}
}

// TestFeedOfOtherRanges: what a node's pods have stays while the cluster's ranges change, over a restart too; ranges
// that hold the node's own address are not taken.
func TestFeedOfOtherRanges(t *testing.T) {
	dir := t.TempDir()
	f, s, stop := runFeed(t, dir)
	s.say(t, control.Update{Whole: true, Nodes: []control.Node{fedNode("a", 1), fedNode("b", 2)}, Cluster: fedRange})
	f.awaited(t)
	others := []netip.Prefix{netip.MustParsePrefix("10.245.0.0/16")}
	all := append(slices.Clone(others), netip.MustParsePrefix("10.244.1.0/24"))
	is := func(what string) {
		t.Helper()
		got := f.until(t, func(got fed) bool { return len(got.warnings) == 2 })
		if !strings.Contains(got.warnings[0], "10.244.1.0/24 is outside the cluster's ranges [10.245.0.0/16]") {
			t.Errorf("%s: %q", what, got.warnings)
		}
		cfg, peers := f.awaited(t)
		if !slices.Equal(cfg.Cluster, all) || cfg.Self.PodCIDRs[0].String() != "10.244.1.0/24" || peers != "" {
			t.Errorf("%s: ranges %v, %+v, peers %s", what, cfg.Cluster, cfg.Self, peers)
		}
	}
	s.say(t, control.Update{Whole: true, Nodes: []control.Node{fedNode("a", 1), fedNode("b", 2)}, Cluster: others})
	is("at once")
	stop()
	f, s, stop = runFeed(t, dir)
	if f.ledger.Node("a") == nil {
		t.Fatal("after a restart the node has nothing")
	}
	s.say(t, control.Update{Whole: true, Nodes: []control.Node{fedNode("a", 1), fedNode("b", 2)}, Cluster: others})
	is("after a restart")

	underlay := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("192.0.2.0/24")}
	s.say(t, control.Update{Whole: true, Nodes: []control.Node{fedNode("a", 1)}, Cluster: underlay})
	got := f.until(t, func(got fed) bool {
		return len(got.warnings) == 2 &&
			strings.Contains(got.warnings[0], "address 192.0.2.1 lies inside the cluster's range 192.0.2.0/24")
	})
	if got.restart {
		t.Errorf("ranges with the node's address: %+v", got)
	}
	moved := fedNode("a", 1)
	moved.Addresses = []netip.Addr{addr("203.0.113.1")}
	moved.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.245.1.0/24")} // else it stays where it is
	s.say(t, control.Update{Nodes: []control.Node{moved}})
	got = f.until(t, func(got fed) bool { return got.restart })
	if !slices.Equal(f.cluster, underlay) || got.self == nil {
		t.Errorf("when it has moved: %v, %+v", f.cluster, got)
	}
	stop()
}

// A lastWord is a source that says something when it is told to end.
type lastWord struct{ control.Update }

func (s lastWord) Run(ctx context.Context, updates chan<- control.Update, _ func(error)) error {
	<-ctx.Done()
	time.Sleep(50 * time.Millisecond) // whoever ends as soon as he may has ended
	updates <- s.Update
	return nil
}

// TestFeedWritesTheLastWord: what is on disk after an orderly end is what was known last.
func TestFeedWritesTheLastWord(t *testing.T) {
	cfg, err := config.Parse(config.Source{File: "w.yaml", Data: []byte(fedConfig + "stateDir: " + t.TempDir() + "\n")})
	if err != nil {
		t.Fatal(err)
	}
	f := newFeed(cfg, lastWord{control.Update{Whole: true, Nodes: []control.Node{fedNode("a", 1)}, Cluster: fedRange}},
		slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := f.run(ctx); err != nil {
		t.Fatal(err)
	}
	if known, err := remember.Read(cfg.StateDir); err != nil || known == nil || named(known.Nodes) != "a" {
		t.Errorf("%+v, %v", known, err)
	}
}

// A lockedLog is what a feed logs, for a test that reads it meanwhile.
type lockedLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lockedLog) warnings() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), "level=WARN")
}

// TestFeedWritesAgain: what could not be written is written later, without another word of the source, and a change
// after a quiet time soon.
func TestFeedWritesAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	cfg, err := config.Parse(config.Source{File: "w.yaml", Data: []byte(fedConfig + "stateDir: " + dir + "\n")})
	if err != nil {
		t.Fatal(err)
	}
	var log lockedLog
	s := newSaid()
	f := newFeed(cfg, s, slog.New(slog.NewTextHandler(&log, nil)))
	f.every, f.soon = 20*time.Millisecond, time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = f.run(ctx) }()
	defer func() { cancel(); <-done }()
	kept := func(want string) {
		t.Helper()
		for late := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			known, err := remember.Read(dir)
			if err == nil && known != nil && named(known.Nodes) == want {
				return
			}
			if time.Now().After(late) {
				t.Fatalf("%+v, %v, want %s", known, err, want)
			}
		}
	}
	s.say(t, control.Update{Whole: true, Nodes: []control.Node{fedNode("a", 1)}, Cluster: fedRange})
	for late := time.Now().Add(10 * time.Second); log.warnings() == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("nobody says that it cannot be written")
		}
	}
	time.Sleep(100 * time.Millisecond) // more attempts, which are not said again
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	kept("a")
	s.say(t, control.Update{Nodes: []control.Node{fedNode("b", 2)}})
	kept("a b")
	cancel()
	<-done
	if n := log.warnings(); n != 1 {
		t.Errorf("%d warnings: %s", n, log.text.String())
	}
}
