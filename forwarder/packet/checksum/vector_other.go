//go:build !amd64

package checksum

// minVector matters only where hasVector may be true.
const minVector = 0

// hasVector is false where there is no vector code. On arm64 the scalar code is a chain of add-with-carry of 64 bits.
func hasVector() bool { return false }

func vectorSum(initial uint16, b []byte) uint16 { return scalarSum(initial, b) }
