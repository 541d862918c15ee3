package kubernetes

import (
	"net/url"
	"path/filepath"

	"github.com/warren-net/warren/internal/yamldoc"
)

// A Spec is the key `kubernetes` of Warren's configuration file: how the API server is reached. The zero value is right
// in a pod with a service account.
type Spec struct {
	Kubeconfig string `yaml:"kubeconfig"` // absolute path; empty: the pod's service account
	Server     string `yaml:"server"`     // URL, instead of the one that kubeconfig or the pod's environment names
}

// Check checks the values of s, which the document has under the key prefix, as "kubernetes". The error is a
// *yamldoc.Error.
func (s *Spec) Check(d *yamldoc.Doc, prefix string) error {
	if s.Kubeconfig != "" && !filepath.IsAbs(s.Kubeconfig) {
		return d.Error(yamldoc.Finding{Key: prefix + ".kubeconfig", Value: s.Kubeconfig, Why: "is not an absolute path",
			Fix: "name the file as /etc/kubernetes/warren.conf, or leave the key out for the pod's service account"})
	}
	if why := badServer(s.Server); why != "" {
		return d.Error(yamldoc.Finding{Key: prefix + ".server", Value: s.Server, Why: why,
			Fix: "write it as https://192.0.2.1:6443"})
	}
	return nil
}

// badServer says what is wrong with the URL of an API server; empty: nothing.
func badServer(server string) string {
	if server == "" {
		return ""
	}
	u, err := url.Parse(server)
	switch {
	case err != nil:
		return "is not a URL"
	case u.Scheme != "https":
		return "is not an https URL, and a token that crosses the network in the clear is everybody's"
	case u.Host == "":
		return "names no host"
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "has more than a host, a port and a path"
	}
	return ""
}
