// Package key holds the keys of the encrypted encapsulation: Curve25519 key pairs (RFC 7748) that say who a node is,
// and preshared keys. Keys that must stay secret have no text form that fmt, encoding/json or log/slog would find: they
// print as what they are, not as their bytes. Whoever wants the bytes has to ask for them by name.
//
// All types are values, comparable by == in a time that tells nothing of a secret, and safe for concurrent use.
//
// Ring is a node's private keys, and how they are kept on disk.
package key

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"unique"
)

// Size is the length of every key, in bytes.
const Size = 32

// A Public is a Curve25519 public key. The zero value is no key.
type Public [Size]byte

// ErrFormat is the sentinel for text that is not a key.
var ErrFormat = errors.New("want 32 bytes in base64, 44 characters with the = at the end")

// ParsePublic reads a key as `wg pubkey` prints it.
func ParsePublic(s string) (Public, error) {
	b, err := decode(s)
	if err != nil {
		return Public{}, err
	}
	p := Public(b)
	if p.IsZero() {
		return Public{}, fmt.Errorf("the public key is zero: %w", ErrFormat)
	}
	return p, nil
}

// String is the key in base64.
func (p Public) String() string { return base64.StdEncoding.EncodeToString(p[:]) }

// IsZero reports whether p is no key.
func (p Public) IsZero() bool { return p == Public{} }

// MarshalText implements encoding.TextMarshaler.
func (p Public) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Public) UnmarshalText(text []byte) error {
	k, err := ParsePublic(string(text))
	if err != nil {
		return err
	}
	*p = k
	return nil
}

// A Private is a Curve25519 private key. The zero value is no key.
type Private struct{ secret }

// NewPrivate makes a key from the system's random numbers.
func NewPrivate() Private {
	var b [Size]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	// Clamped as RFC 7748, section 5 has it, so that other programs, which show a key clamped, show the same.
	b[0] &= 248
	b[31] = b[31]&127 | 64
	return Private{secretOf(b)}
}

// ParsePrivate reads a key as `wg genkey` prints it.
func ParsePrivate(s string) (Private, error) {
	b, err := decode(s)
	if err != nil {
		return Private{}, err
	}
	p := Private{secretOf(b)}
	if p.IsZero() {
		return Private{}, fmt.Errorf("the private key is zero: %w", ErrFormat)
	}
	return p, nil
}

// Public is the key's public half. p must not be zero.
func (p Private) Public() Public {
	b := p.Reveal()
	k, err := ecdh.X25519().NewPrivateKey(b[:])
	if err != nil {
		panic("key: " + err.Error()) // only for a wrong length
	}
	return Public(k.PublicKey().Bytes())
}

// A Preshared is a symmetric key that two peers share beside their key pairs. The zero value is no key, which the
// protocol treats as a key of zeros.
type Preshared struct{ secret }

// NewPreshared makes a key from the system's random numbers.
func NewPreshared() Preshared {
	var b [Size]byte
	_, _ = rand.Read(b[:])
	return Preshared{secretOf(b)}
}

// ParsePreshared reads a key as `wg genpsk` prints it.
func ParsePreshared(s string) (Preshared, error) {
	b, err := decode(s)
	return Preshared{secretOf(b)}, err
}

// A secret is the bytes of a key that nobody else may see. They are behind two pointers: where a key is in an
// unexported field of somebody's struct, fmt cannot call its methods and shows what is in it, which is then an address;
// it follows one pointer when the verb does not fit. A handle is a pointer that is equal for equal values, so that keys
// can be compared by ==. Zero bytes are the zero handle.
type secret struct{ h unique.Handle[box] }

type box struct{ h unique.Handle[[Size]byte] }

func secretOf(b [Size]byte) secret {
	if b == [Size]byte{} {
		return secret{}
	}
	return secret{unique.Make(box{unique.Make(b)})}
}

// Reveal returns the bytes.
func (s secret) Reveal() [Size]byte {
	if s.IsZero() {
		return [Size]byte{}
	}
	return s.h.Value().h.Value()
}

// RevealText returns the key in base64, as files and other programs' configurations have it.
func (s secret) RevealText() string {
	b := s.Reveal()
	return base64.StdEncoding.EncodeToString(b[:])
}

// IsZero reports whether s is no key.
func (s secret) IsZero() bool { return s == secret{} }

// Equal reports whether both are the same key.
func (s secret) Equal(o secret) bool { return s == o }

// String says that there is a key, and not which.
func (s secret) String() string {
	if s.IsZero() {
		return "(no key)"
	}
	return "(secret key)"
}

// GoString is String, for %#v.
func (s secret) GoString() string { return s.String() }

// Format is String, for every verb.
func (s secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// MarshalText is String, for encoders.
func (s secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue is String, for log/slog.
func (s secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

func decode(s string) (b [Size]byte, err error) {
	if len(s) != base64.StdEncoding.EncodedLen(Size) { // the decoder would skip line breaks
		return b, ErrFormat
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(raw) != Size {
		return b, ErrFormat
	}
	return [Size]byte(raw), nil
}
