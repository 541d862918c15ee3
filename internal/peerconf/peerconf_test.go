package peerconf

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skip2/go-qrcode"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/config"
)

// testKey is a public key of 32 equal bytes.
func testKey(b byte) key.Public {
	return key.Public([]byte(strings.Repeat(string(rune(b)), key.Size)))
}

var file = fmt.Sprintf(`cluster: [10.244.0.0/16, "fd00:10:244::/48"]
node: alpha
nodes:
  - {name: alpha, addresses: [192.0.2.1, "2001:db8::1"], podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"], publicKey: %q}
  - {name: beta, addresses: ["2001:db8::2"], podCIDRs: [10.244.2.0/24, "fd00:10:244:2::/64"], publicKey: %q,
     wireguardPort: 5000}
  - {name: plain, addresses: [192.0.2.3], podCIDRs: [10.244.3.0/24], encapsulation: vxlan}
  - {name: six, addresses: ["2001:db8::4"], podCIDRs: ["fd00:10:244:4::/64"], publicKey: %q}
peers:
  - {name: laptop, publicKey: %q, addresses: [10.244.255.7, "fd00:10:244:ff::7"]}
  - {name: phone, publicKey: %q, addresses: [10.244.255.8]}
`, testKey('a'), testKey('b'), testKey('s'), testKey('l'), testKey('p'))

func parse(t *testing.T, text string) *config.Config {
	t.Helper()
	cfg, err := config.Parse(config.Source{File: "w.yaml", Data: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func named(cfg *config.Config, name string) *control.Node {
	for i, n := range cfg.State.Nodes {
		if n.Name == name {
			return &cfg.State.Nodes[i]
		}
	}
	return nil
}

func TestText(t *testing.T) {
	cfg := parse(t, file)
	private, psk := key.NewPrivate(), key.NewPreshared()
	f, leftOut, err := New(cfg, Machine{Peer: named(cfg, "laptop"), PrivateKey: private, PresharedKey: psk})
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`[Interface]
PrivateKey = %s
Address = 10.244.255.7/32, fd00:10:244:ff::7/128
MTU = 1420

# alpha
[Peer]
PublicKey = %s
PresharedKey = %[5]s
AllowedIPs = 10.244.1.0/24, fd00:10:244:1::/64
Endpoint = 192.0.2.1:51820
PersistentKeepalive = 25

# beta
[Peer]
PublicKey = %[3]s
PresharedKey = %[5]s
AllowedIPs = 10.244.2.0/24, fd00:10:244:2::/64
Endpoint = [2001:db8::2]:5000
PersistentKeepalive = 25

# six
[Peer]
PublicKey = %[4]s
PresharedKey = %[5]s
AllowedIPs = fd00:10:244:4::/64
Endpoint = [2001:db8::4]:51820
PersistentKeepalive = 25
`, private.RevealText(), testKey('a'), testKey('b'), testKey('s'), psk.RevealText())
	if got := f.Text(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if len(leftOut) != 1 || !strings.Contains(leftOut[0], "node plain is left out, as it is plaintext") {
		t.Errorf("left out: %q", leftOut)
	}

	// A machine with one family, and no preshared key.
	f, leftOut, err = New(cfg, Machine{Peer: named(cfg, "phone"), PrivateKey: private})
	if err != nil {
		t.Fatal(err)
	}
	text := f.Text()
	if strings.Contains(text, "PresharedKey") || strings.Contains(text, "fd00:") || len(f.Nodes) != 2 ||
		len(leftOut) != 2 || !strings.Contains(leftOut[1], "node six is left out, as its pods and phone have no address "+
		"family in common") {
		t.Errorf("%s\nleft out: %q", text, leftOut)
	}
}

func TestMTU(t *testing.T) {
	for mtu, want := range map[int]int{0: 1420, 1300: 1300, 1420: 1420, 8000: 1420} {
		cfg := parse(t, fmt.Sprintf("%smtu: %d\n", file, mtu))
		f, _, err := New(cfg, Machine{Peer: named(cfg, "laptop"), PrivateKey: key.NewPrivate()})
		if err != nil || f.MTU != want {
			t.Errorf("mtu %d: %+v, %v", mtu, f, err)
		}
	}
}

func TestNobodyLeft(t *testing.T) {
	text := strings.ReplaceAll(file, "publicKey: ", "encapsulation: vxlan, publicKey: ")
	before, peers, _ := strings.Cut(text, "peers:\n")
	cfg := parse(t, before+"peers:\n"+strings.ReplaceAll(peers, "encapsulation: vxlan, ", ""))
	f, leftOut, err := New(cfg, Machine{Peer: named(cfg, "laptop"), PrivateKey: key.NewPrivate()})
	if f != nil || err == nil || !strings.Contains(err.Error(), "no node is left that laptop could talk with") ||
		len(leftOut) != 4 {
		t.Errorf("%+v, %q, %v", f, leftOut, err)
	}
}

// TestToolsReadIt has wireguard-tools read the text, to the letter.
func TestToolsReadIt(t *testing.T) {
	for _, tool := range []string{"wg", "wg-quick"} {
		lab.NeedTool(t, tool, "wireguard-tools")
	}
	cfg := parse(t, file)
	private := key.NewPrivate()
	f, _, err := New(cfg, Machine{Peer: named(cfg, "laptop"), PrivateKey: private, PresharedKey: key.NewPreshared()})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "wrntest.conf")
	if err := os.WriteFile(path, []byte(f.Text()), 0o600); err != nil {
		t.Fatal(err)
	}
	stripped, err := exec.Command("wg-quick", "strip", path).Output()
	if err != nil {
		t.Fatalf("wg-quick strip: %v", err)
	}
	// What wg-quick handles itself is gone, the rest is for wg.
	if strings.Contains(string(stripped), "Address") || strings.Contains(string(stripped), "MTU") ||
		strings.Count(string(stripped), "[Peer]") != 3 {
		t.Errorf("wg-quick strip left\n%s", stripped)
	}
	// wg reads the whole file before it looks for the interface.
	const bad = "Configuration parsing error"
	for text, fails := range map[string]bool{string(stripped): false,
		strings.Replace(string(stripped), testKey('b').String(), "x", 1): true,
		strings.Replace(string(stripped), "AllowedIPs", "Allowed", 1):    true} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("wg", "setconf", "wrnabsent", path).CombinedOutput()
		if err == nil || strings.Contains(string(out), bad) != fails {
			t.Errorf("wg setconf: %v, %s, for\n%s", err, out, text)
		}
	}
	pub := exec.Command("wg", "pubkey")
	pub.Stdin = strings.NewReader(private.RevealText() + "\n")
	out, err := pub.Output()
	if err != nil || strings.TrimSpace(string(out)) != private.Public().String() {
		t.Errorf("wg pubkey says %s, %v; want %s", out, err, private.Public())
	}
}

// TestQR reads the terminal's characters back into modules and compares them with the library's.
func TestQR(t *testing.T) {
	cfg := parse(t, file)
	f, _, err := New(cfg, Machine{Peer: named(cfg, "laptop"), PrivateKey: key.NewPrivate()})
	if err != nil {
		t.Fatal(err)
	}
	code, err := f.QR()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := code.Write(&out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(f.text(false), "#") || !strings.Contains(f.Text(), "#") {
		t.Error("comments belong into the text and not into the code")
	}
	want, err := qrcode.New(f.text(false), qrcode.Low)
	if err != nil {
		t.Fatal(err)
	}
	dark := map[rune][2]bool{'█': {false, false}, '▀': {false, true}, '▄': {true, false}, ' ': {true, true}}
	var got [][]bool
	for line := range strings.Lines(out.String()) {
		line, ok := strings.CutPrefix(line, "\x1b[97;40m")
		line, end := strings.CutSuffix(line, "\x1b[0m\n")
		if !ok || !end {
			t.Fatalf("line %q does not set and reset the colours", line)
		}
		var upper, lower []bool
		for _, r := range line {
			pair, ok := dark[r]
			if !ok {
				t.Fatalf("character %q", r)
			}
			upper, lower = append(upper, pair[0]), append(lower, pair[1])
		}
		got = append(got, upper, lower)
	}
	bitmap := want.Bitmap()
	if len(bitmap)%2 == 1 { // the odd last line's other half is black
		got = got[:len(got)-1]
	}
	if fmt.Sprint(got) != fmt.Sprint(bitmap) || code.Columns() != len(bitmap[0]) {
		t.Errorf("drew\n%v\nwant\n%v", got, bitmap)
	}
}

func TestQRTooLong(t *testing.T) {
	f := &File{PrivateKey: key.NewPrivate(), MTU: maxMTU}
	for len(f.text(false)) <= maxQR {
		if _, err := f.QR(); err != nil {
			t.Fatalf("%d bytes: %v", len(f.text(false)), err)
		}
		f.Nodes = append(f.Nodes, Node{Name: "n", PublicKey: testKey('n'),
			AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")},
			Endpoint:   netip.MustParseAddrPort("192.0.2.1:51820")})
	}
	_, err := f.QR()
	if err == nil || !strings.Contains(err.Error(), "and a QR code holds 2953: print it into a file, without --qr") {
		t.Errorf("%v", err)
	}
}
