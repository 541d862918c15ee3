package control

// A Directness says when two nodes send each other what their pods say without a tunnel.
type Directness int

// The directnesses.
const (
	Never  Directness = iota // always through the tunnel
	OnLink                   // while the kernel needs no gateway between them
	Always                   // also through routers, which have to know the way to the pods
)

// DirectBetween is what two nodes together ask for: plaintext without a tunnel is for those that both ask for it by
// name, and through routers only where both say direct. Both nodes come to the same answer when they know the same of
// each other; with a control plane, which tells them one after the other, they differ for a while.
func DirectBetween(a, b *Node) Directness {
	switch {
	case a.Roams || b.Roams || !a.Untunnelled() || !b.Untunnelled():
		return Never
	case a.Encapsulation == Direct && b.Encapsulation == Direct:
		return Always
	}
	return OnLink
}

// EncryptedBetween reports whether the tunnel between two nodes is the encrypted one: unless one of them asks for
// plaintext, or permits it and has no key. Both nodes come to the same answer.
func EncryptedBetween(a, b *Node) bool {
	return a.Roams || b.Roams || !a.Plaintext() && !b.Plaintext()
}
