package join

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/warren-net/warren/control/etcd"
)

// A Token is what a host joins with.
type Token struct {
	ID     string // the name of its record; not secret
	secret [secretSize]byte
	ca     [sha256.Size]byte // of the authority's public key
}

const (
	tokenPrefix = "warren1" // 1 is the version
	idSize      = 5         // bytes
	secretSize  = 16        // bytes
)

// text is how the parts of a token are spelled: letters and digits, so that a double click takes all of it.
var text = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Reveal is the token as it is typed. There is no String, so that no log has it by mistake.
func (t *Token) Reveal() string {
	return strings.Join([]string{tokenPrefix, t.ID, text.EncodeToString(t.secret[:]), text.EncodeToString(t.ca[:])}, ".")
}

// String says which token it is, and not what.
func (t *Token) String() string { return "token " + t.ID }

// ErrTokenFormat is the sentinel for text that is not a token.
var ErrTokenFormat = errors.New("not a token")

// ParseToken reads a token as it is typed.
func ParseToken(s string) (*Token, error) {
	s = strings.ToLower(strings.TrimSpace(s))
	parts := strings.Split(s, ".")
	wrong := func(why string) error {
		return fmt.Errorf("%w (%s): copy all of what `warren token new` printed, it begins with %s. and has %d characters",
			ErrTokenFormat, why, tokenPrefix, tokenLength())
	}
	if len(parts) != 4 || parts[0] != tokenPrefix {
		if strings.HasPrefix(s, "warren") && !strings.HasPrefix(s, tokenPrefix+".") {
			return nil, fmt.Errorf("%w of this version: it was made by another version of Warren", ErrTokenFormat)
		}
		return nil, wrong(fmt.Sprintf("it has %d parts instead of 4", len(parts)))
	}
	t := &Token{ID: parts[1]}
	id, err := text.DecodeString(parts[1])
	secret, secretErr := text.DecodeString(parts[2])
	ca, caErr := text.DecodeString(parts[3])
	if errors.Join(err, secretErr, caErr) != nil || len(id) != idSize || len(secret) != secretSize ||
		len(ca) != sha256.Size {
		return nil, wrong(fmt.Sprintf("it has %d characters", len(s)))
	}
	t.secret, t.ca = [secretSize]byte(secret), [sha256.Size]byte(ca)
	return t, nil
}

func tokenLength() int {
	return len(tokenPrefix) + 3 + text.EncodedLen(idSize) + text.EncodedLen(secretSize) + text.EncodedLen(sha256.Size)
}

// key is what proves that one has the secret.
func (t *Token) key() ed25519.PrivateKey {
	seed := sha256.Sum256(slices.Concat([]byte("warren join token v1\x00"), t.secret[:]))
	return ed25519.NewKeyFromSeed(seed[:])
}

// How long tokens are good for.
const (
	DefaultTokenLife = time.Hour
	MaxTokenLife     = 24 * time.Hour

	// keepEnded is how long a token's record outlives it, to say what became of it.
	keepEnded = 7 * 24 * time.Hour
)

// TokenOptions say what a token permits.
type TokenOptions struct {
	Life    time.Duration // 0: DefaultTokenLife
	Uses    int           // hosts that may join; 0: one
	Replace bool          // a host may take a name that is there already
	Member  bool          // a host may become a member
}

// A TokenInfo is what the network knows of a token: enough to check it, not enough to use it.
type TokenInfo struct {
	ID        string    `json:"-"`
	Version   int       `json:"version"`
	PublicKey []byte    `json:"publicKey"` // ed25519, derived from the secret
	Created   time.Time `json:"created"`
	Expires   time.Time `json:"expires"`
	Uses      int       `json:"uses"`
	Used      []Use     `json:"used,omitempty"`
	Replace   bool      `json:"replace,omitempty"`
	Member    bool      `json:"member,omitempty"`
	Revoked   bool      `json:"revoked,omitempty"`
}

// A Use is one host that joined.
type Use struct {
	Node string `json:"node"`
	Key  []byte `json:"key"` // hash of the public key that it got a certificate for, by which it may ask once more

	// Left says that it was taken out of the network since: with this token it does not come back.
	Left bool `json:"left,omitempty"`
}

// is reports whether both are of one host that is in the network, as far as the token knows.
func (u Use) is(o Use) bool {
	return u.Node == o.Node && slices.Equal(u.Key, o.Key) && !u.Left && !o.Left
}

// isLeft reports whether o was taken out, and u is the same host or has its name.
func (u Use) isLeft(o Use) bool {
	return o.Left && (u.Node == o.Node || slices.Equal(u.Key, o.Key))
}

// State is what has become of the token by the clock given: "good", "used", "expired" or "revoked".
func (i *TokenInfo) State(now time.Time) string {
	switch {
	case i.Revoked:
		return "revoked"
	case !now.Before(i.Expires):
		return "expired"
	case len(i.Used) >= i.Uses:
		return "used"
	}
	return "good"
}

const tokenVersion = 1

// Tokens are the network's tokens. Only members may write them.
type Tokens struct {
	client *etcd.Client
	now    func() time.Time
}

// NewTokens works on the tokens of the client's network.
func NewTokens(client *etcd.Client) *Tokens { return &Tokens{client: client, now: time.Now} }

func (t *Tokens) prefix() string { return etcd.Prefix(t.client.Network()) + "tokens/" }

// New makes a token for hosts to join with.
func (t *Tokens) New(ctx context.Context, ca *CA, o TokenOptions) (*Token, error) {
	if o.Life == 0 {
		o.Life = DefaultTokenLife
	}
	if o.Uses == 0 {
		o.Uses = 1
	}
	if o.Life < time.Second || o.Life > MaxTokenLife {
		return nil, fmt.Errorf("token for %s: use a time between 1s and %s; make another one when it is needed", o.Life,
			MaxTokenLife)
	}
	if o.Uses < 1 || o.Uses > 10000 {
		return nil, fmt.Errorf("token for %d hosts: use 1 to 10000", o.Uses)
	}
	tok := &Token{ca: ca.Hash()}
	var id [idSize]byte
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	_, _ = rand.Read(tok.secret[:])
	tok.ID = text.EncodeToString(id[:])
	now := t.now().UTC().Truncate(time.Second)
	info := &TokenInfo{ID: tok.ID, Version: tokenVersion, PublicKey: tok.key().Public().(ed25519.PublicKey), Created: now,
		Expires: now.Add(o.Life), Uses: o.Uses, Replace: o.Replace, Member: o.Member}
	// etcd removes the record some time after the token's end.
	lease, err := t.client.Etcd().Grant(ctx, int64((o.Life+keepEnded)/time.Second))
	if err != nil {
		return nil, t.client.Explain(err)
	}
	revision, err := commit(ctx, t.client, []clientv3.Cmp{t.unchanged(tok.ID, 0)},
		clientv3.OpPut(t.prefix()+tok.ID, info.marshal(), clientv3.WithLease(lease.ID)))
	if err != nil {
		return nil, err
	}
	if revision == 0 {
		return nil, fmt.Errorf("there is a token %s already; try again", tok.ID)
	}
	return tok, nil
}

func (i *TokenInfo) marshal() string {
	b, err := json.Marshal(i)
	if err != nil {
		panic("join: " + err.Error()) // nothing in it can fail
	}
	return string(b)
}

// List is all tokens whose records are kept.
func (t *Tokens) List(ctx context.Context) ([]TokenInfo, error) {
	var resp *clientv3.GetResponse
	err := steady(ctx, func() (err error) {
		resp, err = t.client.Etcd().Get(ctx, t.prefix(), clientv3.WithPrefix())
		return err
	})
	if err != nil {
		return nil, t.client.Explain(err)
	}
	out := []TokenInfo{}
	for _, kv := range resp.Kvs {
		i := TokenInfo{ID: strings.TrimPrefix(string(kv.Key), t.prefix())}
		if err := json.Unmarshal(kv.Value, &i); err == nil && i.Version == tokenVersion {
			out = append(out, i)
		}
	}
	return out, nil
}

// ErrNoToken says that there is no such token.
var ErrNoToken = errors.New("there is no such token")

// Revoke ends a token by its ID, or by the whole of it. Hosts that joined with it stay.
func (t *Tokens) Revoke(ctx context.Context, id string) error {
	if tok, err := ParseToken(id); err == nil {
		id = tok.ID
	}
	return t.change(ctx, id, func(i *TokenInfo) error {
		i.Revoked = true
		return nil
	})
}

// RevokeOf ends the tokens with which a node joined and others may join still, and returns their IDs. Who has the node
// has such a token, and could come in with it by another name. Hosts that joined with them stay.
func (t *Tokens) RevokeOf(ctx context.Context, node string) ([]string, error) {
	list, err := t.List(ctx)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, i := range list {
		if i.Revoked || len(i.Used) >= i.Uses ||
			!slices.ContainsFunc(i.Used, func(u Use) bool { return u.Node == node }) {
			continue
		}
		if err := t.Revoke(ctx, i.ID); errors.Is(err, ErrNoToken) {
			continue // it has ended meanwhile
		} else if err != nil {
			return ids, err
		}
		ids = append(ids, i.ID)
	}
	return ids, nil
}

// leave ends what the tokens with which a node joined permit it still.
func (t *Tokens) leave(ctx context.Context, node string) error {
	list, err := t.List(ctx)
	if err != nil {
		return err
	}
	of := func(u Use) bool { return u.Node == node && !u.Left }
	for _, i := range list {
		if !slices.ContainsFunc(i.Used, of) {
			continue
		}
		err := t.change(ctx, i.ID, func(i *TokenInfo) error {
			for k := range i.Used {
				i.Used[k].Left = i.Used[k].Left || of(i.Used[k])
			}
			return nil
		})
		if err != nil && !errors.Is(err, ErrNoToken) { // which has ended meanwhile
			return err
		}
	}
	return nil
}

// change edits the record as it is. Where somebody else was faster, it looks at it again.
func (t *Tokens) change(ctx context.Context, id string, edit func(*TokenInfo) error) error {
	for {
		info, modified, err := t.get(ctx, id)
		if err != nil {
			return err
		}
		was := info.marshal()
		if err := edit(info); err != nil || info.marshal() == was {
			return err
		}
		revision, err := commit(ctx, t.client, []clientv3.Cmp{t.unchanged(id, modified)}, t.write(info))
		if err != nil || revision != 0 {
			return err
		}
	}
}

func (t *Tokens) unchanged(id string, revision int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(t.prefix()+id), "=", revision)
}

func (t *Tokens) write(info *TokenInfo) clientv3.Op {
	return clientv3.OpPut(t.prefix()+info.ID, info.marshal(), clientv3.WithIgnoreLease())
}

func (t *Tokens) get(ctx context.Context, id string) (*TokenInfo, int64, error) {
	if _, err := text.DecodeString(id); err != nil || len(id) != text.EncodedLen(idSize) {
		return nil, 0, fmt.Errorf("token %q: %w; `warren token list` shows them", id, ErrNoToken)
	}
	var resp *clientv3.GetResponse
	err := steady(ctx, func() (err error) {
		resp, err = t.client.Etcd().Get(ctx, t.prefix()+id)
		return err
	})
	if err != nil {
		return nil, 0, t.client.Explain(err)
	}
	if len(resp.Kvs) == 0 {
		return nil, 0, fmt.Errorf("token %s: %w; `warren token list` shows them", id, ErrNoToken)
	}
	info := &TokenInfo{ID: id}
	if err := json.Unmarshal(resp.Kvs[0].Value, info); err != nil || info.Version != tokenVersion ||
		len(info.PublicKey) != ed25519.PublicKeySize {
		return nil, 0, fmt.Errorf("the record of token %s cannot be read (version %d): make another one", id, info.Version)
	}
	return info, resp.Kvs[0].ModRevision, nil
}
