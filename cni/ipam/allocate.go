package ipam

import (
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/plugins/pkg/ip"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
)

// ErrTaken is the sentinel for an address that was asked for and belongs to somebody else.
var ErrTaken = errors.New("the address is in use")

// Sentinels for addresses that were asked for and can't be given, whatever is free.
var (
	ErrUnserved   = errors.New("no range of this network gives it")
	ErrSameRanges = errors.New("they come from the same ranges, of which a pod gets one address")
)

// FullError says that a range set has no free address.
type FullError struct {
	Set        string // the ranges, as the user knows them
	Total      string // addresses that the ranges hold for pods
	Unreadable int    // of the addresses in use, those whose file does not name an owner
	Others     int    // of the addresses in use, those that other networks have
}

// Error implements error.
func (e *FullError) Error() string {
	msg := fmt.Sprintf("all %s addresses of %s are in use", e.Total, e.Set)
	if e.Unreadable > 0 {
		msg += fmt.Sprintf(" (%d of them by an unreadable address file, which the DEL of its pod frees, or a GC)",
			e.Unreadable)
	}
	if e.Others > 0 {
		msg += fmt.Sprintf(" (%d of them by other networks)", e.Others)
	}
	return msg
}

// Request asks for one address of each range set, for one interface of a container.
type Request struct {
	ContainerID string
	IfName      string
	Sets        []allocator.RangeSet // canonical (RangeSet.Canonicalize), one family each
	Wanted      []netip.Addr         // addresses that must be the ones given, at most one per range set

	// Announce, if there is one, learns what will be given before anything is reserved, and may refuse. Nobody else is
	// given these addresses meanwhile. Who writes them down there can free them later without looking at every address.
	Announce func([]Allocation) error
	// HoldsNone says that the caller knows the interface to hold nothing; else every address in use is looked at.
	HoldsNone bool
}

// Allocation is an address given.
type Allocation struct {
	Addr    netip.Addr
	Subnet  netip.Prefix // of the range
	Gateway netip.Addr   // of the range
}

// Allocate reserves what req asks for: all of it, or nothing. Errors: *FullError, ErrTaken, ErrBusy, and those of the
// file system.
func (s *Store) Allocate(req Request) (given []Allocation, err error) {
	if err := s.Lock(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Unlock()) }()
	wanted, err := assign(req)
	if err != nil {
		return nil, err
	}
	if !req.HoldsNone {
		if has := s.GetByID(req.ContainerID, req.IfName); len(has) > 0 {
			return nil, fmt.Errorf("interface %s of container %s has %v already: delete it first (CNI DEL)",
				req.IfName, req.ContainerID, has)
		}
	}
	for i := range req.Sets {
		a, err := s.choose(req, i, wanted[i], given)
		if err != nil {
			return nil, err
		}
		given = append(given, a)
	}
	if req.Announce != nil {
		if err := req.Announce(given); err != nil {
			return nil, err
		}
	}
	for i, a := range given {
		ok, err := s.Reserve(req.ContainerID, req.IfName, a.Addr.AsSlice(), strconv.Itoa(i))
		if err == nil && !ok {
			err = fmt.Errorf("%s was free a moment ago: %w, by somebody who does not ask for the lock", a.Addr, ErrTaken)
		}
		if err != nil {
			return nil, errors.Join(err, s.Free(addrsOf(given[:i])...))
		}
	}
	return given, nil
}

func addrsOf(given []Allocation) []netip.Addr {
	addrs := make([]netip.Addr, len(given))
	for i, a := range given {
		addrs[i] = a.Addr
	}
	return addrs
}

// choose finds a free address of a range set, apart from those that were chosen already.
func (s *Store) choose(req Request, i int, wanted netip.Addr, chosen []Allocation) (Allocation, error) {
	set := &req.Sets[i]
	view := &held{Store: s, chosen: addrsOf(chosen)}
	conf, err := allocator.NewIPAllocator(set, view, i).Get(req.ContainerID, req.IfName, wanted.AsSlice())
	switch {
	case err == nil:
		return allocation(set, conf.Address.IP, conf.Gateway)
	case view.failure != nil:
		return Allocation{}, view.failure
	case wanted.IsValid():
		return Allocation{}, fmt.Errorf("%s was asked for: %w %s", wanted, ErrTaken, s.heldBy(wanted))
	}
	return Allocation{}, s.full(set)
}

// held is the store as the allocator sees it during one Allocate: its lock is held for all range sets together, the
// interface is known to hold nothing, what is reserved is only chosen, and a failure is kept apart from "nothing free",
// for which the allocator has no sentinel.
type held struct {
	*Store
	chosen  []netip.Addr
	failure error
}

func (*held) Lock() error                  { return nil }
func (*held) Unlock() error                { return nil }
func (*held) GetByID(_, _ string) []net.IP { return nil }
func (h *held) Reserve(_, _ string, ip net.IP, _ string) (bool, error) {
	addr, err := addrOf(ip)
	if err != nil || slices.Contains(h.chosen, addr) {
		h.failure = errors.Join(h.failure, err)
		return false, err
	}
	taken, err := h.taken(addr)
	h.failure = errors.Join(h.failure, err)
	return !taken && err == nil, err
}

// assign finds the range set of each address that was asked for.
func assign(req Request) ([]netip.Addr, error) {
	wanted := make([]netip.Addr, len(req.Sets))
	for _, addr := range req.Wanted {
		i := indexOf(req.Sets, addr)
		switch {
		case i < 0:
			return nil, fmt.Errorf("%s was asked for, but %w (%s)", addr, ErrUnserved, describe(req.Sets))
		case wanted[i].IsValid():
			return nil, fmt.Errorf("%s and %s were asked for, but %w", wanted[i], addr, ErrSameRanges)
		}
		wanted[i] = addr
	}
	return wanted, nil
}

func indexOf(sets []allocator.RangeSet, addr netip.Addr) int {
	for i := range sets {
		if r, _ := sets[i].RangeFor(addr.AsSlice()); r != nil && !r.Gateway.Equal(addr.AsSlice()) {
			return i
		}
	}
	return -1
}

func allocation(set *allocator.RangeSet, addr, gateway net.IP) (Allocation, error) {
	r, err := set.RangeFor(addr)
	if err != nil {
		return Allocation{}, err
	}
	a, ok := netip.AddrFromSlice(addr)
	g, gok := netip.AddrFromSlice(gateway)
	base, bok := netip.AddrFromSlice(r.Subnet.IP)
	ones, _ := r.Subnet.Mask.Size()
	if !ok || !gok || !bok {
		return Allocation{}, fmt.Errorf("range %s gave %s with gateway %s", r, addr, gateway)
	}
	return Allocation{Addr: a.Unmap(), Gateway: g.Unmap(), Subnet: netip.PrefixFrom(base.Unmap(), ones)}, nil
}

// full describes a range set that has nothing free.
func (s *Store) full(set *allocator.RangeSet) error {
	entries, err := s.InUse()
	if err != nil {
		return err
	}
	if e := Full(*set, entries); e != nil {
		return e
	}
	// What is left was freed meanwhile, by somebody who does not ask for the lock.
	return &FullError{Set: describe([]allocator.RangeSet{*set}), Total: Capacity(*set).String()}
}

// Full returns a *FullError when the addresses in use, as InUse lists them, leave none of the set free; else nil.
func Full(set allocator.RangeSet, inUse []Entry) error {
	count := int64(0)
	e := &FullError{Set: describe([]allocator.RangeSet{set})}
	for _, entry := range inUse {
		if set.Contains(entry.Addr.AsSlice()) {
			count++
			if entry.Err != nil {
				e.Unreadable++
			}
			if entry.Other {
				e.Others++
			}
		}
	}
	total := Capacity(set)
	if total.Cmp(big.NewInt(count)) > 0 {
		return nil
	}
	e.Total = total.String()
	return e
}

// Capacity is the number of addresses that the ranges of a set hold for pods.
func Capacity(set allocator.RangeSet) *big.Int {
	total := new(big.Int)
	for i := range set {
		r := &set[i]
		n := new(big.Int).SetBytes(r.RangeEnd)
		n.Sub(n, new(big.Int).SetBytes(r.RangeStart))
		total.Add(total, n.Add(n, big.NewInt(1)))
		if ip.Cmp(r.Gateway, r.RangeStart) >= 0 && ip.Cmp(r.Gateway, r.RangeEnd) <= 0 {
			total.Sub(total, big.NewInt(1))
		}
	}
	return total
}

// describe names ranges by subnet, and by their ends where they do not fill it.
func describe(sets []allocator.RangeSet) string {
	var names []string
	for _, set := range sets {
		for i := range set {
			r := &set[i]
			whole := allocator.Range{Subnet: r.Subnet, Gateway: r.Gateway}
			name := (*net.IPNet)(&r.Subnet).String()
			if err := whole.Canonicalize(); err != nil || !startsAt(r, whole.RangeStart) || !r.RangeEnd.Equal(whole.RangeEnd) {
				name = r.String()
			}
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// startsAt reports whether the range leaves out nothing but the gateway from first on.
func startsAt(r *allocator.Range, first net.IP) bool {
	return r.RangeStart.Equal(first) || (r.Gateway.Equal(first) && r.RangeStart.Equal(ip.NextIP(first)))
}
