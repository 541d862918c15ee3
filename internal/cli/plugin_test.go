package cli

import (
	"os"
	"path/filepath"
	"testing"
)

// The plugin is beside the program, or where the package has it; the one beside it is the one that was built with it.
func TestPluginOf(t *testing.T) {
	prefix := t.TempDir()
	bin := filepath.Join(prefix, "bin")
	beside, packaged := filepath.Join(bin, pluginName), filepath.Join(prefix, "libexec", "warren", pluginName)
	for _, step := range []struct{ put, want string }{{"", beside}, {packaged, packaged}, {beside, beside}} {
		if step.put != "" {
			if err := os.MkdirAll(filepath.Dir(step.put), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(step.put, nil, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if got := pluginOf(bin); got != step.want {
			t.Errorf("with %q: %s, want %s", step.put, got, step.want)
		}
	}
}
