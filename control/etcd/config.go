package etcd

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// What holds unless a Config says otherwise.
const (
	DefaultNetwork  = "default"
	DefaultLeaseTTL = 24 * time.Hour
	DefaultAliveTTL = time.Minute
)

// The least that leases may last: etcd itself has none shorter than an election takes.
const (
	minAliveTTL = 5 * time.Second
	minLeaseTTL = 5 * time.Second
)

// A Config says which etcd, which network in it, and which node this is.
type Config struct {
	Endpoints []string    // HOST:PORT of members, or URLs; at least one
	TLS       *tls.Config // nil: without TLS, which only a test wants
	Network   string      // empty: DefaultNetwork
	Node      string      // this node's name
	StateDir  string      // of Warren; the node's id and lease are kept in it
	Log       *slog.Logger

	// FollowMembers has the source reach the etcd also through members that were added since, as their records say. It is
	// for the etcd that Warren runs; one that the user runs may be behind a name or a proxy.
	FollowMembers bool

	// Certified says that the etcd knows nodes by their certificates, so that whoever writes as the node is it. Without
	// that a host gets the name of one that is away only if it has one of its addresses.
	Certified bool

	LeaseTTL time.Duration // how long a node that is away keeps its name and CIDRs; 0: DefaultLeaseTTL
	AliveTTL time.Duration // how long until it counts as away; 0: DefaultAliveTTL

	// Retry is how long the source waits before it tries again what has failed, at first and at most; 0: half a second
	// and 15 seconds.
	Retry, MaxRetry time.Duration

	// Timeout bounds one question to the etcd; 0: 5 seconds.
	Timeout time.Duration

	connect func() *clientv3.Client // of a test, instead of the endpoints; nil: there is none
}

// maxName bounds names in bytes, as DNS does.
const maxName = 253

// CheckName refuses names of nodes and networks that cannot be part of a key, of a certificate, or of a table's line.
func CheckName(what, name string) error {
	plain := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' }
	good := name != "" && len(name) <= maxName && plain(name[0]) && plain(name[len(name)-1])
	for i := range len(name) {
		good = good && (plain(name[i]) || strings.IndexByte("-_.", name[i]) >= 0)
	}
	if !good {
		return fmt.Errorf("%s %q: use letters, digits, -, _ and ., beginning and ending with a letter or a digit, at "+
			"most %d characters", what, name, maxName)
	}
	return nil
}

// withDefaults checks c and fills in what it leaves open.
func (c Config) withDefaults() (Config, error) {
	c.Network = cmp.Or(c.Network, DefaultNetwork)
	c.LeaseTTL = cmp.Or(c.LeaseTTL, DefaultLeaseTTL)
	c.AliveTTL = cmp.Or(c.AliveTTL, DefaultAliveTTL)
	c.Retry = cmp.Or(c.Retry, 500*time.Millisecond)
	c.MaxRetry = cmp.Or(c.MaxRetry, 15*time.Second)
	c.Timeout = cmp.Or(c.Timeout, 5*time.Second)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case len(c.Endpoints) == 0:
		return c, errors.New("no etcd endpoint: name at least one, as 192.0.2.1:8789")
	case c.StateDir == "":
		return c, errors.New("no state directory for the node's id")
	case c.LeaseTTL < minLeaseTTL:
		return c, fmt.Errorf("lease of %s: use at least %s, and far more than a reboot takes", c.LeaseTTL, minLeaseTTL)
	case c.AliveTTL < minAliveTTL:
		return c, fmt.Errorf("aliveness of %s: use at least %s", c.AliveTTL, minAliveTTL)
	}
	for i, e := range c.Endpoints {
		c.Endpoints[i] = strings.TrimSpace(e)
	}
	return c, errors.Join(CheckName("network", c.Network), CheckName("node", c.Node))
}

// Keys are the keys of one network.
type keys struct{ prefix string }

// Prefix is what all keys of a network begin with.
func Prefix(network string) string { return "/warren/v1/" + network + "/" }

func keysOf(network string) keys { return keys{Prefix(network)} }

func (k keys) settings() string          { return k.prefix + "settings" }
func (k keys) nodes() string             { return k.prefix + "nodes/" }
func (k keys) node(name string) string   { return k.nodes() + name }
func (k keys) allLeased() string         { return k.prefix + "leased/" }
func (k keys) leased(name string) string { return k.allLeased() + name }
func (k keys) cidrs() string             { return k.prefix + "cidrs/" }
func (k keys) allAlive() string          { return k.prefix + "alive/" }
func (k keys) alive(name string) string  { return k.allAlive() + name }
func (k keys) members() string           { return k.prefix + "members/" }
func (k keys) member(name string) string { return k.members() + name }
func (k keys) cidr(text string) string   { return k.cidrs() + strings.ReplaceAll(text, "/", "_") }
func (k keys) cidrText(key string) string {
	return strings.ReplaceAll(strings.TrimPrefix(key, k.cidrs()), "_", "/")
}
