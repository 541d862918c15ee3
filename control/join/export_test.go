package join

import (
	"context"
	"crypto/sha256"
	"encoding/pem"

	"crypto/x509"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/warren-net/warren/control/etcd"
)

// Steps are how far a member comes that is killed while it lets a host in.
const Steps = 5

// HalfJoin does the first steps of letting a host in, for a request of the key in dir, as a member that is killed then.
// The function that it returns goes on, as one that was only slow.
func HalfJoin(ctx context.Context, client *etcd.Client, tok *Token, node, dir string, steps int) (goOn func() error,
	err error) {
	csr, err := request(dir, NodeName, node)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(csr)
	parsed, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256(parsed.RawSubjectPublicKeyInfo)
	s := NewServer(ServerOptions{Client: client})
	h, revision, err := s.claim(ctx, tok.ID, Use{Node: node, Key: key[:]})
	if err != nil {
		return nil, err
	}
	kv, user := client.Etcd(), h.Node.User
	for i, step := range []func() error{
		func() error { return holders{client}.sweep(ctx, h.Stale) },
		func() error { _, err := kv.RoleAdd(ctx, nodeRole(user)); return err },
		func() error {
			_, err := kv.UserAddWithOptions(ctx, user, "", &clientv3.UserAddOptions{NoPassword: true})
			return err
		},
		func() error { return grant(ctx, client, node, user) },
	} {
		if i < steps {
			if err := step(); err != nil {
				return nil, err
			}
		}
	}
	return func() error { return holders{client}.ready(ctx, node, h, revision, h.Node) }, nil
}

// HalfWithdraw frees a name and leaves the rights, as a member that is killed while it takes a host out.
func HalfWithdraw(ctx context.Context, client *etcd.Client, node string) error {
	s := holders{client}
	h, revision, err := s.get(ctx, node)
	if err != nil {
		return err
	}
	h.leave()
	_, err = s.put(ctx, node, h, revision)
	return err
}

// PrintableText is what is shown of what a member says.
func PrintableText(s string) string { return printableText(s) }

// HalfDone is what a host hears of an error that comes after it was given its name.
func HalfDone(err error) error { return halfDone(err) }
