// Package join lets hosts into a network whose etcd Warren runs: the authority that issues their certificates, the
// tokens with which they ask for one, and both ends of the conversation.
//
// A token is a name for a record in etcd, a secret, and the hash of the authority's public key. The joining host
// connects with TLS 1.3 and goes on only where the chain ends at that authority and the certificate is a member's; so
// no false server learns anything of it. It does not send the secret: it signs, with a key derived from the secret,
// what it asks for and a value that both ends of this very TLS session know and nobody between them does (RFC 5705).
// The record has the public half of the key, so that who reads etcd cannot join with what is there.
//
// The secret has 128 random bits: it is not to be guessed. Whoever does not know it gets one answer, whether there is
// such a token or not; why a token is no longer good is said to who proved to have it. When it ends is judged by the
// clock of the member that is asked.
//
// A host sends a request for a certificate (PKCS #10) and keeps the private key. Certificates are for a user of the
// etcd, which their common name is: the node's name and something that no other joining has. Those of nodes are for
// clients alone; those of members are for etcd.ServerName, and their common name begins with "member:", which no node's
// can. Which user a name has is in a record, and the etcd decides who of several writes it (holder). Both certificates
// last a year, begin a day before they are issued, as clocks differ, and are renewed when a third of the time is left,
// over a connection that the old one authenticates. Once the user is deleted, they are worth nothing for ever.
package join
