//go:build routers

package e2e_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/warren-net/warren/internal/lab"
)

// TestRouters has a router between the nodes that runs BIRD, and one that runs FRR, with what `warren routes export`
// prints. `make test-routers` installs them; the regular tests do without, as both are services of the machine.
func TestRouters(t *testing.T) {
	for format, start := range map[string]func(*cluster, *lab.NS, string){"bird": (*cluster).bird, "frr": (*cluster).frr} {
		t.Run(format, func(t *testing.T) {
			c := newCluster(t, lab.Options{})
			router, nodes := c.behindRouter()
			for _, n := range nodes {
				c.direct(n, "direct")
			}
			c.configure()
			c.up(nodes...)
			one, third := c.pod(nodes[0], "1"), c.pod(nodes[2], "1")
			routes, err := nodes[1].Warren(c.ctx, "routes", "export", "--format", format)
			c.ok(err)
			start(c, router, routes)
			for _, f := range families() {
				c.eventually(func() error {
					_, err := one.NS.Ping(c.ctx, third.Address(f), lab.Ping{Count: 1})
					return err
				})
				c.meet(one, third, f)
				c.meet(third, one, f)
			}
		})
	}
}

// routerDir makes a directory that daemons who give up root can use.
func (c *cluster) routerDir() string {
	c.t.Helper()
	dir, err := os.MkdirTemp("", "router")
	c.ok(err)
	c.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c.ok(os.Chmod(dir, 0o777))
	return dir
}

func (c *cluster) routerFile(dir, name, text string) string {
	c.t.Helper()
	path := filepath.Join(dir, name)
	c.ok(os.WriteFile(path, []byte(text), 0o644))
	return path
}

// startRouter starts a daemon that ends with the test.
func (c *cluster) startRouter(router *lab.NS, args ...string) {
	c.t.Helper()
	p, err := c.lab.Start(router, filepath.Base(args[0]), args...)
	c.ok(err)
	c.t.Cleanup(func() { _ = p.Kill() })
}

// bird starts BIRD 2.
func (c *cluster) bird(router *lab.NS, routes string) {
	c.t.Helper()
	lab.NeedTool(c.t, "bird", "bird2")
	dir := c.routerDir()
	c.routerFile(dir, "warren.conf", routes)
	conf := c.routerFile(dir, "bird.conf", `log stderr all;
router id 192.0.2.253;
protocol device {}
protocol kernel { ipv4 { export all; }; }
protocol kernel { ipv6 { export all; }; }
include "warren.conf";
`)
	c.run(router, "bird", "-p", "-c", conf)
	c.startRouter(router, "bird", "-f", "-c", conf, "-s", filepath.Join(dir, "ctl"), "-P", filepath.Join(dir, "pid"))
}

// frr starts FRR's zebra and staticd. They are not in the PATH.
func (c *cluster) frr(router *lab.NS, routes string) {
	c.t.Helper()
	const zebra, staticd = "/usr/lib/frr/zebra", "/usr/lib/frr/staticd"
	lab.NeedTool(c.t, zebra, "frr")
	dir := c.routerDir()
	c.run(router, "chown", "frr:frrvty", dir)
	for _, d := range []struct{ program, conf string }{{zebra, ""}, {staticd, routes}} {
		name := filepath.Base(d.program)
		file := c.routerFile(dir, name+".conf", d.conf)
		c.startRouter(router, d.program, "-f", file, "-i", filepath.Join(dir, name+".pid"), "-z", filepath.Join(dir, "zserv"),
			"--vty_socket", dir, "-P", "0", "--log", "stdout")
	}
}
