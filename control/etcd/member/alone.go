package member

import (
	"context"
	"errors"
	"fmt"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/join"
)

// MakeAlone makes this host the only member of the etcd whose data it has, for when the others are lost or have lost
// theirs: without most of them the etcd can change nothing, its list of members neither. What the others know beyond
// this data is lost, so none of them may go on with its own. The daemon must not run. It can be repeated where it
// failed or was killed half way.
func MakeAlone(ctx context.Context, o Options) error {
	if !HasData(o.StateDir) {
		return fmt.Errorf("no data of an etcd's member is in %s: put a backup there first", dataDir(o.StateDir))
	}
	o.alone = true
	return With(ctx, o, func(ctx context.Context, client *etcd.Client) error {
		// The rights first: a host that is in no list any more would not be found by the next try.
		if err := join.WithdrawOtherMembers(ctx, client, o.Name); err != nil {
			return err
		}
		members, err := client.Members(ctx)
		if err != nil {
			return err
		}
		admitted, err := client.Admitted(ctx)
		if err != nil {
			return err
		}
		var errs []error
		for _, m := range append(members, admitted...) {
			if m.Name != o.Name {
				errs = append(errs, client.DeleteMember(ctx, m.Name))
			}
		}
		return errors.Join(errs...)
	})
}
