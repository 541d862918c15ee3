package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/internal/nodefile"
)

// Code is the code that the runtime would see.
func Code(err error) uint {
	var e *types.Error
	if errors.As(spec(err), &e) {
		return e.Code
	}
	return 0
}

// MakeAgainForTest makes the translation anew as the DEL does that met an ADD.
func MakeAgainForTest(runDir string, ensure func(hostnet.Masquerade) error) error {
	return makeAgain(runDir, ensure)
}

// ResolveForTest completes a configuration with the node file of a node that has one IPv4 and one IPv6 pod CIDR.
func ResolveForTest(dir, fields string) error {
	err := nodefile.Write(dir, nodefile.File{
		MTU:      1420,
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("fd00:10:244:1::1")},
	})
	if err != nil {
		return err
	}
	c, err := ParseConfig(fmt.Appendf(nil, `{"cniVersion": "1.0.0", "name": "pods", "runDir": %q, "stateDir": %q, %s}`,
		dir, filepath.Join(dir, "state"), fields))
	if err != nil {
		return err
	}
	_, err = c.resolve()
	return err
}
