package kubernetes

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/warren-net/warren/internal/yamldoc"
)

func TestNewErrors(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("KUBERNETES_SERVICE_PORT", "")
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, []byte("clusters: {"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		opt  Options
		want []string
	}{
		{Options{}, []string{"the node has no name", "NODE_NAME"}},
		{Options{NodeName: "a"}, []string{"runs in no pod", "DaemonSet", "kubernetes.kubeconfig"}},
		{Options{NodeName: "a", Kubeconfig: filepath.Join(dir, "none")},
			[]string{"none", "no such file", "kubectl --kubeconfig"}},
		{Options{NodeName: "a", Kubeconfig: garbage}, []string{garbage, "kubectl"}},
		{Options{NodeName: "a", Server: "http://192.0.2.1"}, []string{`"http://192.0.2.1" is not an https URL`}},
	} {
		_, err := New(c.opt)
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: %v; want %q", c.opt, err, want)
			}
		}
	}
}

func TestNewKubeconfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	const config = "{apiVersion: v1, kind: Config, current-context: c, " +
		"contexts: [{name: c, context: {cluster: k, user: u}}], clusters: [{name: k, cluster: {server: \"https://192.0.2.1:6443\"}}], users: [{name: u, user: {token: t}}]}\n"
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for server, want := range map[string]string{"": "https://192.0.2.1:6443", "https://[2001:db8::1]": "https://[2001:db8::1]"} {
		s, err := New(Options{NodeName: "a", Kubeconfig: path, Server: server})
		if err != nil {
			t.Fatal(err)
		}
		if s.client.host != want {
			t.Errorf("asks %s, want %s", s.client.host, want)
		}
	}
}

func TestSpec(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"kubernetes: {}", ""},
		{"kubernetes: {kubeconfig: /etc/kubernetes/warren.conf, server: \"https://192.0.2.1:6443\"}", ""},
		{"kubernetes: {kubeconfig: warren.conf}",
			`f:1: kubernetes.kubeconfig: "warren.conf" is not an absolute path; name the file as`},
		{"kubernetes: {server: \"192.0.2.1\"}", `f:1: kubernetes.server: "192.0.2.1" is not an https URL`},
		{"kubernetes: {server: \"https://\"}", `names no host; write it as https://192.0.2.1:6443`},
		{"kubernetes: {server: \"https://u:p@h/\"}", `has more than a host`},
		{"kubernetes: {server: \"https://h h/\"}", `is not a URL`},
		{"kubernetes: {token: t}", `token`},
		{"kubernetes: {server: \"http://192.0.2.1/\"}", `a token that crosses the network in the clear is everybody's`},
	} {
		var spec struct {
			Kubernetes Spec `yaml:"kubernetes"`
		}
		doc, err := yamldoc.Decode("f", []byte(c.text), &spec)
		if err == nil {
			err = spec.Kubernetes.Check(doc, "kubernetes")
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v; want %q", c.text, err, c.want)
		}
	}
}
