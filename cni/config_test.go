package cni_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni"
)

func parse(fields string) (cni.Config, error) {
	if fields != "" {
		fields = ", " + fields
	}
	return cni.ParseConfig([]byte(`{"cniVersion": "1.0.0", "name": "pods", "type": "warren-cni"` + fields + `}`))
}

func TestConfigDefaults(t *testing.T) {
	c, err := parse("")
	if err != nil {
		t.Fatal(err)
	}
	if c.Mode != cni.ModeRouted || c.Bridge != "" || c.RunDir != "/run/warren" || c.StateDir != "/var/lib/warren" ||
		c.MTU != 0 || !c.Hairpin || c.PodCIDRs != nil || c.Ranges != nil || c.Routes != nil || c.HasAttachments ||
		c.PrevResult != nil {
		t.Errorf("defaults %+v", c)
	}
	if c, err = parse(`"mode": "bridge"`); err != nil || c.Bridge != "warren-br0" {
		t.Errorf("bridge mode: %+v %v", c, err)
	}
}

func TestConfigTakesWhatOthersDefine(t *testing.T) {
	c, err := parse(`"args": {"cni": {"labels": []}}, "capabilities": {"portMappings": true}, "disableCheck": true,
		"runtimeConfig": {"portMappings": [], "ips": ["10.244.1.9/24", "fd00::9"], "mac": "02:00:00:00:00:01"},
		"prevResult": null, "ipam": {}, "hairpin": true, "dns": {"nameservers": ["10.96.0.10"]},
		"routes": [{"dst": "::/0", "gw": "fd00::1", "mtu": 1300, "advmss": 1200, "priority": 1, "table": 7, "scope": 0}],
		"cniVersions": ["1.0.0"], "disableGC": false`)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Wanted) != 2 || c.Wanted[0].String() != "10.244.1.9" || c.MAC == "" || c.DNS.Nameservers[0] != "10.96.0.10" {
		t.Errorf("config %+v", c)
	}
}

func TestConfigRefuses(t *testing.T) {
	for _, tc := range []struct {
		fields string
		code   uint
		want   string
	}{
		{`"colour": "blue"`, types.ErrUnsupportedField, `unknown field "colour" with value "blue"`},
		{`"Mode": "routed"`, types.ErrUnsupportedField, `unknown field "Mode"`},
		{`"plugins": []`, types.ErrUnsupportedField, "hands each of its plugins over by itself"},
		{`"hairpinMode": true`, types.ErrUnsupportedField, "it is called hairpin here"},
		{`"subnet": "10.0.0.0/24"`, types.ErrUnsupportedField, "put it into ranges"},
		{`"ipam": {"type": "host-local"}, "podCIDRs": ["10.244.1.0/24"]`, types.ErrInvalidNetworkConfig, "remove ipam"},
		{`"ipam": {"ranges": [[{"subnet": "10.9.0.0/24"}]]}`, types.ErrInvalidNetworkConfig,
			"ipam has ranges, but no type"},
		{`"mode": "bridge", "bridge": "br%d"`, types.ErrInvalidNetworkConfig, "place of a number"},
		{`"mode": "bridge", "bridge": "all"`, types.ErrInvalidNetworkConfig, "choose a name like warren-br0"},
		{`"ipam": "host-local"`, types.ErrInvalidNetworkConfig, `field "ipam" is "host-local": it must be an object`},
		{`"mode": "Routed"`, types.ErrInvalidNetworkConfig, `mode is "Routed"`},
		{`"mode": 1`, types.ErrInvalidNetworkConfig, `field "mode" is 1: it must be a string`},
		{`"bridge": "br0"`, types.ErrInvalidNetworkConfig, "remove bridge"},
		{`"mode": "bridge", "bridge": "a-name-of-more-than-15"`, types.ErrInvalidNetworkConfig, "too long"},
		{`"mode": "bridge", "bridge": "a/b"`, types.ErrInvalidNetworkConfig, "contains /"},
		{`"mtu": 10`, types.ErrInvalidNetworkConfig, "mtu is 10"},
		{`"mtu": 70000`, types.ErrInvalidNetworkConfig, "mtu is 70000"},
		{`"mtu": "1400"`, types.ErrInvalidNetworkConfig, `field "mtu" is "1400": "1400" is no whole number`},
		{`"podCIDRs": "10.244.1.0/24"`, types.ErrInvalidNetworkConfig,
			`field "podCIDRs" is "10.244.1.0/24": it must be a list of address prefixes`},
		{`"podCIDRs": ["10.244.2.0/24", "10.244.1.1"]`, types.ErrInvalidNetworkConfig,
			`"10.244.1.1" has no prefix length: write "10.244.1.0/24"`},
		{`"podCIDRs": [7]`, types.ErrInvalidNetworkConfig, `field "podCIDRs" is [7]: 7 is no address prefix`},
		{`"podCIDRs": [""]`, types.ErrInvalidNetworkConfig, "podCIDRs: entry 1 is empty"},
		{`"hairpin": "yes"`, types.ErrInvalidNetworkConfig, "it must be true or false"},
		{`"dns": {"nameservers": "10.96.0.10"}`, types.ErrInvalidNetworkConfig, "it must be an object of strings and lists"},
		{`"runtimeConfig": {"ips": "10.244.1.9"}`, types.ErrInvalidNetworkConfig, `as {"ips": ["10.244.1.9"]`},
		{`"podCIDRs": ["10.244.1.0/33"]`, types.ErrInvalidNetworkConfig, `"10.244.1.0/33" is no address prefix: write one`},
		{`"podCIDRs": ["10.244.1.5/24"]`, types.ErrInvalidNetworkConfig, "write 10.244.1.0/24"},
		{`"podCIDRs": ["10.244.1.0/24", "10.244.1.0/25"]`, types.ErrInvalidNetworkConfig, "overlap"},
		{`"podCIDRs": ["10.244.1.0/24"], "ranges": [[{"subnet": "10.244.1.0/24"}]]`, types.ErrInvalidNetworkConfig,
			"keep one"},
		{`"ranges": [[{"subnet": "10.244.1.0/24", "begin": "10.244.1.7"}]]`, types.ErrUnsupportedField,
			`unknown field "begin" with value "10.244.1.7" in field ranges; known are subnet, rangeStart, rangeEnd, gateway`},
		{`"routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.0/8", "foo": 1}]`, types.ErrUnsupportedField,
			`unknown field "foo" with value 1 in field routes; known are dst, gw, mtu, advmss, priority, table, scope`},
		{`"routes": [{"Dst": "0.0.0.0/0"}]`, types.ErrUnsupportedField, `unknown field "Dst"`},
		{`"dns": {"nameserver": ["1.1.1.1"]}`, types.ErrUnsupportedField,
			`unknown field "nameserver" with value ["1.1.1.1"] in field dns; known are nameservers, domain, search, options`},
		{`"hairpin": false`, types.ErrInvalidNetworkConfig, "remove hairpin"},
		{`"ranges": [{"subnet": "10.244.1.0/24"}]`, types.ErrInvalidNetworkConfig, "it must be a list of lists of ranges"},
		{`"ranges": [[{"subnet": "fd00::1"}]]`, types.ErrInvalidNetworkConfig,
			`subnet "fd00::1" has no prefix length: write "fd00::/64"`},
		{`"ranges": [[{"subnet": "10.244.1.0/24", "rangeStart": "ten"}]]`, types.ErrInvalidNetworkConfig,
			`rangeStart "ten" is no address: write one`},
		{`"routes": [{"dst": "10.0.0.0"}]`, types.ErrInvalidNetworkConfig,
			`field "routes" is [{"dst": "10.0.0.0"}]: dst "10.0.0.0" has no prefix length: write "10.0.0.0/32"`},
		{`"routes": [{"dst": "10.0.0.0/8", "table": "main"}]`, types.ErrInvalidNetworkConfig,
			`table "main" is no whole number: write digits only`},
		{`"routes": {"dst": "10.0.0.0/8"}`, types.ErrInvalidNetworkConfig, "it must be a list of routes"},
		{`"runDir": "run"`, types.ErrInvalidNetworkConfig, "absolute path"},
		{`"stateDir": ""`, types.ErrInvalidNetworkConfig, "absolute path"},
		{`"runtimeConfig": {"ips": ["ten"]}`, types.ErrInvalidNetworkConfig, "runtimeConfig.ips"},
	} {
		t.Run(tc.fields, func(t *testing.T) {
			_, err := parse(tc.fields)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
			if got := cni.Code(err); got != tc.code {
				t.Errorf("code %d, want %d", got, tc.code)
			}
		})
	}
}

func TestRangesAreCheckedAgainstTheNode(t *testing.T) {
	for _, tc := range []struct{ fields, want string }{
		{`"ranges": [[{"subnet": "10.9.0.0/24"}]]`, "outside the node's pod CIDRs"},
		{`"ranges": [[{"subnet": "10.244.0.0/16"}]]`, "outside the node's pod CIDRs"},
		{`"ranges": [[{"subnet": "10.244.1.0/24", "gateway": "10.244.1.254"}]]`, "leave gateway out"},
		{`"ranges": [[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.0"}]]`, "the network's own address"},
		{`"ranges": [[{"subnet": "10.244.1.0/24", "rangeEnd": "10.244.1.255"}]]`, "the broadcast address"},
		{`"ranges": [[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.9", "rangeEnd": "10.244.1.7"}]]`,
			"no address for a pod"},
		{`"ranges": [[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.2.9"}]]`, "not in network"},
		{`"ranges": [[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.1", "rangeEnd": "10.244.1.1"}]]`,
			"no address for a pod"},
		{`"ranges": [[{"subnet": "10.244.1.0/31"}]]`, "too small"},
		{`"ranges": [[]]`, "empty range set"},
		{`"ranges": [[{"gateway": "10.244.1.1"}]]`, "no subnet"},
		{`"ranges": [[{"subnet": "10.244.1.0/25"}, {"subnet": "fd00:10:244:1::/64"}]]`, "mixed address families"},
		{`"ranges": [[{"subnet": "10.244.1.0/25"}], [{"subnet": "10.244.1.0/24"}]]`, "overlap"},
		{`"mtu": 1000`, "at least 1280"},
		{`"podCIDRs": ["10.244.1.0/24"], "routes": [{"dst": "fd00::/8"}]`, "no address of that family"},
		{`"routes": [{"dst": "10.0.0.0/8", "gw": "fd00:10:244:1::1"}]`, "other family"},
		{`"routes": [{"dst": "10.0.0.0/8", "gw": "10.244.1.9"}]`, "leave gw out"},
		{`"ranges": [[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.10", "rangeEnd": "10.244.1.10"}]]`, ""},
		{`"ranges": [[{"subnet": "10.244.1.0/26"}, {"subnet": "10.244.1.128/26"}], [{"subnet": "fd00:10:244:1::/80"}]]`, ""},
	} {
		t.Run(tc.fields, func(t *testing.T) {
			err := cni.ResolveForTest(t.TempDir(), tc.fields)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

// Whatever comes on standard input, there is a configuration or an error with a code.
func FuzzParseConfig(f *testing.F) {
	for _, seed := range []string{
		"", "{", "null", `{"name": "x"}`, `{"name": "x", "ranges": [[{"subnet": "10.0.0.0/8"}]]}`,
		`{"name": "x", "mode": "bridge", "mtu": -1}`, `{"name": "x", "prevResult": {}, "cni.dev/valid-attachments": [{}]}`,
		`{"name": "x", "podCIDRs": [""]}`, `{"name": "x", "routes": [{"dst": "::/0"}], "dns": {}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := cni.ParseConfig(data)
		if err != nil {
			if cni.Code(err) == 0 || err.Error() == "" {
				t.Errorf("error without code or text: %v", err)
			}
			return
		}
		if !json.Valid(data) || c.Name == "" {
			t.Errorf("%q was taken: %+v", data, c)
		}
	})
}

func TestExplain(t *testing.T) {
	for _, e := range []*types.Error{
		types.NewError(types.ErrIncompatibleCNIVersion, "incompatible CNI versions", `config is "9.9.9"`),
		types.NewError(types.ErrInvalidEnvironmentVariables, "required env variables [CNI_NETNS] missing", ""),
		types.NewError(types.ErrDecodingFailure, "error unmarshall network config: EOF", ""),
	} {
		got := cni.Explain(e)
		if got.Code != e.Code || got.Msg != e.Msg || len(got.Details) <= len(e.Details) {
			t.Errorf("%+v explained as %+v", e, got)
		}
	}
	own := types.NewError(types.ErrInternal, "something", "")
	if got := cni.Explain(own); !errors.Is(got, own) {
		t.Errorf("an error of the plugin's own became %+v", got)
	}
}
