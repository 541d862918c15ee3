package atomicfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/warren-net/warren/internal/atomicfile"
)

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func onlyFile(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != filepath.Base(path) {
		t.Errorf("the directory holds %v, want only %s", entries, filepath.Base(path))
	}
}

func TestReplaceAndCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	if err := atomicfile.Create(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Create(path, []byte("two"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("creating a file that exists: %v, want %v", err, fs.ErrExist)
	}
	if got := read(t, path); got != "one" {
		t.Errorf("the first content became %q", got)
	}
	if err := atomicfile.Replace(path, []byte("three"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); got != "three" {
		t.Errorf("replaced content is %q", got)
	}
	onlyFile(t, path)
	for range 2 {
		if err := atomicfile.Remove(path); err != nil {
			t.Errorf("removing, also a second time: %v", err)
		}
	}
}

// A writer killed between link and unlink leaves a temporary file that is a second link to the file in place.
func TestLeftoverLinkIsNotTruncated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "10.244.1.2")
	if err := os.WriteFile(path, []byte("owner"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(path, atomicfile.Temp(path)); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Create(path, []byte("somebody else"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want %v", err, fs.ErrExist)
	}
	if got := read(t, path); got != "owner" {
		t.Errorf("the file in place became %q", got)
	}
	onlyFile(t, path)
}

func TestErrorsLeaveNothing(t *testing.T) {
	dir := t.TempDir()
	if err := atomicfile.Replace(filepath.Join(dir, "absent", "x"), []byte("x"), 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("directory that does not exist: %v", err)
	}
	path := filepath.Join(dir, "directory")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Replace(path, []byte("x"), 0o600); err == nil {
		t.Error("a directory was replaced by a file")
	}
	onlyFile(t, path)
}

func TestIsTemp(t *testing.T) {
	for name, want := range map[string]bool{
		filepath.Base(atomicfile.Temp("/a/b.json")): true,
		"b.json":   false,
		".hidden":  false,
		"b.tmp":    false,
		"10.0.0.1": false,
	} {
		if got := atomicfile.IsTemp(name); got != want {
			t.Errorf("IsTemp(%q) = %v", name, got)
		}
	}
}
