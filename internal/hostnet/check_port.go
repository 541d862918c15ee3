package hostnet

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// port tries to take the tunnel's UDP port, and finds out who has it.
func (c *checker) port() {
	const what = "UDP port"
	if c.Port == 0 {
		return
	}
	for _, a := range c.Spec.NodeAddrs {
		network := map[bool]string{true: "udp4", false: "udp6"}[a.Is4()]
		conn, err := net.ListenUDP(network, &net.UDPAddr{Port: int(c.Port)})
		if err == nil {
			_ = conn.Close()
			continue
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			c.error(what, fmt.Sprintf("UDP port %d can't be opened: %v", c.Port, err),
				"set another `vxlan: {port: …}` on all nodes")
			return
		}
		c.portTaken(what)
		return
	}
	c.ok(what, "UDP port %d is free", c.Port)
}

func (c *checker) portTaken(what string) {
	elsewhere := fmt.Sprintf("set another `vxlan: {port: %d}` on all nodes", c.Port+1)
	if name := c.kernelVXLAN(); name != "" {
		c.error(what, fmt.Sprintf("UDP port %d is taken by the kernel's VXLAN device %s (flannel, Calico, Cilium or by hand)",
			c.Port, name), fmt.Sprintf("`ip link del %s` if nobody needs it, or %s", name, elsewhere))
		return
	}
	pid, comm := socketOwner(int(c.Port))
	switch {
	case comm == "warren":
		c.ok(what, "UDP port %d is used by the running warren (process %d)", c.Port, pid)
	case comm != "":
		c.error(what, fmt.Sprintf("UDP port %d is taken by %s (process %d)", c.Port, comm, pid),
			fmt.Sprintf("stop it, or %s", elsewhere))
	default:
		c.error(what, fmt.Sprintf("UDP port %d is taken", c.Port),
			fmt.Sprintf("find the owner with `ss -lunp sport = :%d` and stop it, or %s", c.Port, elsewhere))
	}
}

func (c *checker) kernelVXLAN() string {
	links, err := dump(c.h.LinkList)
	if err != nil {
		return ""
	}
	for _, l := range links {
		if v, ok := l.(*netlink.Vxlan); ok && v.Port == int(c.Port) {
			return v.Name
		}
	}
	return ""
}

// socketOwner finds a process that has a UDP socket on the port; an empty name when none is found or may be seen.
func socketOwner(port int) (pid int, comm string) {
	inodes := map[string]bool{}
	for _, table := range []string{"udp", "udp6"} {
		text, err := os.ReadFile("/proc/thread-self/net/" + table)
		if err != nil {
			continue
		}
		for inode := range udpInodes(string(text), port) {
			inodes["socket:["+inode+"]"] = true
		}
	}
	if len(inodes) == 0 {
		return 0, ""
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return 0, ""
	}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil || !inodes[target] {
			continue
		}
		id := strings.Split(fd, "/")[2]
		name, err := os.ReadFile("/proc/" + id + "/comm")
		if err != nil {
			continue
		}
		pid, _ = strconv.Atoi(id)
		return pid, strings.TrimSpace(string(name))
	}
	return 0, ""
}

// udpInodes finds the sockets bound to a port in the text of /proc/net/udp.
func udpInodes(text string, port int) map[string]bool {
	inodes := map[string]bool{}
	suffix := fmt.Sprintf(":%04X", port)
	for line := range strings.Lines(text) {
		const local, inode = 1, 9
		fields := strings.Fields(line)
		if len(fields) > inode && strings.HasSuffix(fields[local], suffix) {
			inodes[fields[inode]] = true
		}
	}
	return inodes
}
