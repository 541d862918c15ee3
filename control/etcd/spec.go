package etcd

import (
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/warren-net/warren/internal/yamldoc"
)

// A Spec is the key `etcd` of Warren's configuration file: which etcd, and what this host is in it.
type Spec struct {
	Endpoints []string `yaml:"endpoints"` // HOST:PORT of members, or URLs
	Network   string   `yaml:"network"`   // empty: DefaultNetwork
	Lease     string   `yaml:"lease"`     // how long an away node keeps name and CIDRs; empty: DefaultLeaseTTL

	// Of an etcd that the user runs: absolute paths in PEM form. Without any of them the etcd is Warren's own, and the
	// certificates are those that the host got when it joined, in the state directory; with an endpoint of http:// there
	// are none.
	CA          string `yaml:"ca"`
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`

	// Embedded says that this host runs a member of Warren's own etcd, which is reached at these, each IP:PORT.
	Embedded      bool   `yaml:"embedded"`
	ListenClients string `yaml:"listenClients"`
	ListenPeers   string `yaml:"listenPeers"`
	ListenJoin    string `yaml:"listenJoin"`
}

// Check checks the values of s, which the document has under the key prefix, as "etcd". The error is a *yamldoc.Error.
func (s *Spec) Check(d *yamldoc.Doc, prefix string) error {
	wrong := func(key, value, why, fix string) error {
		return d.Error(yamldoc.Finding{Key: prefix + key, Value: value, Why: why, Fix: fix})
	}
	if len(s.Endpoints) == 0 {
		return wrong(".endpoints", "", "no endpoint of the etcd is listed",
			"`warren init` and `warren join` write this file; or list where an etcd is reached, as [192.0.2.1:8789]")
	}
	for _, e := range s.Endpoints {
		if strings.TrimSpace(e) == "" {
			return wrong(".endpoints", e, "is no endpoint", "write it as 192.0.2.1:8789 or https://etcd.example.com:2379")
		}
	}
	if s.Network != "" {
		if err := CheckName("network", s.Network); err != nil {
			return wrong(".network", s.Network, "is not a name", "use letters, digits, - and _")
		}
	}
	if s.Lease != "" {
		if ttl, err := time.ParseDuration(s.Lease); err != nil || ttl < time.Minute {
			return wrong(".lease", s.Lease, "is not a time of a minute or more",
				"write it as 24h; it should be longer than any node may be away")
		}
	}
	for key, path := range map[string]string{".ca": s.CA, ".certificate": s.Certificate, ".key": s.Key} {
		if path != "" && !filepath.IsAbs(path) {
			return wrong(key, path, "is not an absolute path", "name the file as /etc/warren/etcd.crt")
		}
	}
	if (s.Certificate == "") != (s.Key == "") {
		return wrong(".certificate", s.Certificate, "is one of a pair: `certificate` and `key`", "name both files, or none")
	}
	if !s.Embedded {
		return nil
	}
	if !s.Own() {
		return wrong(".embedded", "", "an embedded member belongs to Warren's own etcd, and the keys `ca`, `certificate` "+
			"or an endpoint of http:// name the user's", "leave it out, or leave those out")
	}
	for key, at := range map[string]string{".listenClients": s.ListenClients, ".listenPeers": s.ListenPeers,
		".listenJoin": s.ListenJoin} {
		if a, err := netip.ParseAddrPort(at); err != nil || a.Addr().IsUnspecified() {
			return wrong(key, at, "is not an address and a port at which others reach this member",
				"write it as 192.0.2.1:8789")
		}
	}
	return nil
}

// Own reports whether the etcd is one that Warren runs.
func (s *Spec) Own() bool { return s.CA == "" && s.Certificate == "" && !s.plain() }

func (s *Spec) plain() bool {
	return len(s.Endpoints) > 0 && strings.HasPrefix(s.Endpoints[0], "http://")
}

// Config is the configuration of a source or a client; own are the files for Warren's own etcd (join.Files).
func (s *Spec) Config(own Files) (Config, error) {
	c := Config{Endpoints: append([]string(nil), s.Endpoints...), Network: s.Network, FollowMembers: s.Own(),
		Certified: s.Own()}
	if s.Lease != "" {
		var err error
		if c.LeaseTTL, err = time.ParseDuration(s.Lease); err != nil {
			return c, err
		}
	}
	if s.plain() {
		return c, nil
	}
	files := Files{CA: s.CA, Cert: s.Certificate, Key: s.Key, Endpoints: c.Endpoints}
	if s.Own() {
		files = own
	}
	var err error
	c.TLS, err = files.Config()
	return c, err
}
