package join

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"slices"
)

// The paths of the conversation, POST over HTTPS, each with one JSON document there and one back.
const (
	pathJoin  = "/v1/join"
	pathRenew = "/v1/renew"
	pathLeave = "/v1/leave"

	maxBody = 64 << 10 // bytes; a request has less than one KiB
)

// authHeader carries the token's ID and the signature: "Warren ID SIGNATURE".
const authScheme = "Warren"

// An ask is what a host asks for.
type ask struct {
	Version int     `json:"version"`
	Node    string  `json:"node"`
	Request string  `json:"request"`          // PKCS #10, in PEM form
	Member  *seeker `json:"member,omitempty"` // it wants to be a member as well
}

// A seeker is a host that wants to be a member.
type seeker struct {
	Request string `json:"request"` // for the member's certificate
	Client  string `json:"client"`  // HOST:PORT at which nodes are to reach its etcd
	Peer    string `json:"peer"`    // and other members
	Join    string `json:"join"`    // and hosts that join
}

// An answer is what it gets.
type answer struct {
	Version     int      `json:"version"`
	Network     string   `json:"network"`
	CA          string   `json:"ca"` // PEM
	Certificate string   `json:"certificate"`
	Endpoints   []string `json:"endpoints"` // HOST:PORT of the members' etcd

	Member *admission `json:"member,omitempty"`
}

// An admission is what a new member needs.
type admission struct {
	Certificate string            `json:"certificate"`
	CAKey       string            `json:"caKey"`
	Peers       map[string]string `json:"peers"` // node name → peer URL, itself included
}

// A refusal is the body of every other answer.
type refusal struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// wireVersion is the version of this conversation.
const wireVersion = 1

// Errors on which callers decide. All of them are what the network answers.
var (
	ErrWrongToken = errors.New("the token is wrong")
	ErrExpired    = errors.New("the token has expired")
	ErrUsed       = errors.New("the token was used")
	ErrRevoked    = errors.New("the token was revoked")
	ErrNameTaken  = errors.New("the name is taken")
	ErrNotAllowed = errors.New("the token does not permit this")
	ErrTooMany    = errors.New("too many tries")
	ErrRefused    = errors.New("refused")
	ErrUnable     = errors.New("the member cannot do it now")
)

// codes are how the errors are spelled between the two ends.
var codes = []struct {
	code string
	err  error
}{{"wrong", ErrWrongToken}, {"expired", ErrExpired}, {"used", ErrUsed}, {"revoked", ErrRevoked},
	{"name", ErrNameTaken}, {"permission", ErrNotAllowed}, {"rate", ErrTooMany}, {"unable", ErrUnable},
	{"refused", ErrRefused}}

// signed is what a proof signs: a value that the two ends of this TLS session alone know, and what is asked for.
func signed(cs *tls.ConnectionState, body []byte) ([]byte, error) {
	bound, err := cs.ExportKeyingMaterial("EXPORTER-warren-join-v1", nil, 32)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	return slices.Concat([]byte("warren join request v1\x00"), bound, sum[:]), nil
}

func prove(cs *tls.ConnectionState, t *Token, body []byte) ([]byte, error) {
	m, err := signed(cs, body)
	if err != nil {
		return nil, err
	}
	return ed25519.Sign(t.key(), m), nil
}

func proven(cs *tls.ConnectionState, public ed25519.PublicKey, body, signature []byte) bool {
	m, err := signed(cs, body)
	return err == nil && ed25519.Verify(public, m, signature)
}
