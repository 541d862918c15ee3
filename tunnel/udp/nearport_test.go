package udp

import "testing"

// TestNearPort: a lane's port has its remainder, is close to the free one, and never the other tunnel's.
func TestNearPort(t *testing.T) {
	const reserved = 51820
	for free := 32768; free <= 65535; free++ {
		for _, size := range []int{2, 16, 48} {
			for lane := range size {
				port := int(nearPort(uint16(free), size, lane, reserved))
				if port%size != lane || port == reserved || port < free-2*size || port > free+size {
					t.Fatalf("port %d of lane %d of %d, near %d", port, lane, size, free)
				}
			}
		}
	}
}
