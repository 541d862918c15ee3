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

// A udpPort is one that a tunnel wants.
type udpPort struct {
	number uint16
	key    string // of the configuration that sets it
	device string // kind of the kernel's devices that may have it
}

// ports tries to take the tunnels' UDP ports.
func (c *checker) ports() {
	for _, p := range []udpPort{
		{c.VXLANPort, "vxlan", "vxlan"}, {c.WireGuardPort, "wireguard", "wireguard"},
	} {
		if p.number != 0 {
			c.port(p)
		}
	}
}

// port tries to take a UDP port, and finds out who has it.
func (c *checker) port(p udpPort) {
	const what = "UDP port"
	for _, a := range c.Spec.NodeAddrs {
		network := map[bool]string{true: "udp4", false: "udp6"}[a.Is4()]
		conn, err := net.ListenUDP(network, &net.UDPAddr{Port: int(p.number)})
		if err == nil {
			_ = conn.Close()
			continue
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			c.error(what, fmt.Sprintf("UDP port %d can't be opened: %v", p.number, err),
				fmt.Sprintf("set another `%s: {port: …}` on all nodes", p.key))
			return
		}
		c.portTaken(what, p)
		return
	}
	c.ok(what, "UDP port %d is free", p.number)
}

func (c *checker) portTaken(what string, p udpPort) {
	elsewhere := fmt.Sprintf("set another `%s: {port: %d}` on all nodes", p.key, p.number+1)
	name := c.kernelTunnel(p) // no process has its socket
	pid, comm := socketOwner(int(p.number))
	switch {
	case comm == "warren":
		c.ok(what, "UDP port %d is used by the running warren (process %d)", p.number, pid)
	case comm != "":
		c.error(what, fmt.Sprintf("UDP port %d is taken by %s (process %d)", p.number, comm, pid),
			fmt.Sprintf("stop it, or %s", elsewhere))
	case name != "":
		c.error(what, fmt.Sprintf("UDP port %d is taken by the kernel's %s device %s (another pod network, or by hand)",
			p.number, p.device, name), fmt.Sprintf("`ip link del %s` if nobody needs it, or %s", name, elsewhere))
	default:
		c.error(what, fmt.Sprintf("UDP port %d is taken", p.number),
			fmt.Sprintf("find the owner with `ss -lunp sport = :%d` and stop it, or %s", p.number, elsewhere))
	}
}

// kernelTunnel names a device of the kernel's that may have the port. The port of a WireGuard device is not to be seen
// by rtnetlink, so any of these counts.
func (c *checker) kernelTunnel(p udpPort) string {
	links, err := dump(c.h.LinkList)
	if err != nil {
		return ""
	}
	for _, l := range links {
		if l.Type() != p.device {
			continue
		}
		if v, ok := l.(*netlink.Vxlan); !ok || v.Port == int(p.number) {
			return l.Attrs().Name
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
