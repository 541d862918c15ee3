package static

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/warren-net/warren/control"
)

// A run is a running source and what it said.
type run struct {
	t        *testing.T
	src      *Source
	updates  chan control.Update
	problems chan error
}

func start(t *testing.T, path string, poll time.Duration) *run {
	t.Helper()
	r := &run{t: t, updates: make(chan control.Update, 16), problems: make(chan error, 16)}
	r.src = New(Options{Path: path, Poll: poll})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.src.Run(ctx, r.updates, func(err error) { r.problems <- err }) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Run does not end")
		}
	})
	return r
}

func (r *run) wantNodes(names ...string) {
	r.t.Helper()
	select {
	case s := <-r.updates:
		var got []string
		for _, n := range s.Nodes {
			got = append(got, n.Name)
		}
		if strings.Join(got, " ") != strings.Join(names, " ") {
			r.t.Fatalf("nodes %v, want %v", got, names)
		}
	case err := <-r.problems:
		r.t.Fatalf("problem: %v", err)
	case <-time.After(5 * time.Second):
		r.t.Fatal("no update")
	}
}

func (r *run) wantProblem(part string) {
	r.t.Helper()
	select {
	case <-r.updates:
		r.t.Fatal("a bad file was sent as a state")
	case err := <-r.problems:
		if !strings.Contains(err.Error(), part) {
			r.t.Fatalf("problem %v, want %q in it", err, part)
		}
	case <-time.After(5 * time.Second):
		r.t.Fatal("no problem reported")
	}
}

func (r *run) wantQuiet() {
	r.t.Helper()
	select {
	case s := <-r.updates:
		r.t.Fatalf("unexpected update %+v", s)
	case err := <-r.problems:
		r.t.Fatalf("unexpected problem %v", err)
	case <-time.After(200 * time.Millisecond):
	}
}

func cluster(names ...string) string {
	text := "cluster: [10.244.0.0/16]\nencapsulation: vxlan\nnodes:\n"
	for i, name := range names {
		d := string(rune('1' + i))
		text += "  - {name: " + name + ", addresses: [192.0.2." + d + "], podCIDRs: [10.244." + d + ".0/24]}\n"
	}
	return text
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func replace(t *testing.T, path, text string) {
	t.Helper()
	write(t, path+".new", text)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

const never = time.Hour // for tests of events: no polling helps out

func TestSourceFollowsTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "w.yaml")
	write(t, path, cluster("a"))
	r := start(t, path, never)
	r.wantNodes("a")
	write(t, path, cluster("a", "b")) // in place
	r.wantNodes("a", "b")
	replace(t, path, cluster("a", "b", "c")) // by rename, twice, as the inode changes each time
	r.wantNodes("a", "b", "c")
	replace(t, path, cluster("a", "c"))
	r.wantNodes("a", "c")
	replace(t, path, cluster("a", "c")) // the same content
	write(t, filepath.Join(filepath.Dir(path), "other"), "x")
	r.wantQuiet()
}

func TestSourceSurvivesBadFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "w.yaml")
	r := start(t, path, never)
	r.wantProblem("there is no such file")
	write(t, path, cluster("a"))
	r.wantNodes("a")
	replace(t, path, "cluster: [10.244.0.0/33]\n")
	r.wantProblem(":1: cluster[0]:")
	r.wantQuiet()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	r.wantProblem("there is no such file")
	replace(t, path, cluster("a")) // the old content is news after a bad one
	r.wantNodes("a")
}

func TestSourceWritesInSteps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "w.yaml")
	write(t, path, cluster("a"))
	r := start(t, path, never)
	r.wantNodes("a")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, part := range strings.SplitAfter(cluster("a", "b"), "\n") {
		if _, err := f.WriteString(part); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	r.wantNodes("a", "b")
	r.wantQuiet()
}

// TestSourceConfigMap does what the kubelet does: a link to ..data/file, and ..data swapped by rename.
func TestSourceConfigMap(t *testing.T) {
	dir := t.TempDir()
	generation := func(name, text string) {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name, "w.yaml"), text)
		if err := os.Symlink(name, filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	generation("..1", cluster("a"))
	path := filepath.Join(dir, "w.yaml")
	if err := os.Symlink("..data/w.yaml", path); err != nil {
		t.Fatal(err)
	}
	r := start(t, path, never)
	r.wantNodes("a")
	for _, gen := range []string{"..2", "..3"} {
		generation(gen, cluster("a", "b"+gen[2:]))
		r.wantNodes("a", "b"+gen[2:])
	}
}

func TestSourceLinkToAnotherDirectory(t *testing.T) {
	real := filepath.Join(t.TempDir(), "real.yaml")
	path := filepath.Join(t.TempDir(), "w.yaml")
	write(t, real, cluster("a"))
	if err := os.Symlink(real, path); err != nil {
		t.Fatal(err)
	}
	r := start(t, path, never)
	r.wantNodes("a")
	for _, name := range []string{"b", "c"} {
		replace(t, real, cluster("a", name))
		r.wantNodes("a", name)
	}
}

func TestSourcePollsWhereNoEventComes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "conf")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "w.yaml")
	write(t, path, cluster("a"))
	r := start(t, path, 20*time.Millisecond)
	r.wantNodes("a")
	// The whole directory is replaced: the watch on the old one says nothing of the new one.
	if err := os.Mkdir(dir+".new", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir+".new", "w.yaml"), cluster("a", "b"))
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+".new", dir); err != nil {
		t.Fatal(err)
	}
	for {
		select {
		case s := <-r.updates:
			if len(s.Nodes) == 2 {
				return
			}
		case err := <-r.problems:
			if !strings.Contains(err.Error(), "no such file") { // seen between the two renames
				t.Fatal(err)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("no update")
		}
	}
}

func TestSourceReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "w.yaml")
	write(t, path, cluster("a"))
	r := start(t, path, never)
	r.wantNodes("a")
	r.src.Reload()
	r.wantNodes("a") // unchanged, and sent all the same
	r.wantQuiet()
}

func TestSourceLoadHook(t *testing.T) {
	path := filepath.Join(t.TempDir(), "w.yaml")
	write(t, path, "anything")
	updates, problems := make(chan control.Update, 1), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	refused := errors.New("refused")
	src := New(Options{Path: path, Load: func(data []byte) (control.State, error) {
		if string(data) != "anything" {
			t.Errorf("data %q", data)
		}
		return control.State{}, refused
	}})
	go func() { _ = src.Run(ctx, updates, func(err error) { problems <- err }) }()
	if err := <-problems; !errors.Is(err, refused) {
		t.Fatal(err)
	}
}

func TestReadFileErrors(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(dir, "long")
	if err := os.WriteFile(long, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(long, maxFile+1); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "absent"): "there is no such file; name another with --config",
		dir:                          "is not a regular file",
		pipe:                         "is not a regular file",
		long:                         "is longer than",
	} {
		if _, err := ReadFile(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

// TestReadFileUnreadable takes the right to read away, from the test's own thread alone where that is root's.
func TestReadFileUnreadable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "w.yaml")
	if err := os.WriteFile(path, []byte(good), 0); err != nil {
		t.Fatal(err)
	}
	read := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if os.Geteuid() == 0 {
			if err := syscall.Setfsuid(65534); err != nil {
				read <- err
				return
			}
		}
		_, err := ReadFile(path)
		read <- err
	}()
	err := <-read
	if err == nil || !strings.Contains(err.Error(), path+": the file cannot be read: permission denied; run as root") {
		t.Errorf("%v", err)
	}
}
