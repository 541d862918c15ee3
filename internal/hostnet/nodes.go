package hostnet

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"github.com/google/nftables"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Nodes changes what the firewall knows of other nodes, beside Apply. It remembers what it did for as long as the
// kernel may still tell of it, so that a Watch that is given it does not look at everything for each node that leaves.
// The zero value is ready. It is safe for concurrent use.
type Nodes struct {
	mu    sync.Mutex
	ports []uint32 // of the netlink sockets that were used last
}

// rememberedPorts is of how many changes the kernel may still have to tell.
const rememberedPorts = 256

// Change adds and removes underlay addresses of nodes where the firewall looks for them, and leaves the rest as it is:
// what Apply does for all of them, at the price of those that have changed. It is no error when there is no firewall;
// when it is not as Apply left it, Apply mends it.
func (n *Nodes) Change(added, gone []netip.Addr) error {
	return withInetTable("addresses of nodes", func(fw *firewall) error {
		tx := fw.change(inetTable())
		for _, s := range nodeSets(inetTable()) {
			keys := func(list []netip.Addr) (out [][]byte) {
				for _, a := range list {
					if nodeSet(familyOf(a)) == s.Name {
						out = append(out, a.AsSlice())
					}
				}
				return out
			}
			tx.change(s, keys(added), (*nftables.Conn).SetAddElements)
			tx.change(s, keys(gone), (*nftables.Conn).SetDeleteElements)
		}
		n.note(fw.sock)
		if err := tx.commit(); err != nil {
			return fmt.Errorf("nftables sets of nodes: %w", err)
		}
		return nil
	})
}

// note remembers a socket. One whose port cannot be read is not: then Watch looks.
func (n *Nodes) note(sock *mdnetlink.Conn) {
	if sock == nil {
		return
	}
	raw, err := sock.SyscallConn()
	if err != nil {
		return
	}
	var port uint32
	err = raw.Control(func(fd uintptr) {
		if a, err := unix.Getsockname(int(fd)); err == nil {
			if a, ok := a.(*unix.SockaddrNetlink); ok {
				port = a.Pid
			}
		}
	})
	if err != nil || port == 0 {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ports = append(n.ports, port); len(n.ports) > rememberedPorts {
		n.ports = slices.Delete(n.ports, 0, len(n.ports)-rememberedPorts)
	}
}

// made reports whether a message is about the removal of an element by Change. The kernel puts the port of the socket
// that asked for it into the header.
func (n *Nodes) made(m syscall.NetlinkMessage) bool {
	if n == nil || m.Header.Type&0xff != unix.NFT_MSG_DELSETELEM {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Contains(n.ports, m.Header.Pid)
}
