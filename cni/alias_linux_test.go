package cni_test

import (
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/warren-net/warren/cni"
	"github.com/warren-net/warren/cni/podrecord"
)

// The host's end says whose it is however long the names are, and GC goes by that when the state is lost: it takes the
// interfaces of its network, and none of a network whose name only begins as its own does.
func TestLongNames(t *testing.T) {
	long := strings.Repeat("n", 150)
	for _, name := range []string{"pods", long, strings.Repeat("n", 255)} {
		n := newNode(t)
		named := func(name string) string {
			return strings.Replace(n.conf("1.1.0", cni.ModeRouted), `"name": "pods"`, `"name": "`+name+`"`, 1)
		}
		p, other := n.pod(named(name)), n.pod(named(long+"-other"))
		// With characters of three bytes, a cut that does not look for their edges makes half ones here.
		p.args = "K8S_POD_NAMESPACE=" + strings.Repeat("m", 63) + ";K8S_POD_NAME=" + strings.Repeat("ポ", 80)
		p.add()
		other.add()
		host := podrecord.HostIfName(p.id, "eth0")
		_, said, _ := strings.Cut(sh(t, n.ns, "ip link show dev "+host), "alias ")
		said = strings.TrimSpace(said)
		if !strings.HasPrefix(said, "warren pod: "+name[:min(len(name), 100)]) || !strings.Contains(said, " mmm") ||
			!strings.HasSuffix(said, " eth0") || !utf8.ValidString(said) || len(said) > 255 {
			t.Errorf("a name of %d bytes: the alias has %d bytes: %q", len(name), len(said), said)
		}
		if err := os.RemoveAll(n.state()); err != nil {
			t.Fatal(err)
		}
		n.must(call{command: "GC", conf: strings.TrimSuffix(p.conf, "}") + `, "cni.dev/valid-attachments": []}`})
		if out, err := try(n.ns, "ip link show dev "+host); err == nil {
			t.Errorf("a name of %d bytes: GC without the state left %s", len(name), out)
		}
		sh(t, n.ns, "ip link show dev "+podrecord.HostIfName(other.id, "eth0"))
	}
}
