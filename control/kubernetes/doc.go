// Package kubernetes is the control plane that is a Kubernetes cluster: its Node objects say which nodes there are.
// They are watched, and this node's own object is told what the others have to know.
//
// What is read of a Node object, and who may write it:
//
//	metadata.name, uid, creationTimestamp   the API server; the time is the claim's Order
//	spec.podCIDRs                           kube-controller-manager. They cannot be changed once they are set, and no
//	                                        annotation stands for them: whoever has a kubelet's credentials may write its
//	                                        node's annotations, and must not get a neighbour's traffic by that
//	status.addresses, InternalIP            the kubelet or the cloud's controller
//	annotations warren.network/...          the node's Warren daemon, see Annotation…; the kubelet may write them too,
//	                                        and with the admission plugin NodeRestriction only its own node's
//
// A node that is not complete (no pod CIDR yet, no public key because its daemon has not run) is left out, as nothing
// could be sent to it; the own one is always there once it has pod CIDRs and an address. One that was complete before,
// and still is the same object, is Broken instead: what it said before stays in force.
//
// A Source keeps of each node what the network needs, some hundred bytes. It keeps everything while the API server is
// away, and compares when it is back. All its methods may be called concurrently; Run once.
package kubernetes
