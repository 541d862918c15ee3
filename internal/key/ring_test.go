package key

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/atomicfile"
)

// must is for calls whose error ends the test.
func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// names are the files in dir.
func names(t *testing.T, dir string) string {
	t.Helper()
	entries := must[[]os.DirEntry](t)(os.ReadDir(dir))
	var out []string
	for _, e := range entries {
		if st := must[os.FileInfo](t)(e.Info()); st.Mode() != 0o600 {
			t.Errorf("%s has mode %v", e.Name(), st.Mode())
		}
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}

func TestLifeOfARing(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0)) // the files' mode is their own
	dir := filepath.Join(t.TempDir(), "state", "warren")
	for name, f := range map[string]func(string) (Ring, error){"Load": Load, "Rotate": Rotate, "Finish": Finish} {
		if _, err := f(dir); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s without a key: %v", name, err)
		}
	}
	first, made, err := LoadOrCreate(dir)
	if err != nil || !made || len(first.Keys) != 1 || first.Rotating() || names(t, dir) != File {
		t.Fatalf("%v, %v, %v", first, made, err)
	}
	if again, made, err := LoadOrCreate(dir); err != nil || made || again.Newest() != first.Newest() {
		t.Errorf("a second time: %v, %v, %v", again, made, err)
	}
	if b := must[[]byte](t)(os.ReadFile(filepath.Join(dir, File))); string(b) != first.Newest().RevealText()+"\n" {
		t.Error("the file is not what `wg pubkey` reads")
	}
	if _, err := Finish(dir); !errors.Is(err, ErrNoRotation) {
		t.Errorf("finish without a rotation: %v", err)
	}

	second := must[Ring](t)(Rotate(dir))
	if !second.Rotating() || len(second.Keys) != 2 || second.Keys[1] != first.Newest() ||
		second.Newest() == first.Newest() || names(t, dir) != File+" "+PreviousFile {
		t.Errorf("rotated: %v", second)
	}
	if loaded := must[Ring](t)(Load(dir)); !slices.Equal(loaded.Keys, second.Keys) {
		t.Error("loaded something else than was rotated to")
	}
	if s := fmt.Sprintf("%+v", second); s != "{Keys:[(secret key) (secret key)]}" {
		t.Errorf("a ring prints as %s", s)
	}
	_, err = Rotate(dir)
	if !errors.Is(err, ErrRotating) || !strings.Contains(err.Error(), second.Newest().Public().String()) ||
		!strings.Contains(err.Error(), "warren key rotate --finish") {
		t.Errorf("a second rotation: %v", err)
	}
	if loaded := must[Ring](t)(Load(dir)); !slices.Equal(loaded.Keys, second.Keys) {
		t.Error("the refused rotation changed the ring")
	}

	third := must[Ring](t)(Finish(dir))
	if len(third.Keys) != 1 || third.Newest() != second.Newest() || names(t, dir) != File {
		t.Errorf("finished: %v", third)
	}
	if loaded := must[Ring](t)(Load(dir)); !slices.Equal(loaded.Keys, third.Keys) {
		t.Error("loaded something else than was left")
	}
}

// TestKilledWriters goes through every state in which a killed process can leave the files.
func TestKilledWriters(t *testing.T) {
	old, next := NewPrivate(), NewPrivate()
	whole := func(p Private) string { return string(content(p)) }
	file, previous := File, PreviousFile
	temp := func(name string) string { return filepath.Base(atomicfile.Temp(name)) }
	for _, c := range []struct {
		name  string
		files map[string]string
		want  []Private // what Load says; nil: ErrNone
	}{
		{"new: temporary file", map[string]string{temp(file): ""}, nil},
		{"new: temporary file, torn", map[string]string{temp(file): whole(old)[:20]}, nil},
		{"new: temporary file, linked", map[string]string{temp(file): whole(old), file: whole(old)}, []Private{old}},
		{"rotate: previous is temporary", map[string]string{file: whole(old), temp(previous): whole(old)[:9]},
			[]Private{old}},
		{"rotate: previous in place", map[string]string{file: whole(old), previous: whole(old)}, []Private{old}},
		{"rotate: next is temporary", map[string]string{file: whole(old), previous: whole(old), temp(file): whole(next)[:9]},
			[]Private{old}},
		{"rotate: next is written", map[string]string{file: whole(old), previous: whole(old), temp(file): whole(next)},
			[]Private{old}},
		{"rotated", map[string]string{file: whole(next), previous: whole(old)}, []Private{next, old}},
		{"finish: previous is gone", map[string]string{file: whole(next)}, []Private{next}},
	} {
		t.Run(c.name, func(t *testing.T) {
			fresh := func() string {
				dir := t.TempDir()
				for name, text := range c.files {
					put(t, filepath.Join(dir, name), text)
				}
				return dir
			}
			dir := fresh()
			ring, err := Load(dir)
			if c.want == nil {
				if !errors.Is(err, ErrNone) {
					t.Fatalf("load: %v, %v", ring, err)
				}
				if made, ok, err := LoadOrCreate(dir); err != nil || !ok || names(t, dir) != File {
					t.Errorf("create: %v, %v, %v, and then %s", made, ok, err, names(t, dir))
				}
				return
			}
			if err != nil || !slices.Equal(ring.Keys, c.want) {
				t.Fatalf("load: %v, %v", ring, err)
			}
			if len(c.want) == 1 { // no rotation is under way: the next one goes as ever
				if _, err := Finish(dir); !errors.Is(err, ErrNoRotation) {
					t.Errorf("finish: %v", err)
				}
				ring, err = Rotate(dir)
				if err != nil || len(ring.Keys) != 2 || ring.Keys[1] != c.want[0] || ring.Keys[0] == next && c.want[0] != next {
					t.Errorf("rotate: %v, %v", ring, err)
				}
			}
			last := ring.Newest()
			if ring, err = Finish(dir); err != nil || len(ring.Keys) != 1 || ring.Newest() != last || names(t, dir) != File {
				t.Errorf("finish: %v, %v, and then %s", ring, err, names(t, dir))
			}
			if ring := must[Ring](t)(Load(dir)); len(ring.Keys) != 1 || ring.Newest() != last {
				t.Error("the files say something else")
			}
		})
	}
}

// TestOneKeyForAll starts many processes' worth of first starts at once.
func TestOneKeyForAll(t *testing.T) {
	for range 20 {
		dir := filepath.Join(t.TempDir(), "state")
		var wg sync.WaitGroup
		rings, created := make([]Ring, 8), make([]bool, 8)
		begin := make(chan struct{})
		for i := range rings {
			wg.Go(func() {
				<-begin
				var err error
				if rings[i], created[i], err = LoadOrCreate(dir); err != nil {
					t.Error(err)
				}
			})
		}
		close(begin)
		wg.Wait()
		if t.Failed() {
			return
		}
		makers := 0
		for i, r := range rings {
			if r.Newest() != rings[0].Newest() {
				t.Fatal("two keys were made")
			}
			if created[i] {
				makers++
			}
		}
		if makers != 1 || names(t, dir) != File {
			t.Fatalf("%d made the key; files %s", makers, names(t, dir))
		}
	}
}

// TestBadFiles refuses what others could have read or made, and what is no key.
func TestBadFiles(t *testing.T) {
	secret := NewPrivate()
	good := secret.RevealText()
	type file struct {
		text string
		mode os.FileMode
		make func(path string) error // instead of writing text
	}
	foreign := os.Geteuid() == 0
	for _, c := range []struct {
		name string
		file file
		want string // with the path for PATH
	}{
		{"good", file{text: good + "\n", mode: 0o600}, ""},
		{"read-only", file{text: good + "\n", mode: 0o400}, ""},
		{"without a line feed", file{text: good, mode: 0o600}, ""},
		{"group", file{text: good + "\n", mode: 0o640},
			"PATH has mode 0640, so others than its owner may have the key: chmod 600 PATH, and make a new one unless you"},
		{"others", file{text: good + "\n", mode: 0o604},
			"PATH has mode 0604, so others than its owner may have the key: chmod"},
		{"writable by others", file{text: good + "\n", mode: 0o602}, "PATH has mode 0602"},
		{"symbolic link", file{make: func(path string) error {
			put(t, path+".real", good+"\n")
			return os.Symlink(path+".real", path)
		}}, "PATH is a symbolic link"},
		{"dangling link", file{make: func(path string) error { return os.Symlink("nowhere", path) }},
			"PATH is a symbolic link"},
		{"directory", file{make: func(path string) error { return os.Mkdir(path, 0o700) }}, "PATH is not a regular file"},
		{"pipe", file{make: func(path string) error { return syscall.Mkfifo(path, 0o600) }}, "PATH is not a regular file"},
		{"empty", file{mode: 0o600}, "PATH is empty: put the key back, or remove the file"},
		{"torn", file{text: good[:30], mode: 0o600}, "PATH holds no key: want 32 bytes in base64"},
		{"torn line", file{text: good[:43] + "\n", mode: 0o600}, "PATH holds no key"},
		{"zero bytes", file{text: strings.Repeat("\x00", 45), mode: 0o600}, "PATH holds no key"},
		{"zero key", file{text: strings.Repeat("A", 43) + "=\n", mode: 0o600}, "PATH holds no key"},
		{"two lines", file{text: good + "\n" + good + "\n", mode: 0o600}, "PATH holds no key"},
		{"two line feeds", file{text: good + "\n\n", mode: 0o600}, "PATH holds no key"},
		{"Windows line", file{text: good + "\r\n", mode: 0o600}, "PATH holds no key"},
		{"long", file{text: strings.Repeat(good+"\n", 1000), mode: 0o600}, "PATH holds no key"},
		{"foreign owner", file{make: func(path string) error {
			put(t, path, good+"\n")
			return os.Chown(path, 65534, 65534)
		}}, fmt.Sprintf("PATH has mode 0600 and belongs to user 65534, who can change it: chown %d PATH", os.Geteuid())},
	} {
		if c.name == "foreign owner" && !foreign {
			t.Log("only root can give a file away")
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			// As the newest key, as the previous one, and as a preshared key.
			for _, as := range []string{File, PreviousFile, "psk"} {
				for _, old := range []string{File, PreviousFile} {
					if err := os.RemoveAll(filepath.Join(dir, old)); err != nil {
						t.Fatal(err)
					}
				}
				path := filepath.Join(dir, as)
				if as == PreviousFile {
					put(t, filepath.Join(dir, File), string(content(NewPrivate())))
				}
				_ = os.Remove(path + ".real")
				var err error
				if c.file.make != nil {
					err = c.file.make(path)
				} else if err = os.WriteFile(path, []byte(c.file.text), c.file.mode); err == nil {
					err = os.Chmod(path, c.file.mode)
				}
				if err != nil {
					t.Fatal(err)
				}
				calls := map[string]func() error{"LoadPreshared": func() error { _, err := LoadPreshared(path); return err }}
				if as != "psk" {
					calls = map[string]func() error{
						"Load":         func() error { _, err := Load(dir); return err },
						"LoadOrCreate": func() error { _, _, err := LoadOrCreate(dir); return err },
					}
					if c.want != "" {
						calls["Rotate"] = func() error { _, err := Rotate(dir); return err }
						calls["Finish"] = func() error { _, err := Finish(dir); return err }
					}
				}
				for name, call := range calls {
					err := call()
					if c.want == "" {
						if err != nil {
							t.Errorf("%s of %s: %v", name, as, err)
						}
						continue
					}
					if want := strings.ReplaceAll(c.want, "PATH", path); err == nil || !strings.Contains(err.Error(), want) {
						t.Errorf("%s of %s: got  %v\nwant %q in it", name, as, err, want)
					} else if strings.Contains(err.Error(), good[:12]) || strings.Contains(err.Error(), "AAAA") {
						t.Errorf("%s shows the key: %v", name, err)
					} else if errors.Is(err, ErrNone) {
						t.Errorf("%s takes a bad key for none: %v", name, err)
					}
				}
			}
		})
	}
}

// TestNewestIsGone has somebody remove the newest key during a rotation; another one is not made unasked.
func TestNewestIsGone(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, PreviousFile), string(content(NewPrivate())))
	for name, f := range map[string]func(string) (Ring, error){"Load": Load, "Rotate": Rotate, "Finish": Finish,
		"LoadOrCreate": func(dir string) (Ring, error) { r, _, err := LoadOrCreate(dir); return r, err }} {
		want := fmt.Sprintf("mv %s %s", filepath.Join(dir, PreviousFile), filepath.Join(dir, File))
		if _, err := f(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	if got := names(t, dir); got != PreviousFile {
		t.Errorf("files %s", got)
	}
}

func TestPresharedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "psk")
	if _, err := LoadPreshared(path); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("no file: %v", err)
	}
	want := NewPreshared()
	put(t, path, want.RevealText()+"\n")
	if got, err := LoadPreshared(path); err != nil || got != want {
		t.Errorf("%v, %v", got, err)
	}
}

// killedEnv names the directory in which this test's program, started again, rotates for ever.
const killedEnv = "WARREN_TEST_ROTATE"

// TestKilledForReal kills a process that rotates and finishes as fast as it can, many times.
func TestKilledForReal(t *testing.T) {
	if dir := os.Getenv(killedEnv); dir != "" {
		rotateForEver(dir)
	}
	dir := t.TempDir()
	if _, _, err := LoadOrCreate(dir); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestKilledForReal$")
		cmd.Env = append(os.Environ(), killedEnv+"="+dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		end := func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it was killed
		}
		t.Cleanup(end)
		before := must[Ring](t)(Load(dir))
		for begin := time.Now(); must[Ring](t)(Load(dir)).Newest() == before.Newest(); { // until it works
			if time.Since(begin) > 20*time.Second {
				end()
				t.Fatal("the process does not rotate")
			}
		}
		end()
		ring := must[Ring](t)(Load(dir))
		if ring.Rotating() {
			ring = must[Ring](t)(Finish(dir))
		}
		next := must[Ring](t)(Rotate(dir))
		if next.Keys[1] != ring.Newest() {
			t.Fatal("the key got lost")
		}
		must[Ring](t)(Finish(dir))
		if got := names(t, dir); got != File {
			t.Fatalf("files %s", got)
		}
	}
}

func rotateForEver(dir string) {
	for {
		if _, err := Rotate(dir); err != nil {
			panic(err)
		}
		if _, err := Finish(dir); err != nil {
			panic(err)
		}
	}
}
