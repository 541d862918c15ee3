package join

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/authpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/warren-net/warren/control/etcd"
)

// rootName is the user and the role that etcd knows by itself. Nobody has a certificate with that name.
const rootName = "root"

// CheckName refuses names that a node of such a network cannot have.
func CheckName(name string) error {
	if name == rootName {
		return fmt.Errorf("node %q: etcd keeps that name for itself: choose another with --node", name)
	}
	return etcd.CheckName("node", name)
}

// Secure turns etcd's authentication on, for a network with its first member, whose certificates are in the state
// directory. It can be repeated.
func Secure(ctx context.Context, client *etcd.Client, name, stateDir string) error {
	node, err := loadCert(Files(stateDir).Cert)
	if err != nil {
		return err
	}
	member, err := loadCert(MemberFiles(stateDir).Cert)
	if err != nil {
		return err
	}
	key := hashOf(node)
	first := &holder{Version: holderVersion, Key: key[:], Node: &account{User: node.Subject.CommonName, Ready: true},
		Member: &account{User: member.Subject.CommonName, Ready: true}}
	kv := client.Etcd()
	prefix := etcd.Prefix(client.Network())
	for _, step := range []func() error{
		func() error { return addUser(ctx, kv, rootName, rootName) },
		func() error { return grantMember(ctx, client, first.Member.User) },
		func() error {
			return addRole(ctx, kv, networkRole(client.Network()), []permission{
				{prefix, clientv3.GetPrefixRangeEnd(prefix), clientv3.PermRead},
				{prefix + "cidrs/", clientv3.GetPrefixRangeEnd(prefix + "cidrs/"), clientv3.PermReadWrite},
			})
		},
		func() error { return grant(ctx, client, name, first.Node.User) },
		func() error { _, err := (holders{client}).put(ctx, name, first, 0); return err }, // or it is there
		func() error { _, err := kv.AuthEnable(ctx); return err },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("etcd's authentication: %w", client.Explain(err))
		}
	}
	return nil
}

func networkRole(network string) string { return "network:" + network }

// nodeRole is the role of one user, so that whoever has the name next shares none with it.
func nodeRole(user string) string { return "node:" + user }

// grant gives a node's user the right to read the network and to write what is the node's own.
func grant(ctx context.Context, client *etcd.Client, node, user string) error {
	prefix, kv := etcd.Prefix(client.Network()), client.Etcd()
	if err := addRole(ctx, kv, nodeRole(user), []permission{
		{prefix + "nodes/" + node, "", clientv3.PermReadWrite}, {prefix + "leased/" + node, "", clientv3.PermReadWrite},
		{prefix + "alive/" + node, "", clientv3.PermReadWrite},
	}); err != nil {
		return client.Explain(err)
	}
	return client.Explain(addUser(ctx, kv, user, networkRole(client.Network()), nodeRole(user)))
}

// grantMember gives a user the rights of a member: all of them, as a member could take them.
func grantMember(ctx context.Context, client *etcd.Client, user string) error {
	return client.Explain(addUser(ctx, client.Etcd(), user, rootName))
}

// withdraw takes all rights of a user away.
func withdraw(ctx context.Context, client *etcd.Client, user string) error {
	if _, err := client.Etcd().UserDelete(ctx, user); err != nil && !isEtcd(err, rpctypes.ErrUserNotFound) {
		return client.Explain(err)
	}
	if _, as := nameIn(user); as == asMember {
		return nil // it has no role of its own
	}
	if _, err := client.Etcd().RoleDelete(ctx, nodeRole(user)); err != nil && !isEtcd(err, rpctypes.ErrRoleNotFound) {
		return client.Explain(err)
	}
	return nil
}

// WithdrawMember takes a member's rights away; those of the node stay. Of a host that has none, also by what is left of
// a try that was killed, nothing is changed, and had is false.
func WithdrawMember(ctx context.Context, client *etcd.Client, node string) (had bool, err error) {
	h, _, err := holders{client}.get(ctx, node)
	if err != nil {
		return false, err
	}
	isMember := func(user string) bool { _, as := nameIn(user); return as == asMember }
	if h.Member == nil && !slices.ContainsFunc(h.Stale, isMember) {
		return false, nil
	}
	return true, holders{client}.forget(ctx, node, func(h *holder) { h.end(&h.Member) })
}

// WithdrawOtherMembers takes the rights of all members away but those of the one host.
func WithdrawOtherMembers(ctx context.Context, client *etcd.Client, node string) error {
	names := holders{client}.at("")
	resp, err := client.Etcd().Get(ctx, names, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return client.Explain(err)
	}
	var errs []error
	for _, kv := range resp.Kvs {
		if name := strings.TrimPrefix(string(kv.Key), names); name != node {
			_, err := WithdrawMember(ctx, client, name)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Withdraw takes all rights of a host away: what certificates it has are worth nothing from then on, whoever has its
// name next.
func Withdraw(ctx context.Context, client *etcd.Client, node string) error {
	return holders{client}.forget(ctx, node, (*holder).leave)
}

// known reports whether there is a user of that name.
func known(ctx context.Context, client *etcd.Client, user string) (bool, error) {
	_, err := client.Etcd().UserGet(ctx, user)
	if isEtcd(err, rpctypes.ErrUserNotFound) {
		return false, nil
	}
	return err == nil, client.Explain(err)
}

type permission struct {
	key, end string
	kind     authpb.Permission_Type
}

func addRole(ctx context.Context, kv *clientv3.Client, name string, permissions []permission) error {
	if _, err := kv.RoleAdd(ctx, name); err != nil && !isEtcd(err, rpctypes.ErrRoleAlreadyExist) {
		return err
	}
	for _, p := range permissions {
		if _, err := kv.RoleGrantPermission(ctx, name, p.key, p.end, clientv3.PermissionType(p.kind)); err != nil {
			return err
		}
	}
	return nil
}

func addUser(ctx context.Context, kv *clientv3.Client, name string, roles ...string) error {
	_, err := kv.UserAddWithOptions(ctx, name, "", &clientv3.UserAddOptions{NoPassword: true})
	if err != nil && !isEtcd(err, rpctypes.ErrUserAlreadyExist) {
		return err
	}
	if name == rootName { // etcd makes this role itself with the first grant
		if _, err := kv.RoleAdd(ctx, rootName); err != nil && !isEtcd(err, rpctypes.ErrRoleAlreadyExist) {
			return err
		}
	}
	for _, r := range roles {
		if _, err := kv.UserGrantRole(ctx, name, r); err != nil {
			return err
		}
	}
	return nil
}

// isEtcd compares the errors of etcd by what they say, as its server sends no more.
func isEtcd(err, target error) bool {
	var e, t rpctypes.EtcdError
	if err == nil || !errors.As(target, &t) {
		return false
	}
	if errors.As(err, &e) {
		return e.Error() == t.Error()
	}
	return rpctypes.ErrorDesc(err) == t.Error()
}
