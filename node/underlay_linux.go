package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/node/api"
)

// underlayOf finds the devices that hold the addresses. An address that is on no device has no Device and MTU 0.
func underlayOf(addrs []netip.Addr) ([]api.Underlay, error) {
	out := make([]api.Underlay, len(addrs))
	for i, a := range addrs {
		device, mtu, err := hostnet.Underlay(a)
		if err != nil && !errors.Is(err, hostnet.ErrNoUnderlay) {
			return nil, err
		}
		out[i] = api.Underlay{Address: a, Device: device, MTU: mtu}
	}
	return out, nil
}

// checkUnderlay refuses a start with an address that no device holds.
func checkUnderlay(addrs []netip.Addr) error {
	for _, a := range addrs {
		_, _, err := hostnet.Underlay(a)
		switch {
		case errors.Is(err, hostnet.ErrNoUnderlay):
			return fmt.Errorf("%w; add it with `ip addr add`, or correct the node's `addresses:`", err)
		case err != nil:
			return err
		}
	}
	return nil
}

// watchUnderlay calls changed whenever the device of one of the addresses or its MTU changed, until ctx ends.
func watchUnderlay(ctx context.Context, addrs []netip.Addr, changed func(), problem func(error)) {
	for _, a := range addrs {
		go func() {
			if err := hostnet.WatchMTU(ctx, a, func(string, int, error) { changed() }); err != nil {
				problem(err)
			}
		}()
	}
}
