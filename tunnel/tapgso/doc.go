// Package tapgso sends TCP superpackets to peers uncut: it adds one outer header and hands them to the kernel through
// a TAP device, as UDP tunnel GSO (Linux 6.17). Whoever sends the last hop's Ethernet frames makes the segments: the
// network device, or the kernel in front of it. Nothing of Warren's touches a segment.
//
// # How a superpacket goes
//
// One writev: a virtio-net header of 24 bytes that says where the outer and the inner headers are, an Ethernet header
// addressed to the TAP itself, the outer IP and UDP header from the node's own address and the lane's UDP port to the
// peer, the encapsulation, and the inner packet as it was read from the TUN, checksum still partial. To the kernel that
// is a packet which came in by the TAP and is for somebody else, so it forwards it to the underlay. ICMP errors about
// it come to the lane's socket, as they would had the socket sent it.
//
// # What it asks of the kernel
//
//   - A driver for TAP devices that takes TUN_F_UDP_TUNNEL_GSO: Linux 6.17. Open says ErrUnsupported otherwise.
//   - That it takes the superpackets too. Open writes one of each kind (IPv4 and IPv6, inner and outer) to the device
//     while it is down, which goes nowhere, and says ErrRefused when the kernel does.
//   - Forwarding from the TAP, which hostnet.SetUpTunnelGSO turns on for this device alone, and that it takes a packet
//     from one of the node's own addresses: accept_local, and no strict reverse path filter of all interfaces
//     (net.ipv4.conf.all.rp_filter 1).
//   - That the host's firewall forwards such packets. No call tells: the packet is gone, the write said yes. Whoever
//     uses this sends a Probe now and then, itself a superpacket, and counts its arrival behind the firewall (hostnet).
//   - That the device towards the peer cuts tunnelled packets. Where it does not, the kernel cuts them, and on a veth
//     that made one connection 0.6 of the rate of UDP_SEGMENT: receivers do not join (UDP_GRO) what was encapsulated
//     on the same machine.
//
// Only superpackets go this way. A lone packet would take another way through the kernel than it does in a socket, for
// nothing.
//
// # Failure
//
// SendWhole says no to what does not fit and to what the kernel refuses, and the caller cuts it as if this package were
// not there. After a few refusals in a row, or when the device is gone, it says no to everything; Broken says why.
//
// A yes says nothing of what follows. No socket buffer bounds what is under way: packets wait in the queueing
// discipline of the device towards the peer, and what is dropped there that device counts.
//
// # The device
//
// It has no addresses (but a dummy one, where rp_filter asks for it), no ARP and no multicast, a fixed Ethernet address
// (udev would give it another one), and the alias of Warren's devices. It is not persistent: it goes with the process,
// however that ends.
//
// # Ownership and concurrency
//
// Open, Close, Look and Probe are for one goroutine at a time; nobody may be in SendWhole, Look or Probe when the
// device is closed. Each Queue belongs to one worker. Broken is for everybody. A Device belongs to the network
// namespace in which Open ran.
package tapgso
