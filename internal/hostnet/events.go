package hostnet

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What the netlink headers of package unix do not name.
const (
	netconfIfindex    = 1          // NETCONFA_IFINDEX
	netconfIfindexAll = 0xffffffff // NETCONFA_IFINDEX_ALL
	netconfHeader     = 4          // struct netconfmsg, aligned
	nfgenHeader       = 4          // struct nfgenmsg
	nftAttrTable      = 1          // the table's name: NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, …
	eventBuffer       = 1 << 20    // bytes; a full buffer is noticed (ENOBUFS), this one makes it seldom
)

// An interesting reports whether a netlink message may mean that something of Warren's changed.
type interesting func(m syscall.NetlinkMessage) bool

// listen opens a netlink socket in the calling thread's namespace, subscribes to groups and sends to wake when a
// message is interesting, or when messages were lost. It ends with ctx. It never blocks on wake, which has room for
// one: a wake that nobody has taken yet stands for all.
func listen(ctx context.Context, protocol int, wake chan<- struct{}, match interesting, groups ...uint) error {
	sock, err := nl.Subscribe(protocol, groups...)
	if err != nil {
		return fmt.Errorf("subscribing to netlink events: %w", err)
	}
	// Without CAP_NET_ADMIN the size is limited by net.core.rmem_max; then messages are lost a bit sooner.
	_ = sock.SetReceiveBufferSize(eventBuffer, true)
	stop := context.AfterFunc(ctx, sock.Close)
	go func() {
		defer stop()
		for {
			msgs, _, err := sock.Receive()
			switch {
			case errors.Is(err, os.ErrClosed) || ctx.Err() != nil:
				return
			case errors.Is(err, unix.EBADF):
				return
			case err == nil && !anyOf(msgs, match):
				continue
			}
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	}()
	return nil
}

func anyOf(msgs []syscall.NetlinkMessage, match interesting) bool {
	for _, m := range msgs {
		if match(m) {
			return true
		}
	}
	return false
}

// routeEvent finds what may undo Warren's routes, rules, device, addresses or forwarding.
func routeEvent(device func() string) interesting {
	return func(m syscall.NetlinkMessage) bool {
		switch m.Header.Type {
		case unix.RTM_DELROUTE:
			// rtm_protocol; routes of others come and go by the thousand on some hosts.
			return len(m.Data) > 5 && m.Data[5] == Protocol
		case unix.RTM_NEWROUTE:
			return m.Header.Flags&unix.NLM_F_REPLACE != 0
		case unix.RTM_DELRULE, unix.RTM_DELADDR:
			return true
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			return len(m.Data) > unix.SizeofIfInfomsg &&
				string(bytes.TrimRight(attribute(m.Data[unix.SizeofIfInfomsg:], unix.IFLA_IFNAME), "\x00")) == device()
		case unix.RTM_NEWNETCONF:
			if len(m.Data) < netconfHeader {
				return false
			}
			index := attribute(m.Data[netconfHeader:], netconfIfindex)
			return len(index) == 4 && binary.NativeEndian.Uint32(index) == netconfIfindexAll
		}
		return false
	}
}

// nftEvent finds deletions in Warren's nftables tables.
func nftEvent(m syscall.NetlinkMessage) bool {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < nfgenHeader {
		return false
	}
	switch m.Header.Type & 0xff {
	case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELSET,
		unix.NFT_MSG_DELSETELEM, unix.NFT_MSG_DELOBJ:
		name := attribute(m.Data[nfgenHeader:], nftAttrTable)
		return string(bytes.TrimRight(name, "\x00")) == tableName
	}
	return false
}

// attribute finds the value of a netlink attribute; nil when it is not there or the message is cut short.
func attribute(b []byte, kind uint16) []byte {
	const header = unix.SizeofNlAttr
	for len(b) >= header {
		n := int(binary.NativeEndian.Uint16(b))
		if n < header || n > len(b) {
			return nil
		}
		if binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == kind {
			return b[header:n]
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}
