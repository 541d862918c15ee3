package cni_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/warren-net/warren/cni"
	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/internal/nodefile"
)

// A DEL that met an ADD makes the translation again where the ADD made one, and has no failure that the ADD had not.
func TestTranslationMadeAgain(t *testing.T) {
	other := errors.New("another failure")
	node := func(masquerade bool) *nodefile.File {
		return &nodefile.File{
			MTU: 1420, Masquerade: masquerade, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")},
			Gateways: []netip.Addr{netip.MustParseAddr(gateway4)},
		}
	}
	for _, tc := range []struct {
		name   string
		node   *nodefile.File
		ensure error
		called bool
		want   error
	}{
		{"made again", node(true), nil, true, nil},
		{"a kernel without nftables", node(true), fmt.Errorf("x: %w", hostnet.ErrNoNftables), true, nil},
		{"any other failure", node(true), other, true, other},
		{"switched off", node(false), other, false, nil},
		{"no daemon", nil, other, false, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if tc.node != nil {
				if err := nodefile.Write(dir, *tc.node); err != nil {
					t.Fatal(err)
				}
			}
			called := false
			err := cni.MakeAgainForTest(dir, func(hostnet.Masquerade) error {
				called = true
				return tc.ensure
			})
			if called != tc.called || !errors.Is(err, tc.want) {
				t.Errorf("called %t, want %t; %v, want %v", called, tc.called, err, tc.want)
			}
		})
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, nodefile.Name), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := cni.MakeAgainForTest(dir, func(hostnet.Masquerade) error { return nil }); err == nil {
		t.Error("a node file that can't be read is no failure")
	}
}
