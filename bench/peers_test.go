package bench

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestInstallFallsBack holds that a release which can't be built leaves the turn to the next, and that what has been
// built is not built again.
func TestInstallFallsBack(t *testing.T) {
	dir, calls := t.TempDir(), filepath.Join(t.TempDir(), "calls")
	fake := t.TempDir()
	script := "#!/bin/sh\necho \"$@\" >> " + calls + "\ncase \"$*\" in\n" +
		"list*) echo v1.2.0 v1.9.1 v1.10.0 v1.11.0-rc1 v1.9.0;;\n" +
		"*v1.10*) echo v1.10 needs a newer Go >&2; exit 1;;\n*) touch $GOBIN/one $GOBIN/two;;\nesac\n"
	if err := os.WriteFile(filepath.Join(fake, "go"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", fake+":"+os.Getenv("PATH"))
	g := goProgram{module: "example.org/p", packages: []string{"cmd/one", "cmd/two"}}
	for range 2 {
		version, bin, err := g.install(t.Context(), dir)
		if err != nil || version != "v1.9.1" || bin != filepath.Join(dir, "p-v1.9.1") {
			t.Fatalf("installed %q in %q, %v", version, bin, err)
		}
	}
	const want = "list -m -f {{join .Versions \" \"}} -versions example.org/p@latest\n" +
		"install example.org/p/cmd/one@v1.10.0 example.org/p/cmd/two@v1.10.0\n" +
		"install example.org/p/cmd/one@v1.9.1 example.org/p/cmd/two@v1.9.1\n"
	if got, err := os.ReadFile(calls); err != nil || string(got) != want {
		t.Errorf("go was called with\n%s(%v), want\n%s", got, err, want)
	}
	g.versions = []string{"v1.10.0"}
	if _, _, err := g.install(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "newer Go") {
		t.Errorf("error %v, want the reason", err)
	}
	g.fallback = []string{"v1.8.0"}
	if version, _, err := g.install(t.Context(), dir); err != nil || version != "v1.8.0" {
		t.Errorf("version %q, %v, want the fallback", version, err)
	}
	// A half of a program is none.
	if err := os.Remove(filepath.Join(dir, "p-v1.9.1", "two")); err != nil {
		t.Fatal(err)
	}
	g.versions = nil
	if version, _ := g.built(dir); version != "v1.8.0" {
		t.Errorf("version %q is there, want v1.8.0", version)
	}
}
