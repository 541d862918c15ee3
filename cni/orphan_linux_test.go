package cni_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/cni"
	"golang.org/x/sys/unix"
)

// slowIPAM is an IPAM plugin that says in files of a directory where it is: "pid" when it begins to work on an ADD, and
// "held", which DEL removes, when it has given the address. It takes half a second in between, and leaves a process
// behind in the background if "background" is there.
const slowIPAM = `#!/bin/sh
cd "$(dirname "$0")" || exit 1
cat > /dev/null
case $CNI_COMMAND in
ADD)
	echo $$ > pid.tmp && mv pid.tmp pid
	if [ -e background ]; then
		sleep 100 < /dev/null > /dev/null 2>&1 &
		echo $! > background
	else
		sleep 0.5
	fi
	echo "$CNI_CONTAINERID" > held
	echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.244.1.40/24"}]}'
	;;
DEL) rm -f held ;;
esac
`

// newNodeWithSlowIPAM is a node with the plugin slow-ipam, and its directory.
func newNodeWithSlowIPAM(t *testing.T) (n *node, dir string) {
	t.Helper()
	n, dir = newNode(t), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "slow-ipam"), []byte(slowIPAM), 0o755); err != nil {
		t.Fatal(err)
	}
	n.path += ":" + dir
	n.confMore = `, "ipam": {"type": "slow-ipam"}`
	return n, dir
}

// eventually waits for something that happens within seconds.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still waiting for %s", what)
		}
	}
}

// pidIn reads the id of a process from a file; 0 when it is not there yet.
func pidIn(path string) int {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return pid
}

// running reports whether a process is there, and not only waits for somebody to ask how it ended.
func running(pid int) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && len(line) > 0
}

// An IPAM plugin at work when warren-cni is killed gives its address after the kill. What comes next, a DEL or a GC,
// waits for it and gives the address back.
func TestKilledWhileIPAMWorks(t *testing.T) {
	for _, next := range []string{"DEL", "GC"} {
		t.Run(next, func(t *testing.T) {
			n, dir := newNodeWithSlowIPAM(t)
			p := n.pod(n.conf("1.1.0", cni.ModeRouted))
			cmd := n.command(p.call("ADD"))
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var worker int
			eventually(t, "the IPAM plugin", func() bool { worker = pidIn(filepath.Join(dir, "pid")); return worker > 0 })
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if cmd.Wait() == nil {
				t.Fatal("ADD was done before it was killed: the test showed nothing")
			}
			if !running(worker) {
				t.Fatal("the IPAM plugin did not outlive the kill: the test showed nothing")
			}
			if next == "GC" {
				n.must(call{command: "GC", conf: strings.TrimSuffix(p.conf, "}") + `, "cni.dev/valid-attachments": []}`})
			} else {
				p.del()
			}
			eventually(t, "the IPAM plugin's end", func() bool { return !running(worker) })
			if holder, err := os.ReadFile(filepath.Join(dir, "held")); err == nil {
				t.Errorf("after %s the address is still held by %s", next, holder)
			}
		})
	}
}

// A process that an IPAM plugin leaves in the background keeps no DEL waiting.
func TestIPAMWithBackgroundProcess(t *testing.T) {
	n, dir := newNodeWithSlowIPAM(t)
	background := filepath.Join(dir, "background")
	if err := os.WriteFile(background, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := n.pod(n.conf("1.1.0", cni.ModeRouted))
	p.add()
	pid := pidIn(background)
	if pid == 0 || !running(pid) {
		t.Fatalf("no process in the background (%d)", pid)
	}
	t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) })
	begin := time.Now()
	p.del()
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("DEL took %v", took)
	}
}
