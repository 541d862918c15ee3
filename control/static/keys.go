package static

import (
	"fmt"
	"path/filepath"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/internal/yamldoc"
)

// common checks what holds for all nodes and peers that say nothing else.
func (b *builder) common(s *Spec) error {
	if err := b.encapsulation("encapsulation", s.Encapsulation); err != nil {
		return err
	}
	b.wanted = s.Encapsulation
	// No number at all is the default of who reads the file.
	if p := s.WireGuard.Port; p < 0 || p > 65535 || p == 0 && b.doc.Has("wireguard.port") {
		return b.wrong("wireguard.port", fmt.Sprint(p), "is not a UDP port", "use 1 to 65535; 51820 is WireGuard's usual one")
	}
	if k := s.WireGuard.PersistentKeepalive; k < 0 || k > 65535 {
		return b.wrong("wireguard.persistentKeepalive", fmt.Sprint(k), "is not a number of seconds between 0 and 65535",
			"use 25 for a node behind address translation, else 0")
	}
	var err error
	b.out.PresharedKeyFile, err = b.keyFile("wireguard.presharedKeyFile", s.WireGuard.PresharedKeyFile)
	return err
}

func (b *builder) encapsulation(key string, name control.Encapsulation) error {
	if name == "" || name.Known() {
		return nil
	}
	return b.wrong(key, string(name), "is not an encapsulation",
		"use wireguard, or for plaintext on an underlay that can be trusted vxlan, direct or auto")
}

// tunnel reads what a node's entry says of its tunnel. A node with a public key is encrypted unless its own entry asks
// for plaintext, and one without is refused unless its entry or the whole file does: nothing is sent in the clear that
// nobody asked for. That the whole file asks for VXLAN is for those without a key; direct and auto are for all, as what
// they say of the way to a node beside the tunnel.
func (b *builder) tunnel(key string, s *NodeSpec, n *control.Node) error {
	if err := b.encapsulation(key+".encapsulation", s.Encapsulation); err != nil {
		return err
	}
	if p := s.WireGuardPort; p < 0 || p > 65535 {
		return b.wrong(key+".wireguardPort", fmt.Sprint(p), "is not a UDP port",
			"use 1 to 65535, or leave the key out for the default")
	}
	n.WireGuardPort = uint16(s.WireGuardPort)
	var err error
	if n.PresharedKeyFile, err = b.keyFile(key+".presharedKeyFile", s.PresharedKeyFile); err != nil {
		return err
	}
	n.Encapsulation = s.Encapsulation
	if n.Encapsulation == "" && (b.wanted == control.Direct || b.wanted == control.Auto) {
		n.Encapsulation = b.wanted
	}
	if s.PublicKey != "" {
		n.PublicKey, err = b.publicKey(key+".publicKey", s.PublicKey, "node "+n.Name)
		return err
	}
	if n.Encapsulation == "" && b.wanted == control.VXLAN {
		n.Encapsulation = control.VXLAN
	}
	if n.Plaintext() {
		return nil
	}
	where, value := key+".publicKey", ""
	if s.Encapsulation == control.WireGuard {
		where, value = key+".encapsulation", string(s.Encapsulation)
	}
	return b.doc.Error(yamldoc.Finding{Key: where, Value: value,
		Why: "node " + n.Name + " has no publicKey, so traffic to it could not be encrypted",
		Fix: "add its publicKey (`warren key public` on that node prints it), or ask for plaintext with " +
			"`encapsulation: vxlan` (or direct, or auto)"})
}

func (b *builder) publicKey(where, text, owner string) (key.Public, error) {
	k, err := key.ParsePublic(text)
	if err != nil {
		return k, b.wrong(where, excerpt(text), "is not a public key",
			"write the 44 characters, with the = at the end, that `warren key public` or `wg pubkey` prints")
	}
	return k, b.own(where, k.String(), "publicKey", owner)
}

// keyFile reads the path of a file with a preshared key; empty is the file of all that name no other.
func (b *builder) keyFile(where, path string) (string, error) {
	if path == "" {
		return b.out.PresharedKeyFile, nil
	}
	if _, err := key.ParsePreshared(path); err == nil {
		return "", b.wrong(where, "", "the key itself stands here, where everybody who reads this file finds it",
			"write it into a file with mode 0600 and name that; and make a new key, with `wg genpsk`")
	}
	if !filepath.IsAbs(path) {
		return "", b.wrong(where, excerpt(path), "is not an absolute path", "name the file as /etc/warren/psk")
	}
	return filepath.Clean(path), nil
}

// excerpt keeps a value out of the log that may be a secret key which lost a character.
func excerpt(text string) string {
	const short, shown = 20, 8 // characters
	if runes := []rune(text); len(runes) > short {
		return string(runes[:shown]) + "…"
	}
	return text
}
