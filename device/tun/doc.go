// Package tun is the kernel's TUN device as a device.Queue: multi-queue, persistent, with virtio-net headers, so that
// one read or write carries a superpacket of up to 64 KiB (TSO, USO).
//
// # The device outlives the process
//
// Open makes the device without persistence, marks it with an interface alias (Alias), and only then makes it
// persistent. So a process that is killed at any moment leaves either nothing, or a device that the next Open
// recognises as Warren's and takes over with its addresses and routes. A device of the same name without that mark
// belongs to somebody else: Open refuses it (ErrNotOurs) and Remove never deletes it.
//
// Open does not bring the link up and sets neither addresses nor addr_gen_mode.
//
// # Offloads
//
// What the kernel delivers in superpackets is negotiated with TUNSETOFFLOAD, step by step from everything down to
// nothing; what it takes is tried with real writes, because kernels have shipped that refuse the superpackets they
// should take (the checks in virtio_net_hdr_to_skb were changed several times, also in stable releases). The trial must
// not inject traffic: it writes to a second, temporary TUN device that is never brought up. The kernel checks the
// virtio-net header first (EINVAL) and the link state after it (EIO, since Linux 5.1), so EIO is the answer of a kernel
// that would have taken the packet. Should a kernel refuse later what passed the trial, Write returns
// device.ErrNotTaken for the caller to write segments, and after a few refusals in a row the type stays off (Takes).
// EIO never switches anything off: it only says that the link is down.
// With Config.Checksum off there are no superpackets either way: every segment's checksum is left to the other side.
//
// # Metadata
//
// Read passes on what the kernel said, for the caller to check. An offload type that Warren does not know (UFO, or one
// of a newer kernel) becomes device.GSOUnknown. Write works the header length out from the packet's own headers: the
// kernel's hdr_len is wrong for forwarded packets. TCP's CWR flag and the ECN bit of the virtio-net header stand for
// each other, so Meta needs no field for them.
//
// # Why not wireguard-go's tun
//
// golang.zx2c4.com/wireguard/tun creates neither multi-queue (IFF_MULTI_QUEUE) nor persistent devices, negotiates no
// TSO_ECN, sets virtio-net headers without reading back what an attached device really uses, and its reads split a
// superpacket into segments at once, which is the work that Warren avoids.
//
// # Ownership and concurrency
//
// Open, Device.Close and Device.Remove are for one goroutine. Each Queue belongs to one worker; Queue.Close and
// Device.Close may be called beside its Read and Write, and Offloads by anybody. A Device works on the network
// namespace in which Open ran, also when the calling thread has moved to another one.
package tun
