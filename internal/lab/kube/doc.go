// Package kube runs a Kubernetes in a lab: etcd and the control plane on a host of its own, and nodes with containerd,
// a kubelet and kube-proxy, each a machine of its own as far as these can tell (internal/lab/cri). Everything is the
// real program, built from the Go modules in binaries and coredns; only etcd, containerd and runc are the
// distribution's. Certificates, RBAC, the node authorizer and NodeRestriction are as in a cluster that kubeadm made.
//
// It asks the cluster through kubectl, as a user does.
//
// The tests are behind the build tag "cluster", as they build Kubernetes: `make test-cluster`. A test of theirs that
// finds something missing fails; none is skipped.
package kube
