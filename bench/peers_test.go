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
	script := "#!/bin/sh\necho \"$@\" >> " + calls + "\n" +
		"case \"$*\" in *v2*) echo v2 needs a newer Go >&2; exit 1;; esac\ntouch $GOBIN/one $GOBIN/two\n"
	if err := os.WriteFile(filepath.Join(fake, "go"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", fake+":"+os.Getenv("PATH"))
	g := goProgram{module: "example.org/p", packages: []string{"cmd/one", "cmd/two"}, versions: []string{"v2", "v1"}}
	for range 2 {
		version, bin, err := g.install(t.Context(), dir)
		if err != nil || version != "v1" || bin != filepath.Join(dir, "p-v1") {
			t.Fatalf("installed %q in %q, %v", version, bin, err)
		}
	}
	got, err := os.ReadFile(calls)
	const v1 = "install example.org/p/cmd/one@v1 example.org/p/cmd/two@v1\n"
	if err != nil || strings.Count(string(got), v1) != 1 {
		t.Errorf("go was called with\n%s(%v), want v1 once", got, err)
	}
	g.versions = []string{"v2"}
	if _, _, err := g.install(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "newer Go") {
		t.Errorf("error %v, want the reason", err)
	}
}
