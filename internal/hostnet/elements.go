package hostnet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// elements lists the keys of a set; none when the set does not exist.
func (fw *firewall) elements(s *nftables.Set) ([][]byte, error) {
	keys, err := dump(func() ([][]byte, error) {
		keys, err := ask(fw, func(*nftables.Conn) ([][]byte, error) { return listElements(fw.sock, s) })
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			time.Sleep(time.Millisecond) // for who is at it to end
		}
		return keys, err
	})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing nftables set %s: %w", s.Name, err)
	}
	return keys, nil
}

// listElements dumps a set. The library does that as well, but hides what tells that a list is torn.
func listElements(conn *mdnetlink.Conn, s *nftables.Set) ([][]byte, error) {
	// Behind struct nfgenmsg: family, version 0, resource id 0.
	attrs := mdnetlink.NewAttributeEncoder()
	attrs.String(unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
	attrs.String(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	question, err := attrs.Encode()
	if err != nil {
		return nil, err
	}
	parts, err := conn.Execute(mdnetlink.Message{
		Header: mdnetlink.Header{
			Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSETELEM,
			Flags: mdnetlink.Request | mdnetlink.Dump,
		},
		Data: append([]byte{byte(s.Table.Family), unix.NFNETLINK_V0, 0, 0}, question...),
	})
	if err != nil {
		return nil, err
	}
	return readElements(parts)
}

// readElements takes the keys out of the messages of a dump, and refuses one that is torn.
//
// The kernel goes through the set anew for each message, and skips as many elements as were in those before. It does
// not say when a transaction came between (NLM_F_DUMP_INTR is missing as of Linux 6.18), but each message carries the
// number of the last one, as the resource id. Neither does it say when it moved the elements to a hash table of another
// size, which it does in the background after the set grew or shrank: then some are skipped that were not sent, and as
// many are sent twice.
func readElements(parts []mdnetlink.Message) ([][]byte, error) {
	var keys [][]byte
	seen := make(map[string]bool)
	for _, part := range parts {
		if part.Header.Flags&mdnetlink.DumpInterrupted != 0 {
			return nil, netlink.ErrDumpInterrupted
		}
		more, err := keysOf(part)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(resourceID(part), resourceID(parts[0])) {
			return nil, netlink.ErrDumpInterrupted
		}
		for _, key := range more {
			if seen[string(key)] {
				return nil, netlink.ErrDumpInterrupted
			}
			seen[string(key)] = true
		}
		keys = append(keys, more...)
	}
	return keys, nil
}

// resourceID is a field of struct nfgenmsg, which a message that keysOf has taken begins with.
func resourceID(part mdnetlink.Message) []byte { return part.Data[2:4] }

// intervalEnd is what keysOf adds to a key with which an interval ends: the next one may begin with the same.
const intervalEnd = 1

// keysOf reads one message: a list of elements, each with attributes of its own, one of which is the key.
func keysOf(part mdnetlink.Message) ([][]byte, error) {
	const nfgenmsg = 4
	if len(part.Data) < nfgenmsg {
		return nil, fmt.Errorf("a message of %d bytes", len(part.Data))
	}
	var keys [][]byte
	attrs, err := mdnetlink.NewAttributeDecoder(part.Data[nfgenmsg:])
	if err != nil {
		return nil, err
	}
	each := func(want uint16, f func(*mdnetlink.AttributeDecoder) error) func(*mdnetlink.AttributeDecoder) error {
		return func(d *mdnetlink.AttributeDecoder) error {
			for d.Next() {
				if d.Type() == want {
					d.Nested(f)
				}
			}
			return nil
		}
	}
	element := func(d *mdnetlink.AttributeDecoder) error {
		var key []byte
		ends := false
		for d.Next() {
			switch d.Type() {
			case unix.NFTA_SET_ELEM_KEY:
				d.Nested(func(d *mdnetlink.AttributeDecoder) error {
					for d.Next() {
						if d.Type() == unix.NFTA_DATA_VALUE {
							key = d.Bytes()
						}
					}
					return nil
				})
			case unix.NFTA_SET_ELEM_FLAGS:
				flags := d.Bytes()
				ends = len(flags) == 4 && binary.BigEndian.Uint32(flags)&unix.NFT_SET_ELEM_INTERVAL_END != 0
			}
		}
		switch {
		case ends:
			keys = append(keys, append(slices.Clone(key), intervalEnd))
		case key != nil:
			keys = append(keys, key)
		}
		return nil
	}
	list := each(unix.NFTA_SET_ELEM_LIST_ELEMENTS, each(unix.NFTA_LIST_ELEM, element))
	return keys, errors.Join(list(attrs), attrs.Err())
}
