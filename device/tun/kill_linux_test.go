package tun

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// victimEnv makes the test binary the process that gets killed: "hold" opens the device and waits, "loop" makes and
// removes it for ever.
const victimEnv = "WARREN_TEST_TUN_VICTIM"

func TestMain(m *testing.M) {
	switch os.Getenv(victimEnv) {
	case "":
		os.Exit(m.Run())
	case "hold":
		if _, err := Open(Config{Name: "wrntun0", Queues: 2, MTU: 1400}); err != nil {
			panic(err)
		}
		_, _ = os.Stdout.WriteString("ready\n")
		time.Sleep(time.Minute)
	case "loop":
		_, _ = os.Stdout.WriteString("ready\n")
		for end := time.Now().Add(time.Minute); time.Now().Before(end); {
			d, err := Open(Config{Name: "wrntun0", Queues: 2})
			if err != nil {
				panic(err)
			}
			if err := d.Remove(); err != nil {
				panic(err)
			}
		}
	}
}

// startVictim starts a process in the test's network namespace and waits until it is ready.
func startVictim(t *testing.T, what string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(exe)
	c.Env = append(os.Environ(), victimEnv+"="+what)
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // it never outlives the test
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(c) })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("victim said %q, %v", line, err)
	}
	return c
}

// kill ends a process as `kill -9` does. A second call does nothing.
func kill(c *exec.Cmd) {
	if c.ProcessState == nil {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
}

// The next process takes over what a killed one left, and sets what its own configuration says.
func TestTakeOverFromKilled(t *testing.T) {
	enterFreshNetns(t)
	victim := startVictim(t, "hold")
	index := link(t, "wrntun0").Attrs().Index
	if _, err := Open(Config{Name: "wrntun0"}); !errors.Is(err, ErrBusy) {
		t.Errorf("while it lives: %v, want ErrBusy", err)
	}
	kill(victim)
	d := open(t, Config{Queues: 3, MTU: 1300})
	if l := link(t, "wrntun0"); d.Created() || d.Index() != index || l.Attrs().MTU != 1300 || l.Queues != 3 {
		t.Errorf("created %v, index %d (was %d), %+v", d.Created(), d.Index(), index, l)
	}
}

// Killed at any moment, a process leaves nothing, or a device that the next one recognises.
func TestKilledAtAnyMoment(t *testing.T) {
	enterFreshNetns(t)
	found := 0
	for i := range 25 {
		victim := startVictim(t, "loop")
		time.Sleep(time.Duration(i) * 1700 * time.Microsecond)
		kill(victim)
		if _, err := netlink.LinkByName("wrntun0"); err == nil {
			found++
		}
		d, err := Open(Config{Name: "wrntun0"})
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if err := d.Remove(); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if all, err := netlink.LinkList(); err != nil || len(all) != 1 {
			t.Fatalf("round %d: %d devices left besides lo, %v", i, len(all)-1, err)
		}
	}
	t.Logf("%d of 25 left a device", found)
}
