package wireguard

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"testing"
)

// pair is two connected nodes' sessions: what the first encrypts, the second decrypts.
func pair(t testing.TB) (from, to *Session) {
	s := newSim(t, 2)
	s.peers(nil)
	s.connect(s.nodes[0], s.nodes[1])
	return s.nodes[0].of(s.nodes[1]).Current(), s.nodes[1].of(s.nodes[0]).Current()
}

func TestSealInPlaceAndBeside(t *testing.T) {
	from, to := pair(t)
	var nonce Nonce
	for _, n := range []int{0, 1, 15, 16, 17, 1280, 1420, 1436, 9000} {
		packet := make([]byte, n)
		for k := range packet {
			packet[k] = byte(rand.Uint32())
		}
		first, _ := from.Reserve(2)
		beside := from.Seal(nil, &nonce, from.head(first), packet)
		buf := make([]byte, 5+HeaderLen+n, 5+Overhead+n)
		copy(buf[5+HeaderLen:], packet)
		inPlace := from.Seal(buf[:5], &nonce, from.head(first), buf[5+HeaderLen:])[5:]
		if !bytes.Equal(beside, inPlace) {
			t.Fatalf("%d bytes: sealed in place and beside differ", n)
		}
		if len(beside) != n+Overhead || !IsData(beside) || Receiver(beside) != to.local {
			t.Fatalf("%d bytes: a message of %d bytes for %x", n, len(beside), Receiver(beside))
		}
		got, opened := to.Open(beside, &nonce)
		if opened != Fresh || !bytes.Equal(got, packet) {
			t.Fatalf("%d bytes: %v", n, opened)
		}
		if _, opened := to.Open(inPlace, &nonce); opened != Replayed {
			t.Fatalf("%d bytes: a second time: %v, want Replayed", n, opened)
		}
	}
}

func TestWindow(t *testing.T) {
	from, to := pair(t)
	var nonce Nonce
	first, _ := from.Reserve(20_000)
	open := func(k uint64) Opened {
		_, o := to.Open(from.Seal(nil, &nonce, from.head(first+k), nil), &nonce)
		return o
	}
	for _, step := range []struct {
		counter uint64
		want    Opened
	}{{5, Fresh}, {3, Fresh}, {5, Replayed}, {10_000, Fresh}, {4, Replayed}, {9_000, Fresh}, {1_000, Replayed},
		{9_000, Replayed}, {10_001, Fresh}} {
		if got := open(step.counter); got != step.want {
			t.Errorf("counter %d: %d, want %d", step.counter, got, step.want)
		}
	}
}

func TestSealAndOpenDoNotAllocate(t *testing.T) {
	from, to := pair(t)
	nonce, buf, packet := new(Nonce), make([]byte, 0, 2000), make([]byte, 1420)
	if n := testing.AllocsPerRun(100, func() {
		counter, _ := from.Reserve(1)
		msg := from.Seal(buf, nonce, from.head(counter), packet)
		if _, o := to.Open(msg, nonce); o != Fresh {
			t.Fatal(o)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Several workers may use a session at once: each counter is used once, each message counts once.
func TestSessionConcurrently(t *testing.T) {
	from, to := pair(t)
	const workers, each = 4, 500
	var wg sync.WaitGroup
	msgs := make(chan []byte, workers*each)
	for range workers {
		wg.Go(func() {
			var nonce Nonce
			for k := range each {
				n := uint64(1 + k%3)
				first, _ := from.Reserve(int(n))
				msgs <- from.Seal(nil, &nonce, from.head(first+n-1), []byte("x"))
			}
		})
	}
	var mu sync.Mutex
	fresh := 0
	for range workers {
		wg.Go(func() {
			var nonce Nonce
			for range each {
				if _, o := to.Open(<-msgs, &nonce); o == Fresh {
					mu.Lock()
					fresh++
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if fresh != workers*each {
		t.Errorf("%d messages of %d are fresh", fresh, workers*each)
	}
}

func TestPaddedLen(t *testing.T) {
	for _, tt := range []struct{ n, mtu, want int }{
		{0, 1420, 0}, {1, 1420, 16}, {16, 1420, 16}, {17, 1420, 32}, {1408, 1420, 1408}, {1409, 1420, 1420},
		{1420, 1420, 1420}, {1500, 1420, 1500},
	} {
		if got := PaddedLen(tt.n, tt.mtu); got != tt.want {
			t.Errorf("PaddedLen(%d, %d) = %d, want %d", tt.n, tt.mtu, got, tt.want)
		}
	}
}

func TestIndexTable(t *testing.T) {
	for _, lanes := range []int{1, 3, 16, 256} {
		x := indexTable{lanes: lanes}
		seen := map[uint32]bool{}
		for k := range 3000 {
			index, ok := x.reserve(k)
			if !ok || seen[index] {
				t.Fatalf("lanes %d: index %x given out, %v, twice %v", lanes, index, ok, seen[index])
			}
			seen[index] = true // by somebody who has it now
			if got := int(index&0xff) % lanes; got != k%lanes {
				t.Fatalf("index %x leads to lane %d of %d, want %d", index, got, lanes, k%lanes)
			}
			if x.lookup(index) != nil || index>>28 == 0 {
				t.Fatalf("a reserved index leads somewhere, or may be 0: %x", index)
			}
			s := &Session{local: index}
			x.set(s)
			if x.lookup(index) != s || x.lookup(index^1<<31) != nil {
				t.Fatal("lookup")
			}
			if k%2 == 0 {
				x.release(index)
				delete(seen, index)
				if x.lookup(index) != nil {
					t.Fatal("released, and found")
				}
			}
		}
	}
}

func TestIndexTableIsBounded(t *testing.T) {
	x := indexTable{lanes: 16}
	for range maxSlots {
		if _, ok := x.reserve(0); !ok {
			t.Fatal("full too early")
		}
	}
	if _, ok := x.reserve(0); ok {
		t.Error("more indexes than slots")
	}
}
