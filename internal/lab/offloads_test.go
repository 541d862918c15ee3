package lab

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// writtenOffloads are the offloads in the file that is written for a node.
func writtenOffloads(t *testing.T, n *Node) (map[string]string, error) {
	t.Helper()
	n.ConfigFile = filepath.Join(t.TempDir(), "warren.yaml")
	if err := n.writeConfig(nil); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(n.ConfigFile)
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Offloads map[string]string }
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return file.Offloads, nil
}

// The environment decides on the offloads of the nodes for which no test asked for any, and of no other.
func TestOffloadsFromEnvironment(t *testing.T) {
	chosen := map[string]string{"tso": "off"}
	for _, c := range []struct {
		env       string
		set, want map[string]string
	}{
		{"", nil, nil},
		{"", chosen, chosen},
		{"udpGSO=off", nil, map[string]string{"udpGSO": "off"}},
		{"uso=off,tunnelGSO=on", nil, map[string]string{"uso": "off", "tunnelGSO": "on"}},
		{"uso=off,tunnelGSO=on", chosen, chosen},
	} {
		t.Setenv(OffloadsEnv, c.env)
		got, err := writtenOffloads(t, &Node{Name: "a", Settings: Settings{Offloads: c.set}})
		if err != nil || !maps.Equal(got, c.want) {
			t.Errorf("%q, the test asked for %v: %v, %v, want %v", c.env, c.set, got, err, c.want)
		}
	}
	t.Setenv(OffloadsEnv, "express=off,tso=off")
	n := &Node{Name: "a", Settings: Settings{Moderation: "auto"}}
	s, err := n.settings()
	if err != nil || s.Express != "off" || s.Moderation != "auto" || !maps.Equal(s.Offloads, chosen) {
		t.Errorf("%+v, %v", s, err)
	}
	for _, env := range []string{"udpGSO", "=off", "tso=", "tso=off,"} {
		t.Setenv(OffloadsEnv, env)
		if got, err := writtenOffloads(t, &Node{Name: "a"}); err == nil || !strings.Contains(err.Error(), OffloadsEnv) {
			t.Errorf("%q: %v, %v, want an error", env, got, err)
		}
	}
}
