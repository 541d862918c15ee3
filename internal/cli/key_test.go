package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/node/config"
)

// aLine is an error: one line on standard error, nothing on standard output.
func aLine(t *testing.T, want string, args ...string) {
	t.Helper()
	status, out, errOut := call(t, args...)
	if status != 1 || out != "" || !strings.Contains(errOut, want) || strings.Count(errOut, "\n") != 1 {
		t.Errorf("%v: status %d, standard output %q, standard error\n%s\nwant %s", args, status, out, errOut, want)
	}
}

// aKey is the key that a command prints, and what it says beside it.
func aKey(t *testing.T, args ...string) (public, said string) {
	t.Helper()
	status, out, errOut := call(t, args...)
	line, rest, _ := strings.Cut(out, "\n")
	if _, err := key.ParsePublic(line); status != 0 || err != nil || rest != "" {
		t.Fatalf("%v: status %d, standard output %q, standard error %s", args, status, out, errOut)
	}
	return line, errOut
}

func TestKeyCommands(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	at := func(args ...string) []string { return append([]string{"key"}, append(args, "--state-dir", dir)...) }
	for _, args := range [][]string{at("public"), at("rotate"), at("rotate", "--finish")} {
		aLine(t, "warren: "+dir+"/wireguard.key: there is no key yet: `warren key new` makes one", args...)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("asking for a key made the directory: %v", err)
	}
	first, said := aKey(t, at("new")...)
	ring, err := key.Load(dir)
	if err != nil || ring.Newest().Public().String() != first || said != "" {
		t.Errorf("the ring is %v, %v; said %q", ring, err, said)
	}
	if public, said := aKey(t, at("public")...); public != first || said != "" {
		t.Errorf("public: %s, said %q", public, said)
	}
	aLine(t, "warren: "+dir+"/wireguard.key: this node has a key already: `warren key public` prints the public half, "+
		"and `warren key rotate` makes the next one", at("new")...)
	aLine(t, "warren: no rotation is under way: `warren key rotate` begins one", at("rotate", "--finish")...)

	second, said := aKey(t, at("rotate")...)
	if second == first || !strings.Contains(said, "within ten seconds. Put it into `publicKey` of this node's entry on "+
		"all nodes") || !strings.Contains(said, "run `warren key rotate --finish`") {
		t.Errorf("rotate: %s, said %q", second, said)
	}
	public, said := aKey(t, at("public")...)
	if want := "warren: a rotation is under way: the new key is " + second + ", and the node answers to the previous " +
		"one, " + first + ", until `warren key rotate --finish`\n"; public != second || said != want {
		t.Errorf("public: %s, said %q", public, said)
	}
	aLine(t, "warren: a rotation is under way: this node's publicKey is to be "+second+" on all nodes; when it is, "+
		"finish with `warren key rotate --finish`", at("rotate")...)
	if public, said := aKey(t, at("rotate", "--finish")...); public != second || !strings.Contains(said, "forgets it") {
		t.Errorf("finish: %s, said %q", public, said)
	}
	if public, said := aKey(t, at("public")...); public != second || said != "" {
		t.Errorf("public: %s, said %q", public, said)
	}

	if err := os.Chmod(filepath.Join(dir, key.File), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{at("new"), at("public"), at("rotate"), at("rotate", "--finish")} {
		aLine(t, "wireguard.key has mode 0644, so others than its owner may have the key: chmod 600 "+dir, args...)
	}
}

// TestKeyFindsTheStateDirectory goes by files that a node could not run with.
func TestKeyFindsTheStateDirectory(t *testing.T) {
	dir := t.TempDir()
	path, state := filepath.Join(dir, "w.yaml"), filepath.Join(dir, "state")
	aLine(t, "warren: "+path+": there is no such file", "key", "new", "--config", path)
	for i, text := range []string{
		"",
		"cluster: [10.244.0.0/16]\nnodes:\n  - {name: a, addresses: [192.0.2.1], podCIDRs: [10.244.1.0/24]}\n",
		"cluster: [10.244.0.0/16]\nnodes:\n  - {name: a, publicKey: \"FILL IN\"}\n",
	} {
		own := fmt.Sprint(state, i)
		if err := os.WriteFile(path, []byte(text+"stateDir: "+own+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		made, _ := aKey(t, "key", "new", "--config", path)
		ring, err := key.Load(own)
		if err != nil || ring.Newest().Public().String() != made {
			t.Errorf("%q: %v, %v", text, ring, err)
		}
		if public, _ := aKey(t, "key", "public", "--config", path); public != made {
			t.Errorf("%q: made %s, public %s", text, made, public)
		}
	}
	// The flag wins, also over a file that says nothing.
	if err := os.WriteFile(path, []byte("a: ["), 0o600); err != nil {
		t.Fatal(err)
	}
	aKey(t, "key", "public", "--config", path, "--state-dir", state+"0")
	aLine(t, "name the state directory with --state-dir", "key", "public", "--config", path)

	// Without the default file it is the default directory.
	where := keyDir{config: path + ".absent"}
	if dir, err := where.find(newKeyPublic()); err != nil || dir != config.DefaultStateDir {
		t.Errorf("%s, %v", dir, err)
	}
}

// peersFile is a configuration with two encrypted nodes, one that is not, and a peer with the key.
func peersFile(t *testing.T, laptop key.Public, more string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "w.yaml")
	text := fmt.Sprintf(`cluster: [10.244.0.0/16, "fd00:10:244::/48"]
node: a
nodes:
  - {name: a, addresses: [192.0.2.1], podCIDRs: [10.244.1.0/24], publicKey: %q}
  - {name: b, addresses: ["2001:db8::2", 192.0.2.2], podCIDRs: [10.244.2.0/24], publicKey: %q}
  - {name: plain, addresses: [192.0.2.3], podCIDRs: [10.244.3.0/24], encapsulation: vxlan}
peers:
  - {name: laptop, publicKey: %q, addresses: [10.244.255.7]}
%s`, key.NewPrivate().Public(), key.NewPrivate().Public(), laptop, more)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func secretFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// value is what the line of a configuration says first.
func value(conf, name string) string {
	for line := range strings.Lines(conf) {
		if v, ok := strings.CutPrefix(line, name+" = "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func TestPeerConfig(t *testing.T) {
	private, psk := key.NewPrivate(), key.NewPreshared()
	path := peersFile(t, private.Public(), "wireguard: {presharedKeyFile: "+secretFile(t, psk.RevealText())+"}\n")
	const left = "warren: node plain is left out, as it is plaintext"

	status, out, errOut := call(t, "peer", "config", "laptop", "--config", path, "--key",
		secretFile(t, private.RevealText()))
	if status != 0 || value(out, "PrivateKey") != private.RevealText() || value(out, "Address") != "10.244.255.7/32" ||
		strings.Count(out, "PresharedKey = "+psk.RevealText()) != 2 || strings.Count(out, "[Peer]") != 2 ||
		!strings.Contains(out, "# b\n[Peer]\n") || !strings.Contains(out, "Endpoint = [2001:db8::2]:51820\n") {
		t.Errorf("status %d\n%s%s", status, out, errOut)
	}
	if !strings.HasPrefix(errOut, left) || strings.Count(errOut, "\n") != 1 {
		t.Errorf("said %s", errOut)
	}

	// The key on standard input.
	var fromStdin, said bytes.Buffer
	status = Run(context.Background(), Invocation{
		Args:  []string{"peer", "config", "laptop", "--config", path, "--key", "-"},
		Stdin: strings.NewReader(private.RevealText() + "\n"), Stdout: &fromStdin, Stderr: &said})
	if status != 0 || fromStdin.String() != out {
		t.Errorf("status %d\n%s%s", status, fromStdin.String(), said.String())
	}

	// A new key for an entry that is there.
	status, out, errOut = call(t, "peer", "config", "laptop", "--config", path)
	made, err := key.ParsePrivate(value(out, "PrivateKey"))
	if status != 0 || err != nil || made == private || !strings.Contains(errOut, fmt.Sprintf("warren: set "+
		"`publicKey: %q` in the entry of laptop, in the file of every node\n", made.Public())) {
		t.Errorf("status %d, %v\n%s%s", status, err, out, errOut)
	}

	// A machine that is not in the list: what is said goes into the file as it is.
	status, out, errOut = call(t, "peer", "config", "phone", "--config", path, "--address", "10.244.255.8", "--address",
		"fd00:10:244:ff::8")
	made, err = key.ParsePrivate(value(out, "PrivateKey"))
	if status != 0 || err != nil || value(out, "Address") != "10.244.255.8/32, fd00:10:244:ff::8/128" ||
		strings.Count(out, "PresharedKey = "+psk.RevealText()) != 2 {
		t.Fatalf("status %d, %v\n%s%s", status, err, out, errOut)
	}
	_, entry, _ := strings.Cut(errOut, "add this to `peers` in the file of every node:\n")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	grown := strings.Replace(string(text), "peers:\n", "peers:\n"+entry, 1)
	if err := os.WriteFile(path, []byte(grown), 0o600); err != nil {
		t.Fatal(err)
	}
	status, again, errOut := call(t, "peer", "config", "phone", "--config", path, "--key",
		secretFile(t, made.RevealText()))
	if status != 0 || again != out {
		t.Errorf("with the entry in the file: status %d\n%s%s", status, again, errOut)
	}

	status, out, errOut = call(t, "peer", "config", "laptop", "--config", path, "--qr")
	if status != 0 || strings.Contains(out, "PrivateKey") || strings.Count(out, "\n") < 25 ||
		!strings.Contains(out, "▀") || !strings.Contains(errOut, "set `publicKey: ") {
		t.Errorf("status %d\n%s%s", status, out, errOut)
	}
}

func TestPeerConfigErrors(t *testing.T) {
	private, other := key.NewPrivate(), key.NewPrivate()
	path := peersFile(t, private.Public(), "")
	with := func(args ...string) []string { return append([]string{"peer", "config", "--config", path}, args...) }
	wrongKey := secretFile(t, other.RevealText())
	torn := secretFile(t, other.RevealText()[:40])
	open := secretFile(t, private.RevealText())
	if err := os.Chmod(open, 0o640); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		want string
		args []string
	}{
		{"warren: name one machine, not 0: warren peer config NAME", with()},
		{"warren: a is a node, which runs Warren with " + path + ": name one of `peers`", with("a")},
		{"warren: phone is not in `peers` of " + path + ", which lists laptop: with --address ADDRESS the entry for it is " +
			"printed as well", with("phone")},
		{"warren: laptop is in `peers` of " + path + " already, with its addresses: leave --address out",
			with("laptop", "--address", "10.244.255.9")},
		{fmt.Sprintf("warren: --key %s: the public half is %s, but `publicKey` of laptop in %s is %s: give the key that",
			wrongKey, other.Public(), path, private.Public()), with("laptop", "--key", wrongKey)},
		{"warren: --key: " + torn + " holds no key: want 32 bytes in base64", with("laptop", "--key", torn)},
		{"warren: --key: " + open + " has mode 0640", with("laptop", "--key", open)},
		{"no such file or directory", with("laptop", "--key", torn+"x")},
		{`warren: "10.244.1.9" of peer phone is inside 10.244.1.0/24 of node a, which gives it to its pods; use one inside`,
			with("phone", "--address", "10.244.1.9")},
		{`warren: "10.244.255.7" is the address of peer laptop already`, with("phone", "--address", "10.244.255.7")},
		{`warren: "my phone" is not a peer name`, with("my phone", "--address", "10.244.255.9")},
		{"there is no such file", []string{"peer", "config", "laptop", "--config", path + "x"}},
	} {
		aLine(t, c.want, c.args...)
	}
	var out, errOut bytes.Buffer
	status := Run(context.Background(), Invocation{Args: with("laptop", "--key", "-"), Stdin: strings.NewReader("x\n"),
		Stdout: &out, Stderr: &errOut})
	if status != 1 || out.Len() != 0 || !strings.Contains(errOut.String(), "warren: standard input holds no private key") {
		t.Errorf("status %d, %s%s", status, out.String(), errOut.String())
	}
	// A preshared key that cannot be had.
	status, _, said := call(t, "peer", "config", "laptop", "--config",
		peersFile(t, private.Public(), "wireguard: {presharedKeyFile: "+open+"}\n"))
	if status != 1 || !strings.Contains(said, open+" has mode 0640") {
		t.Errorf("status %d, %s", status, said)
	}
}

// TestPeerConfigIntoAFile warns of a file that others can read.
func TestPeerConfigIntoAFile(t *testing.T) {
	path := peersFile(t, key.NewPrivate().Public(), "")
	for mode, warns := range map[os.FileMode]bool{0o644: true, 0o600: false} {
		f, err := os.OpenFile(filepath.Join(t.TempDir(), "laptop.conf"), os.O_RDWR|os.O_CREATE, mode)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Chmod(mode); err != nil {
			t.Fatal(err)
		}
		var said bytes.Buffer
		status := Run(context.Background(), Invocation{Args: []string{"peer", "config", "laptop", "--config", path},
			Stdout: f, Stderr: &said})
		if status != 0 || strings.Contains(said.String(), "has mode 0644: chmod 600 it") != warns {
			t.Errorf("mode %#o: status %d, said %s", mode, status, said.String())
		}
	}
}

// A rotation must not end while the list has the key that it takes away.
func TestRotationEndsAfterTheListHasTheKey(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "warren.yaml")
	state := filepath.Join(dir, "state")
	write := func(public string) {
		t.Helper()
		text := "node: a\ncluster: [10.244.0.0/16]\nstateDir: " + state + "\nnodes:\n" +
			"  - {name: a, addresses: [192.0.2.1], podCIDRs: [10.244.1.0/24], publicKey: \"" + public + "\"}\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first, _ := aKey(t, "key", "new", "--state-dir", state)
	write(first)
	second, _ := aKey(t, "key", "rotate", "--config", file)
	aLine(t, "warren: "+file+" still has publicKey "+first+" for node a: put "+second+" there, on all nodes, before the "+
		"rotation ends", "key", "rotate", "--finish", "--config", file)
	write(second)
	if public, _ := aKey(t, "key", "rotate", "--finish", "--config", file); public != second {
		t.Errorf("the key is %s, want %s", public, second)
	}
}
