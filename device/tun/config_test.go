package tun

import (
	"strings"
	"testing"
)

func TestBadConfig(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  Config
		want string // part of the message
	}{
		{"empty name", Config{}, "empty"},
		{"16 bytes", Config{Name: "warren0123456789"}, "at most 15"},
		{"slash", Config{Name: "war/ren"}, "'/'"},
		{"template", Config{Name: "warren%d"}, "'%'"},
		{"colon", Config{Name: "warren:0"}, "':'"},
		{"space", Config{Name: "warren 0"}, "white space"},
		{"newline", Config{Name: "warren\n"}, "white space"},
		{"zero byte", Config{Name: "warren\x00"}, "control"},
		{"dot", Config{Name: "."}, "does not take"},
		{"two dots", Config{Name: ".."}, "does not take"},
		{"negative queues", Config{Name: "warren0", Queues: -1}, "1 to 256"},
		{"257 queues", Config{Name: "warren0", Queues: 257}, "1 to 256"},
		{"MTU 67", Config{Name: "warren0", MTU: 67}, "68 to 65535"},
		{"MTU 65536", Config{Name: "warren0", MTU: 65536}, "68 to 65535"},
		{"GSO size", Config{Name: "warren0", GSOMaxSize: -1}, "negative"},
		{"queue length", Config{Name: "warren0", QueueLength: -1}, "negative"},
		{"mode", Config{Name: "warren0", TSO: 7}, "auto or off"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := c.cfg.withDefaults()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want an error with %q", err, c.want)
			}
		})
	}
	got, err := Config{Name: "fifteen-bytes-x"}.withDefaults()
	if err != nil || got.Queues != 1 || got.Node != "/dev/net/tun" {
		t.Errorf("defaults: %+v, %v", got, err)
	}
}
