// Package member runs a member of the network's own etcd: the embedded server, over TLS that both sides prove
// themselves by, and beside it the server that lets hosts in (control/join). A node's daemon runs it in a process of
// its own.
//
// The data is below the state directory, and survives what a process can suffer; a member that was killed goes on where
// it was. One that is new in the etcd is a learner first, which does not count for the quorum, and makes itself a
// voting member once it has all data.
//
// Nothing of it runs, and no etcd code is reached, unless Run is called.
package member
