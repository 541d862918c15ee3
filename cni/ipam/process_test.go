package ipam_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warren-net/warren/cni/ipam"
	"github.com/warren-net/warren/internal/atomicfile"
)

// childEnv makes the test binary a process that allocates: "<root> <first id> <pods> <keep|release>".
const childEnv = "WARREN_TEST_IPAM_CHILD"

func TestMain(m *testing.M) {
	if job := os.Getenv(childEnv); job != "" {
		if err := child(job); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child allocates for pod after pod and prints what each was given, when it was given.
func child(job string) error {
	var root, name, end string
	var pods int
	if _, err := fmt.Sscan(job, &root, &name, &pods, &end); err != nil {
		return err
	}
	t := &testing.T{}
	for i := range pods {
		s, err := ipam.Open(root, "pods", wait)
		if err != nil {
			return err
		}
		id := fmt.Sprintf("%s-%d", name, i)
		given, err := s.Allocate(ipam.Request{ContainerID: id, IfName: "eth0", Sets: dual(t)})
		if err != nil {
			return err
		}
		fmt.Println(id, strings.Join(addrs(given), " "))
		if end == "release" && i%2 == 0 {
			release(t, s, id, "eth0")
		}
	}
	return nil
}

func command(root, name string, pods int, end string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+fmt.Sprintln(root, name, pods, end))
	cmd.Stderr = os.Stderr
	return cmd
}

func TestManyProcessesNeverShareAnAddress(t *testing.T) {
	root := t.TempDir()
	var mu sync.Mutex
	holder := map[string]string{}
	var wg sync.WaitGroup
	for p := range 10 {
		wg.Go(func() {
			out, err := command(root, fmt.Sprint("p", p), 20, "keep").Output()
			if err != nil {
				t.Errorf("process %d: %v", p, err)
			}
			mu.Lock()
			defer mu.Unlock()
			for line := range strings.Lines(string(out)) {
				fields := strings.Fields(line)
				for _, addr := range fields[1:] {
					if holder[addr] != "" {
						t.Errorf("%s was given to %s and to %s", addr, holder[addr], fields[0])
					}
					holder[addr] = fields[0]
				}
			}
		})
	}
	wg.Wait()
	if len(holder) != 2*200 {
		t.Errorf("%d addresses were given, want 400", len(holder))
	}
}

// A process is killed at random moments, again and again. Whatever it did, every address file names its owner, what the
// process was told it had is still there, and the deletion of every pod it knew of frees everything.
func TestKilledAtRandomMoments(t *testing.T) {
	root := t.TempDir()
	const kills = 60
	promised := map[string]string{} // address to the pod that printed it
	for k := range kills {
		cmd := command(root, fmt.Sprint("k", k), 50, "release")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines, begun := make(chan []string, 1), make(chan bool, 100)
		go func() {
			var all []string
			for scan := bufio.NewScanner(out); scan.Scan(); {
				all = append(all, scan.Text())
				begun <- true
			}
			close(begun)
			lines <- all
		}()
		<-begun // it is past its start-up, and in the loop
		time.Sleep(time.Duration(rand.Int64N(int64(20 * time.Millisecond))))
		_ = cmd.Process.Kill()
		all := <-lines
		_ = cmd.Wait()
		for i, line := range all {
			fields := strings.Fields(line)
			if i%2 == 1 && len(fields) == 3 { // pods with an even number were released, or were about to be
				for _, addr := range fields[1:] {
					promised[addr] = fields[0]
				}
			}
		}
		s := open(t, root, "pods")
		entries, err := s.Entries()
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]string{}
		for _, e := range entries {
			if e.Err != nil {
				t.Errorf("after kill %d: %v", k, e.Err)
			}
			have[e.Addr.String()] = e.ContainerID
		}
		for addr, id := range promised {
			if have[addr] != id {
				t.Errorf("after kill %d: %s was given to %s and is now %q's", k, addr, id, have[addr])
			}
		}
		// Every other time the pods are deleted, as a runtime would.
		if k%2 == 0 {
			continue
		}
		for _, e := range entries {
			release(t, s, e.ContainerID, e.IfName)
		}
		clear(promised)
		if left, err := s.Entries(); err != nil || len(left) != 0 {
			t.Fatalf("after kill %d and the deletion of every pod: %v %v", k, left, err)
		}
	}
	files, err := os.ReadDir(filepath.Join(root, "pods"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if atomicfile.IsTemp(f.Name()) {
			t.Errorf("leftover %s", f.Name())
		}
	}
}

func BenchmarkAllocateRelease(b *testing.B) {
	s := open(b, b.TempDir(), "pods")
	for b.Loop() {
		if _, err := s.Allocate(ipam.Request{ContainerID: "c", IfName: "eth0", Sets: dual(b)}); err != nil {
			b.Fatal(err)
		}
		release(b, s, "c", "eth0")
	}
}
