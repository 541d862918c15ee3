package packet

// arenaChunk is the size in bytes of an arena's chunks: the headers of two superpackets of 1,400-byte segments need
// some 8 KB, so one chunk is enough for a batch of most kinds.
const arenaChunk = 64 << 10

// An Arena stores the headers of all superpackets of one send batch. It belongs to one worker. The zero value is ready.
//
// It grows by chunks of its own, so that what it handed out stays where it is until Reset, which keeps the chunks:
// a worker's arena stops allocating once it has seen its largest batch.
type Arena struct {
	chunks [][]byte
	chunk  int // index of the chunk in use
	used   int // bytes of it handed out
}

// Reset takes back all that was handed out. The headers of earlier Segments are overwritten from now on.
func (a *Arena) Reset() { a.chunk, a.used = 0, 0 }

// take hands out n bytes that lie together. They hold what was there before.
func (a *Arena) take(n int) []byte {
	for a.chunk < len(a.chunks) {
		if c := a.chunks[a.chunk]; n <= len(c)-a.used {
			a.used += n
			return c[a.used-n : a.used : a.used]
		}
		a.chunk, a.used = a.chunk+1, 0
	}
	c := make([]byte, max(n, arenaChunk))
	a.chunks, a.used = append(a.chunks, c), n
	return c[:n:n]
}
