package cni_test

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

// What a killed run of these tests leaves, the next run removes when it begins: namespaces and files.
func TestSweptAfterKill(t *testing.T) {
	lab.NeedRoot(t)
	const inside = "WARREN_TEST_KILLED"
	if os.Getenv(inside) != "" {
		_, _ = os.Stdout.WriteString("namespace " + namespace(t, "k") + "\n")
		time.Sleep(time.Minute)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestSweptAfterKill$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	name := ""
	for lines := bufio.NewScanner(out); name == "" && lines.Scan(); {
		name = strings.TrimPrefix(lines.Text(), "namespace ")
		if name == lines.Text() {
			name = ""
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "wrn-"+labPrefix+"-*"))
	if err != nil || len(left) != 1 || name == "" {
		t.Fatalf("the killed run made namespace %q and left %q (%v)", name, left, err)
	}
	removed, err := lab.Sweep(labPrefix, lab.SweepAbandoned)
	if err != nil || !slices.Contains(removed, name) || !slices.Contains(removed, left[0]) {
		t.Errorf("removed %q (%v), want %s and %s among them", removed, err, name, left[0])
	}
	list, err := exec.Command("ip", "netns", "list").CombinedOutput()
	if err != nil || strings.Contains(string(list), name) {
		t.Errorf("%v\n%s", err, list)
	}
	if _, err := os.Stat(left[0]); err == nil {
		t.Errorf("%s is still there", left[0])
	}
}
