package cni_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/warren-net/warren/cni"
	"github.com/warren-net/warren/cni/podrecord"
)

// record and address are files of the state directory.
func (p *pod) record() string {
	return filepath.Join(podrecord.Dir(p.n.state()), podrecord.HostIfName(p.id, "eth0")+".json")
}

func (n *node) address(addr string) string {
	return filepath.Join(n.state(), "cni", "ipam", "pods", addr)
}

func (n *node) bridgeFile(name string) string {
	return filepath.Join(n.state(), "cni", "bridges", name+".json")
}

func (n *node) gc(mode, fields string) call {
	return call{command: "GC", conf: strings.TrimSuffix(n.conf("1.1.0", mode), "}") + fields + "}"}
}

const noAttachments = `, "cni.dev/valid-attachments": []`

func spoil(t *testing.T, content string, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if _, err := os.Stat(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// What a power failure or a bad disk left of an address file is freed by the DEL of the pod that had the address.
func TestUnreadableAddress(t *testing.T) {
	n := newNode(t)
	n.warm(cni.ModeRouted)
	before := n.dump()
	p := n.pod(n.conf("1.0.0", cni.ModeRouted))
	for _, tc := range []struct {
		name, content string
		more          func() // harm
	}{
		{"truncated", "", func() {}},
		{"torn", `{"containerID": "`, func() {}},
		{"zeros", "\x00\x00\x00", func() {}},
		{"the record as well", "", func() { spoil(t, "", p.record()) }},
		{"the record is lost", "", func() { sh(t, "", "rm "+p.record()) }},
		{"after a reboot", "", func() { sh(t, n.ns, "ip link del "+podrecord.HostIfName(p.id, "eth0")) }},
	} {
		for _, addr := range p.add().addrs() {
			spoil(t, tc.content, n.address(addr.String()))
		}
		tc.more()
		p.del()
		unchanged(t, tc.name, before, n.dump())
	}
}

// A pod of another network that has no record does not keep a file of this one: its interface names its network.
func TestUnreadableAddressBesideAnotherNetwork(t *testing.T) {
	n := newNode(t)
	n.warm(cni.ModeRouted)
	before := n.dump()
	conf := n.conf("1.0.0", cni.ModeRouted)
	p, stranger := n.pod(conf), n.pod(strings.Replace(conf, `"pods"`, `"pods2"`, 1))
	stranger.add()
	sh(t, "", "rm "+stranger.record())
	addr := p.add().addrs()[0].String()
	spoil(t, "", n.address(addr))
	p.del()
	if exists(n.address(addr)) {
		t.Errorf("%s stays in use", addr)
	}
	stranger.del()
	unchanged(t, "in the end", before, n.dump())
}

// The interface of a pod without a record keeps the files of its network, however long the network's name is.
func TestUnreadableAddressOfLongName(t *testing.T) {
	n := newNode(t)
	n.warm(cni.ModeRouted)
	name := strings.Repeat("n", 150)
	conf := strings.Replace(n.conf("1.0.0", cni.ModeRouted), `"pods"`, `"`+name+`"`, 1)
	p, never := n.pod(conf), n.pod(conf)
	addr := p.add().addrs()[0].String()
	file := filepath.Join(n.state(), "cni", "ipam", name, addr)
	spoil(t, "", file)
	sh(t, "", "rm "+p.record())
	never.del()
	if !exists(file) {
		t.Errorf("%s was freed, and a pod has it", addr)
	}
	p.del()
	if exists(file) {
		t.Errorf("%s stays in use", addr)
	}
}

// A file that can't be read is kept when another pod may have the address, until that pod leaves.
func TestUnreadableAddressOfAnother(t *testing.T) {
	n := newNode(t)
	n.warm(cni.ModeRouted)
	before := n.dump()
	conf := n.conf("1.1.0", cni.ModeRouted)
	other, killed := n.pod(conf), n.pod(conf)
	// The record of an ADD that was killed before it had the addresses, which the other pod was given then.
	claim := func() {
		data, err := os.ReadFile(other.record())
		if err != nil {
			t.Fatal(err)
		}
		claimed := strings.NewReplacer(other.id, killed.id, podrecord.HostIfName(other.id, "eth0"),
			podrecord.HostIfName(killed.id, "eth0")).Replace(string(data))
		if err := os.WriteFile(killed.record(), []byte(claimed), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name string
		harm func(file string)
	}{
		{"readable, and listed twice", func(string) { claim() }},
		{"listed twice", func(file string) { claim(); spoil(t, "", file) }},
		{"of a pod without a record", func(file string) { spoil(t, "", file); sh(t, "", "rm "+other.record()) }},
		{"of a pod whose record can't be read", func(file string) { spoil(t, "", file, other.record()) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			addr := other.add().addrs()[0]
			file := n.address(addr.String())
			tc.harm(file)
			killed.del()
			if !exists(file) {
				t.Errorf("%s was freed, and another pod has it", addr)
			}
			list := fmt.Sprintf(`, "cni.dev/valid-attachments": [{"containerID": %q, "ifname": "eth0"}]`, other.id)
			n.must(n.gc(cni.ModeRouted, list))
			if !exists(file) {
				t.Errorf("GC freed %s, and a valid pod has it", addr)
			}
			other.del()
			unchanged(t, "in the end", before, n.dump())
		})
	}
}
