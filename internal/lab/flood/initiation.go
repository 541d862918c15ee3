package flood

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"github.com/flynn/noise"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"

	"github.com/warren-net/warren/internal/key"
)

// InitiationLen is the length of an initiation in bytes: the two MACs are its last 32.
const InitiationLen = 148

// Initiations makes the first messages of so many handshakes with the owner of a public key, each of another stranger:
// the first MAC is right, as everybody can make it who knows that key, and all of it decrypts. Written here from the
// protocol's description and not with the code under test.
func Initiations(to key.Public, n int) ([][]byte, error) {
	cookies := new(device.CookieGenerator)
	cookies.Init(device.NoisePublicKey(to))
	msgs := make([][]byte, n)
	for i := range msgs {
		var err error
		if msgs[i], err = initiation(to, cookies); err != nil {
			return nil, fmt.Errorf("making an initiation: %w", err)
		}
	}
	return msgs, nil
}

func initiation(to key.Public, cookies *device.CookieGenerator) ([]byte, error) {
	private := key.NewPrivate()
	bytes, public := private.Reveal(), private.Public()
	state, err := noise.NewHandshakeState(noise.Config{
		CipherSuite: noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashBLAKE2s),
		Pattern:     noise.HandshakeIK, Initiator: true, PresharedKeyPlacement: 2, PresharedKey: make([]byte, key.Size),
		Prologue:      []byte("WireGuard v1 zx2c4 Jason@zx2c4.com"),
		StaticKeypair: noise.DHKey{Private: bytes[:], Public: public[:]}, PeerStatic: to[:],
	})
	if err != nil {
		return nil, err
	}
	msg := binary.LittleEndian.AppendUint32([]byte{device.MessageInitiationType, 0, 0, 0}, rand.Uint32())
	stamp := tai64n.Now()
	if msg, _, _, err = state.WriteMessage(msg, stamp[:]); err != nil {
		return nil, err
	}
	msg = append(msg, make([]byte, InitiationLen-len(msg))...)
	cookies.AddMacs(msg)
	return msg, nil
}
