package key

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// TestPublic computes the public keys of the example in RFC 7748, 6.1.
func TestPublic(t *testing.T) {
	for private, public := range map[string]string{
		"77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a": "8520f0098930a754748b7ddcb43ef75a" +
			"0dbf3a0d26381af4eba4a98eaa9b4e6a",
		"5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb": "de9edb7d7b7dc1b4d35b61c2ece43537" +
			"3f8343c85b78674dadfc7e146f882b4f",
	} {
		b, err := hex.DecodeString(private)
		if err != nil {
			t.Fatal(err)
		}
		p, err := ParsePrivate(base64.StdEncoding.EncodeToString(b))
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Public(); hex.EncodeToString(got[:]) != public {
			t.Errorf("%x, want %s", got[:], public)
		}
	}
}

func TestParse(t *testing.T) {
	good := NewPrivate()
	if p, err := ParsePrivate(good.RevealText()); err != nil || p != good {
		t.Errorf("the same key again: %v, %v", p, err)
	}
	if p, err := ParsePublic(good.Public().String()); err != nil || p != good.Public() {
		t.Errorf("the same public key again: %v, %v", p, err)
	}
	text := good.RevealText()
	for _, bad := range []string{"", "=", text[:43], text[:42] + "==", text + "\n", " " + text, text + text,
		text[:40] + "====",
		strings.Repeat("A", 42) + "B=", "!" + text[1:], base64.RawStdEncoding.EncodeToString(make([]byte, Size)),
		hex.EncodeToString(make([]byte, Size))} {
		_, publicErr := ParsePublic(bad)
		_, privateErr := ParsePrivate(bad)
		_, presharedErr := ParsePreshared(bad)
		for _, err := range []error{publicErr, privateErr, presharedErr} {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("%q: %v, want %v", bad, err, ErrFormat)
			} else if len(bad) > 10 && strings.Contains(err.Error(), bad[:10]) {
				t.Errorf("the error shows the text: %v", err)
			}
		}
	}
	zero := base64.StdEncoding.EncodeToString(make([]byte, Size))
	if _, err := ParsePublic(zero); !errors.Is(err, ErrFormat) {
		t.Errorf("zero public key: %v", err)
	}
	if _, err := ParsePrivate(zero); !errors.Is(err, ErrFormat) {
		t.Errorf("zero private key: %v", err)
	}
	if p, err := ParsePreshared(zero); err != nil || !p.IsZero() || p != (Preshared{}) {
		t.Errorf("zero preshared key, which the protocol takes for none: %v, %v", p, err)
	}
}

// TestClamped has other programs show the key that we store: they clamp before they print.
func TestClamped(t *testing.T) {
	for range 100 {
		if b := NewPrivate().Reveal(); b[0]&7 != 0 || b[31]>>6 != 1 {
			t.Fatal("a new key is not clamped as RFC 7748, section 5 has it")
		}
	}
}

func TestEqual(t *testing.T) {
	a, b := NewPreshared(), NewPreshared()
	again, err := ParsePreshared(a.RevealText())
	if err != nil {
		t.Fatal(err)
	}
	if a == b || a != again || !a.Equal(again.secret) || a.Equal(b.secret) || a.IsZero() || !(Preshared{}).IsZero() {
		t.Error("keys with the same bytes are equal, and no others")
	}
}

// A holder keeps a key where fmt finds no method of it.
type holder struct {
	private   Private
	preshared *Preshared
	list      []Private
	byName    map[string]Preshared
	Open      Private
}

// TestNothingPrintsASecret prints keys in the ways that a log, a status or a test's failure would.
func TestNothingPrintsASecret(t *testing.T) {
	private, preshared := NewPrivate(), NewPreshared()
	h := holder{private, &preshared, []Private{private}, map[string]Preshared{"x": preshared}, private}
	var out bytes.Buffer
	values := []any{private, preshared, &private, &preshared, []Private{private}, h, &h,
		errors.Join(fmt.Errorf("key %v", private)), struct{ any }{private}}
	for _, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b", "%o", "%t", "%p", "%c"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
		for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
			slog.New(handler).Info("a key", "value", v)
		}
	}
	printed := out.String()
	if !strings.Contains(printed, "(secret key)") {
		t.Error("nothing says that there is a key")
	}
	for name, b := range map[string][Size]byte{"private": private.Reveal(), "preshared": preshared.Reveal()} {
		decimal := strings.Trim(fmt.Sprint(b[:4]), "[]")
		for _, form := range []string{base64.StdEncoding.EncodeToString(b[:])[:8], hex.EncodeToString(b[:4]),
			strings.ToUpper(hex.EncodeToString(b[:4])), decimal, strings.ReplaceAll(decimal, " ", ","), string(b[:4])} {
			if i := strings.Index(printed, form); i >= 0 {
				t.Errorf("the %s key shows: …%s…", name, printed[max(0, i-80):min(len(printed), i+120)])
			}
		}
	}
	if s := fmt.Sprint(Private{}); s != "(no key)" {
		t.Errorf("no key prints as %s", s)
	}
}
