package wireguard

import (
	"bytes"
	"crypto/ecdh"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/flynn/noise"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"

	"github.com/warren-net/warren/internal/key"
)

// errHandshake is the sentinel for a message that is no part of a handshake with us.
var errHandshake = errors.New("not a valid handshake message")

// An identity is one of our key pairs. While a key is being changed a node has two.
type identity struct {
	private key.Private
	public  key.Public
	cookies *device.CookieChecker // checks the first MAC of messages to us, and makes and checks cookies
}

func newIdentity(k key.Private) *identity {
	i := &identity{private: k, public: k.Public(), cookies: new(device.CookieChecker)}
	i.cookies.Init(device.NoisePublicKey(i.public))
	return i
}

// state begins a handshake. peer is its public key when we begin it, nil when it does.
func (i *identity) state(random io.Reader, peer *key.Public) (*noise.HandshakeState, error) {
	private := i.private.Reveal()
	c := noise.Config{
		CipherSuite: noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashBLAKE2s),
		Random:      random, Pattern: noise.HandshakeIK, Initiator: peer != nil, Prologue: []byte(identifier),
		PresharedKeyPlacement: 2, StaticKeypair: noise.DHKey{Private: private[:], Public: i.public[:]},
	}
	if peer != nil {
		c.PeerStatic = peer[:]
	}
	s, err := noise.NewHandshakeState(c)
	if err != nil {
		return nil, fmt.Errorf("begin a handshake: %w", err)
	}
	return s, nil
}

// An initiating is what goes into the first message of a handshake.
type initiating struct {
	random io.Reader
	peer   *PeerConfig
	index  uint32 // that we chose
	stamp  tai64n.Timestamp
}

// initiation writes the first message of a handshake with a peer, but for its MACs, and returns what is needed to read
// the second.
func (i *identity) initiation(in *initiating) ([]byte, *noise.HandshakeState, error) {
	state, err := i.state(in.random, &in.peer.Public)
	if err != nil {
		return nil, nil, err
	}
	psk := in.peer.Preshared.Reveal()
	if err := state.SetPresharedKey(psk[:]); err != nil {
		return nil, nil, fmt.Errorf("preshared key: %w", err)
	}
	msg := append(make([]byte, 0, initiationLen), TypeInitiation, 0, 0, 0)
	msg = binary.LittleEndian.AppendUint32(msg, in.index)
	if msg, _, _, err = state.WriteMessage(msg, in.stamp[:]); err != nil {
		return nil, nil, fmt.Errorf("write an initiation: %w", err)
	}
	return append(msg, make([]byte, 2*macLen)...), state, nil
}

// anyScalar is a private key that nobody uses: agreeing with a point of low order fails for every one.
var anyScalar = sync.OnceValue(func() *ecdh.PrivateKey {
	k, err := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{1}, key.Size))
	if err != nil {
		panic("wireguard: " + err.Error()) // only for a wrong length
	}
	return k
})

// A caller is who sent an initiation.
type caller struct {
	public key.Public
	stamp  tai64n.Timestamp
	index  uint32 // that it chose
	state  *noise.HandshakeState
}

// readInitiation reads the first message of a handshake. Its MACs have been checked, its timestamp has not.
func (i *identity) readInitiation(random io.Reader, msg []byte) (*caller, error) {
	state, err := i.state(random, nil)
	if err != nil {
		return nil, err
	}
	stamp, _, _, err := state.ReadMessage(nil, msg[offsetSender+4:initiationLen-2*macLen])
	if err != nil || len(stamp) != tai64n.TimestampSize {
		return nil, errHandshake
	}
	return &caller{
		public: key.Public(state.PeerStatic()), stamp: tai64n.Timestamp(stamp),
		index: binary.LittleEndian.Uint32(msg[offsetSender:]), state: state,
	}, nil
}

// respond writes the second message, but for its MACs, and returns the session's keys: to send and to receive with.
func (c *caller) respond(psk key.Preshared, sender uint32) (msg []byte, send, receive [32]byte, err error) {
	b := psk.Reveal()
	if err := c.state.SetPresharedKey(b[:]); err != nil {
		return nil, send, receive, fmt.Errorf("preshared key: %w", err)
	}
	msg = append(make([]byte, 0, responseLen), TypeResponse, 0, 0, 0)
	msg = binary.LittleEndian.AppendUint32(msg, sender)
	msg = binary.LittleEndian.AppendUint32(msg, c.index)
	msg, toUs, fromUs, err := c.state.WriteMessage(msg, nil)
	if err != nil {
		return nil, send, receive, fmt.Errorf("write a response: %w", err)
	}
	return append(msg, make([]byte, 2*macLen)...), fromUs.UnsafeKey(), toUs.UnsafeKey(), nil
}

// readResponse reads the second message. A forged one leaves the state as it is, so that the true one can still come.
// The library sees to that where a decryption fails, but not where a key agreement does, which a point of low order
// makes all of them do; so that is looked at before.
func readResponse(state *noise.HandshakeState, msg []byte) (send, receive [32]byte, err error) {
	ephemeral, err := ecdh.X25519().NewPublicKey(msg[offsetAnswered+4:][:key.Size])
	if err != nil {
		return send, receive, errHandshake
	}
	if _, err := anyScalar().ECDH(ephemeral); err != nil {
		return send, receive, errHandshake
	}
	payload, fromUs, toUs, err := state.ReadMessage(nil, msg[offsetAnswered+4:responseLen-2*macLen])
	if err != nil || len(payload) != 0 || fromUs == nil {
		return send, receive, errHandshake
	}
	return fromUs.UnsafeKey(), toUs.UnsafeKey(), nil
}
