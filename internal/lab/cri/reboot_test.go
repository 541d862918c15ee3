//go:build runtime

package cri_test

import "os"

// reboot brings a node without power up again: Warren, then the runtime.
func (c *cluster) reboot(n *node, loseState bool) {
	c.t.Helper()
	c.ok(n.Node.Reboot())
	if loseState {
		c.ok(os.RemoveAll(n.StateDir))
	}
	c.ok(n.Up(c.ctx))
	c.ok(n.runtime.Boot(c.ctx))
	c.ok(n.runtime.Start(c.ctx))
}
