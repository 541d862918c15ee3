package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// helperEnv makes the test binary a program that has a lab of its own and is then killed.
const helperEnv = "WARREN_LAB_HELPER"

func TestMain(m *testing.M) {
	if prefix := os.Getenv(helperEnv); prefix != "" {
		holdLab(prefix)
	}
	os.Exit(m.Run())
}

// holdLab makes a lab with a process in it, says so on standard output and waits for its end.
func holdLab(prefix string) {
	l, err := New(Options{Prefix: prefix})
	if err == nil {
		l.CloseOnSignal()
		_, err = l.Start(l.Outside, "sleep", "sleep", "1000")
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	select {}
}

// startHolder runs holdLab in a process of its own.
func startHolder(t *testing.T, prefix string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+prefix)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_, _ = Sweep(prefix, SweepKept)
	})
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the program that holds a lab said %q", line)
	}
	return cmd
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func wantNothingLeft(t *testing.T, prefix string) {
	t.Helper()
	left, err := Remains(prefix)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

func TestUnderlay(t *testing.T) {
	l := ForTest(t, Options{Prefix: "under", MTU: 1400})
	ctx := testContext(t)
	a, err := l.AddNode("a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.AddNode("b")
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []netip.Addr{b.V4, b.V6, OutsideV4(), OutsideV6()} {
		if _, err := a.NS.Ping(ctx, to, Ping{Payload: PayloadFor(1400, to), DontFragment: true}); err != nil {
			t.Errorf("full-size ping: %v", err)
		}
		if _, err := a.NS.Ping(ctx, to, Ping{Count: 1, Payload: PayloadFor(1401, to), DontFragment: true}); err == nil {
			t.Errorf("a ping to %s above the MTU came through", to)
		}
	}
	if forward, err := a.NS.Sysctl("net/ipv4/ip_forward"); err != nil || forward != "0" {
		t.Errorf("ip_forward of a node is %q (%v), want 0", forward, err)
	}
	if err := b.SetUnderlayMTU(1300); err != nil {
		t.Fatal(err)
	}
	if mtu, err := b.NS.LinkMTU(underlayDevice); err != nil || mtu != 1300 {
		t.Errorf("MTU is %d (%v), want 1300", mtu, err)
	}
}

// TestHost: a host that is no node is on the underlay as they are.
func TestHost(t *testing.T) {
	l := ForTest(t, Options{Prefix: "host"})
	ctx := testContext(t)
	a, err := l.AddNode("a")
	if err != nil {
		t.Fatal(err)
	}
	h, err := l.AddHost("h", 3)
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []netip.Addr{h.V4, h.V6} {
		want := a.V4
		if addr.Is6() {
			want = a.V6
		}
		if seen, err := (Path{From: a.NS, To: h.NS, Addr: addr}).SourceSeen(ctx); err != nil || seen != want {
			t.Errorf("TCP source %v (%v), want %v", seen, err, want)
		}
	}
	if _, err := h.NS.Ping(ctx, OutsideV4(), Ping{Count: 1}); err != nil {
		t.Error(err)
	}
	if err := l.WriteConfigs(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(a.ConfigFile); err != nil || strings.Contains(string(b), h.V4.String()) {
		t.Errorf("the host is in a node's configuration, or there is none (%v):\n%s", err, b)
	}
	if _, err := l.AddHost("x", 10); err == nil {
		t.Error("a host without an address")
	}
}

// TestAdoptNS: a namespace of somebody else's is used by another name, which is gone afterwards while it goes on.
func TestAdoptNS(t *testing.T) {
	l := ForTest(t, Options{Prefix: "adopt"})
	own, err := l.AddNS("own")
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.Start(own, "sleeper", "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	adopted, err := l.AdoptNS("adopted", fmt.Sprintf("/proc/%d/ns/net", p.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	if adopted.id != own.id {
		t.Error("it is another namespace")
	}
	if err := adopted.SetSysctl("net/ipv4/ip_forward", "1"); err != nil {
		t.Error(err)
	}
	if value, err := own.Sysctl("net/ipv4/ip_forward"); err != nil || value != "1" {
		t.Errorf("ip_forward is %q (%v), want 1", value, err)
	}
	if err := l.ReleaseNS(adopted); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(adopted.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the name is still there: %v", err)
	}
	select {
	case <-p.Done():
		t.Error("what runs in it has ended")
	default:
	}
	if _, err := l.AdoptNS("none", "/proc/self/no such file"); err == nil {
		t.Error("adopted what is not there")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, "adopt")
}

func TestConnections(t *testing.T) {
	l := ForTest(t, Options{Prefix: "conns"})
	ctx := testContext(t)
	a, err := l.AddNode("a")
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []netip.Addr{OutsideV4(), OutsideV6()} {
		path := Path{From: a.NS, To: l.Outside, Addr: addr}
		want := a.V4
		if addr.Is6() {
			want = a.V6
		}
		if seen, err := path.SourceSeen(ctx); err != nil || seen != want {
			t.Errorf("TCP source %v (%v), want %v", seen, err, want)
		}
		if seen, err := path.SourceSeenUDP(ctx); err != nil || seen != want {
			t.Errorf("UDP source %v (%v), want %v", seen, err, want)
		}
		const size = 10<<20 + 7
		transfer, err := StartTransfer(ctx, path, TransferOptions{Bytes: size})
		if err != nil {
			t.Fatal(err)
		}
		if r, err := transfer.Wait(); err != nil || r.Bytes != size {
			t.Errorf("transfer of %d bytes: %d arrived (%v)", size, r.Bytes, err)
		}
	}
}

func TestTransferUntilFinish(t *testing.T) {
	l := ForTest(t, Options{Prefix: "finish"})
	a, err := l.AddNode("a")
	if err != nil {
		t.Fatal(err)
	}
	const rate, runs = 100 << 20, 200 * time.Millisecond
	for _, o := range []TransferOptions{{}, {BytesPerSecond: rate}} {
		transfer, err := StartTransfer(testContext(t), Path{From: a.NS, To: l.Outside, Addr: OutsideV4()}, o)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(runs)
		transfer.Finish()
		r, err := transfer.Wait()
		if err != nil || r.Bytes == 0 {
			t.Errorf("%d bytes arrived (%v)", r.Bytes, err)
		}
		if most := int64(rate*r.Took.Seconds()) + blockSize; o.BytesPerSecond == rate && r.Bytes > most {
			t.Errorf("%d bytes arrived in %v, more than the %d that the rate allows", r.Bytes, r.Took, most)
		}
	}
}

func TestEchoMeasuresAGap(t *testing.T) {
	l := ForTest(t, Options{Prefix: "echo"})
	ctx := testContext(t)
	a, err := l.AddNode("a")
	if err != nil {
		t.Fatal(err)
	}
	echo, err := StartEcho(ctx, Path{From: a.NS, To: l.Outside, Addr: OutsideV4()}, 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if err := echo.WaitAnswered(ctx); err != nil {
		t.Fatal(err)
	}
	echo.Mark()
	const gap = 300 * time.Millisecond
	down := func(state string) {
		if _, err := l.sw.Run(ctx, "ip", "link", "set", "port1", state); err != nil {
			t.Fatal(err)
		}
	}
	down("down")
	time.Sleep(gap)
	down("up")
	if err := echo.WaitAnswered(ctx); err != nil {
		t.Fatal(err)
	}
	if longest := echo.Longest(); longest < gap || longest > 20*gap {
		t.Errorf("measured a gap of %v, it was %v", longest, gap)
	}
	if err := echo.Stop(); err != nil {
		t.Error(err)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	l := ForTest(t, Options{Prefix: "close"})
	a, err := l.AddNode("a")
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.Start(a.NS, "sleeper", "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	// A grandchild in a session of its own is nobody's recorded process; it is found by its namespace.
	if _, err := a.NS.Run(testContext(t), "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"); err != nil {
		t.Fatal(err)
	}
	spaces := map[nsID]bool{a.NS.id: true}
	if pids, err := pidsIn(spaces); err != nil || len(pids) != 2 {
		t.Errorf("processes in the namespace: %v (%v), want two", pids, err)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if pids, err := pidsIn(spaces); err != nil || len(pids) != 0 {
		t.Errorf("still running: %v (%v)", pids, err)
	}
	select {
	case <-p.Done():
	default:
		t.Error("the started process still runs")
	}
	wantNothingLeft(t, "close")
	if _, err := l.AddNS("late"); !errors.Is(err, ErrClosed) {
		t.Errorf("AddNS after Close: %v, want ErrClosed", err)
	}
	if _, err := l.Start(a.NS, "late", "sleep", "1"); !errors.Is(err, ErrClosed) {
		t.Errorf("Start after Close: %v, want ErrClosed", err)
	}
}

func TestSignalClosesTheLab(t *testing.T) {
	NeedRoot(t)
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		holder := startHolder(t, "signal")
		if err := holder.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		_ = holder.Wait()
		if status := holder.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != s {
			t.Errorf("ended with %v, want by %v", holder.ProcessState, s)
		}
		wantNothingLeft(t, "signal")
	}
}

func TestSweep(t *testing.T) {
	NeedRoot(t)
	holder := startHolder(t, "sweep")
	if removed, err := Sweep("sweep", SweepKept); err != nil || len(removed) > 0 {
		t.Errorf("swept a running lab: %v (%v)", removed, err)
	}
	_ = holder.Process.Kill()
	_ = holder.Wait()
	left, err := Remains("sweep")
	if err != nil || len(left) < 3 {
		t.Fatalf("a killed lab left %v (%v), want namespaces and a directory", left, err)
	}
	removed, err := Sweep("sweep", SweepAbandoned)
	if err != nil || len(removed) != len(left) {
		t.Errorf("removed %v of %v (%v)", removed, left, err)
	}
	wantNothingLeft(t, "sweep")
}

func TestKeptLabStaysUntilAskedFor(t *testing.T) {
	NeedRoot(t)
	l, err := New(Options{Prefix: "kept"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = Sweep("kept", SweepKept) })
	// The owner has to look dead: no process has this start time.
	l.owner.Start = "0"
	if err := l.Keep(); err != nil {
		t.Fatal(err)
	}
	if removed, err := Sweep("kept", SweepAbandoned); err != nil || len(removed) > 0 {
		t.Errorf("swept a kept lab: %v (%v)", removed, err)
	}
	if removed, err := Sweep("kept", SweepKept); err != nil || len(removed) == 0 {
		t.Errorf("did not take the kept lab down: %v (%v)", removed, err)
	}
	wantNothingLeft(t, "kept")
}

func TestBadInput(t *testing.T) {
	for _, prefix := range []string{"", "UPPER", "with-dash", "../x", strings.Repeat("a", 13)} {
		if _, err := New(Options{Prefix: prefix}); err == nil {
			t.Errorf("New took the prefix %q", prefix)
		}
		if _, err := Sweep(prefix, SweepAbandoned); err == nil {
			t.Errorf("Sweep took the prefix %q", prefix)
		}
	}
	l := ForTest(t, Options{Prefix: "bad", BinDir: "/nonexistent"})
	if _, err := New(Options{Prefix: "bad"}); err == nil {
		t.Error("two labs with one prefix in one process")
	}
	if _, err := l.AddNode("a"); err != nil {
		t.Error(err)
	}
	if _, err := l.AddNode("a"); err == nil {
		t.Error("two nodes with one name")
	}
	if err := l.Nodes()[0].Up(testContext(t)); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("without binaries: %v, want a hint at make build", err)
	}
}

func TestState(t *testing.T) {
	l := ForTest(t, Options{Prefix: "state"})
	ctx := testContext(t)
	a, err := l.AddNode("a")
	if err != nil {
		t.Fatal(err)
	}
	before, err := a.NS.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.NS.Run(ctx, "ip", "route", "add", "unreachable", "10.244.0.0/16"); err != nil {
		t.Fatal(err)
	}
	after, err := a.NS.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	added, gone := after.Since(before)
	if len(added) != 1 || !strings.Contains(added[0], "unreachable 10.244.0.0/16") || len(gone) != 0 {
		t.Errorf("added %q, gone %q", added, gone)
	}
	if added, gone = before.Since(after); len(added) != 0 || len(gone) != 1 {
		t.Errorf("the other way round: added %q, gone %q", added, gone)
	}
}

func TestMentions(t *testing.T) {
	for _, tt := range []struct {
		addr, text string
		want       bool
	}{
		{"10.244.1.2", "10.244.1.2 dev x", true},
		{"10.244.1.2", "10.244.1.2/32", true},
		{"10.244.1.2", `"10.244.1.2"`, true},
		{"10.244.1.2", "10.244.1.20", false},
		{"10.244.1.2", "110.244.1.2", false},
		{"fd00::2", "fd00::2/128", true},
		{"fd00::2", "fd00::20", false},
		{"fd00::2", "fd00::2:1", false},
	} {
		if got := mentions(netip.MustParseAddr(tt.addr)).MatchString(tt.text); got != tt.want {
			t.Errorf("mentions(%s) in %q: %v, want %v", tt.addr, tt.text, got, tt.want)
		}
	}
}

func TestConfigFile(t *testing.T) {
	l := ForTest(t, Options{Prefix: "config"})
	n, err := l.AddNode("a")
	if err != nil {
		t.Fatal(err)
	}
	n.Settings.OnExit = "leave"
	if err := l.WriteConfigs(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(n.ConfigFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"node: a\n", "cluster:\n    - 10.244.0.0/16\n", `addresses: [192.0.2.1, '2001:db8::1']`,
		`podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']`, "onExit: leave\n", "runDir: " + n.RunDir + "\n",
		"encapsulation: vxlan\n",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %q in\n%s", want, b)
		}
	}
}

// TestOwnNamespaceIsNeverKilledIn mounts this process's own namespace under a name of a dead lab.
func TestOwnNamespaceIsNeverKilledIn(t *testing.T) {
	NeedRoot(t)
	bystander := exec.Command("sleep", "1000")
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = bystander.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = bystander.Process.Kill()
		<-ended
	})
	const noSuchPid = 1 << 23 // above the largest pid_max (proc(5))
	name := nsName("own", "machine", noSuchPid)
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := netnsDir + "/" + name
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = removeNS(name) })
	if err := unix.Mount("/proc/self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if removed, err := Sweep("own", SweepAbandoned); err != nil || len(removed) != 1 {
		t.Errorf("removed %v (%v), want %s", removed, err, name)
	}
	select {
	case <-ended:
		t.Error("a process of the machine was killed")
	case <-time.After(100 * time.Millisecond):
	}
	if pids, err := pidsIn(map[nsID]bool{}); err != nil || len(pids) != 0 {
		t.Errorf("processes in no namespace: %v (%v)", pids, err)
	}
}
