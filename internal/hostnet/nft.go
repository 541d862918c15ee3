package hostnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nftTimeout bounds a conversation with the kernel: one that knows no nftables answers a batch of messages with a
// single error, and waiting for the answers to the others would last for ever.
const nftTimeout = 10 * time.Second

// A firewall speaks nftables in the calling thread's namespace, all of a task through one socket. Whoever makes one
// closes it.
//
// A list of tables, chains or rules that changes while it is read may be wrong, as the library hides that from us.
// Then a transaction is made that was not needed and changes nothing, or one that is needed comes with the next Apply:
// transactions are written so that they leave the right state whatever was there. Sets are read by elements: what it
// missed would stay when a pod leaves.
type firewall struct {
	dial  func() (*nftables.Conn, error)
	extra []chain // for tests: chains that the kernel refuses

	open *nftables.Conn  // nil: none yet, or the last one is of no use any more
	sock *mdnetlink.Conn // of open
}

func newFirewall() *firewall {
	fw := &firewall{}
	fw.dial = func() (*nftables.Conn, error) {
		return nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
			fw.sock = c
			return nil
		}))
	}
	return fw
}

// ask has f talk to the kernel. After an error there may be answers left in the socket, so it is not used again.
func ask[T any](fw *firewall, f func(*nftables.Conn) (T, error)) (T, error) {
	var answer T
	if fw.open == nil {
		conn, err := fw.dial()
		if err != nil {
			return answer, err
		}
		fw.open = conn
	}
	if fw.sock != nil {
		if err := fw.sock.SetDeadline(time.Now().Add(nftTimeout)); err != nil {
			return answer, err
		}
	}
	answer, err := f(fw.open)
	if err != nil {
		fw.close()
	}
	return answer, err
}

// close gives the socket back, which nobody has to wait for: the kernel lets whoever closes one wait until what was
// removed from a set is freed (an RCU grace period), if it has not begun with that.
func (fw *firewall) close() {
	if conn := fw.open; conn != nil {
		go func() { _ = conn.CloseLasting() }()
	}
	fw.open, fw.sock = nil, nil
}

// tables lists which of Warren's tables exist. ErrNoNftables when the kernel has none at all.
func (fw *firewall) tables() (inet, bridge bool, err error) {
	ts, err := ask(fw, (*nftables.Conn).ListTables)
	if err != nil {
		return false, false, absent(err)
	}
	for _, t := range ts {
		if t.Name == tableName {
			inet = inet || t.Family == nftables.TableFamilyINet
			bridge = bridge || t.Family == nftables.TableFamilyBridge
		}
	}
	return inet, bridge, nil
}

// withInetTable runs f where there is table inet. It is no error when there is none, or no nftables.
func withInetTable(what string, f func(*firewall) error) error {
	fw := newFirewall()
	defer fw.close()
	inet, _, err := fw.tables()
	switch {
	case errors.Is(err, ErrNoNftables), err == nil && !inet:
		return nil
	case err != nil:
		return fmt.Errorf("%s: listing nftables tables: %w", what, err)
	}
	return f(fw)
}

// absent adds ErrNoNftables to the errors of a kernel that has no nf_tables at all: a single message is answered
// EINVAL, and without netfilter's netlink there is no such socket.
func absent(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return fmt.Errorf("%w: %w", ErrNoNftables, err)
	}
	return missing(err)
}

// missing adds ErrNoNftables to the errors of a kernel that lacks a part of nf_tables: the subsystem, a table family,
// or an expression or chain type (ENOENT).
func missing(err error) error {
	for _, e := range []error{unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.ENOENT} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", ErrNoNftables, err)
		}
	}
	return err
}

// apply makes table inet what spec says, and keeps the sets. What the kernel lacks goes to c.Lost.
//
// found are pods that were found in the kernel, links lists the names of the interfaces that exist.
func (fw *firewall) apply(spec Spec, direct directPlan, found []Pod, links linkNames, c *Changes) error {
	inet, bridge, err := fw.tables()
	if errors.Is(err, ErrNoNftables) {
		c.Lost = append(c.Lost, fmt.Sprintf("%v: pods' IPv6 sources and bridge mode's sources are unchecked (IPv4: only by "+
			"rp_filter), nothing is masqueraded, and translated connections (kube-proxy, host ports) fail", err))
		if spec.checksUnderlay() {
			c.Lost = append(c.Lost, fmt.Sprintf("%v: %s", err, spec.underlayChain(nil).lost))
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("listing tables: %w", err)
	}
	chains := append(spec.chains(spec.kernelHas()), fw.extra...)
	state, err := fw.read(inetTable(), inet)
	if err != nil {
		return err
	}
	hadChain, hasPods := state.chain(chainOutgoing) != nil, len(spec.Pods)+len(found) > 0
	wantChain := spec.Masquerade && (hasPods || hadChain && spec.attached(links))
	if wantChain {
		chains = append(chains, spec.masquerade().chain())
	}
	wrong := slices.DeleteFunc(slices.Clone(chains), state.has)
	stale := slices.DeleteFunc(slices.Clone(state.chains), func(c *nftables.Chain) bool {
		return slices.ContainsFunc(chains, func(w chain) bool { return w.name == c.Name })
	})
	// Before the chain that looks into them: what direct peers send must not be dropped for the time between.
	errs := []error{fw.syncDirect(spec, direct.devices, c)}
	if len(wrong) > 0 || len(stale) > 0 {
		err := fw.rebuild(state, wrong, stale, c)
		isOutgoing := func(c chain) bool { return c.name == chainOutgoing }
		if spec.Masquerade && (slices.ContainsFunc(wrong, isOutgoing) || hadChain && !wantChain) {
			errs = append(errs, spec.followPods(wantChain, links, c))
		}
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	wantInet, wantBridge := map[string][][]byte{}, map[string][][]byte{}
	for _, p := range slices.Concat(spec.Pods, found) {
		i, b := p.keys()
		for set, keys := range i {
			wantInet[set] = append(wantInet[set], keys...)
		}
		for set, keys := range b {
			wantBridge[set] = append(wantBridge[set], keys...)
		}
	}
	errs = append(errs, fw.repairSets(inetTable(), spec, wantInet, links, c), fw.syncNodes(spec, c))
	if bridge || len(wantBridge) > 0 {
		errs = append(errs, fw.applyBridge(bridge, c), fw.repairSets(bridgeTable(), spec, wantBridge, links, c))
	}
	return errors.Join(errs...)
}

// kernelHas lists the families of spec that the kernel has; apply of the whole Spec reports those that it has not.
func (s Spec) kernelHas() []family {
	return slices.DeleteFunc(kernelFamilies(), func(f family) bool { return !s.wants(f) })
}

// applyBridge makes table bridge what it should be; only nodes with pods in bridge mode have one.
func (fw *firewall) applyBridge(exists bool, c *Changes) error {
	state, err := fw.read(bridgeTable(), exists)
	if err != nil || state.has(bridgeChain()) {
		return err
	}
	return fw.rebuild(state, []chain{bridgeChain()}, nil, c)
}

// rebuild sets the wrong chains up anew and removes the stale ones, in one transaction. When the kernel refuses it,
// each chain gets its own, and those that are refused alone are what is lost.
func (fw *firewall) rebuild(state tableState, wrong []chain, stale []*nftables.Chain, c *Changes) error {
	all := fw.begin(state.table)
	all.removeChains(stale)
	for _, w := range wrong {
		all.putChain(w, state)
	}
	err := all.commit()
	if err == nil {
		for _, w := range wrong {
			c.add("nftables: chain %s set up", w.name)
		}
		for _, s := range stale {
			say := c.add
			if s.Name == chainOutgoing {
				say = c.tidy
			}
			say("nftables: chain %s removed", s.Name)
		}
		return nil
	}
	if !errors.Is(missing(err), ErrNoNftables) {
		return fmt.Errorf("setting up the nftables table: %w", err)
	}
	var errs []error
	for i := range stale {
		one := fw.begin(state.table)
		one.removeChains(stale[i : i+1])
		// The last pod's DEL may have removed the translation meanwhile.
		if err := one.commit(); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("removing the nftables chain %s: %w", stale[i].Name, err))
		}
	}
	for _, w := range wrong {
		one := fw.begin(state.table)
		one.putChain(w, state)
		err := one.commit()
		switch {
		case err == nil:
			c.add("nftables: chain %s set up", w.name)
		case w.lost != "" && errors.Is(missing(err), ErrNoNftables):
			c.Lost = append(c.Lost, fmt.Sprintf("the kernel refuses the nftables chain %s (%v): %s", w.name, err, w.lost))
		default:
			errs = append(errs, fmt.Errorf("setting up the nftables chain %s: %w", w.name, err))
		}
	}
	return errors.Join(errs...)
}

// remove deletes both tables; with keepSource the source checks and their sets stay.
func (fw *firewall) remove(keepSource bool) error {
	inet, bridge, err := fw.tables()
	if errors.Is(err, ErrNoNftables) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listing tables: %w", err)
	}
	if keepSource {
		if !inet {
			return nil
		}
		state, err := fw.read(inetTable(), true)
		if err != nil {
			return err
		}
		tx := fw.begin(state.table)
		tx.removeChains(slices.DeleteFunc(state.chains, func(c *nftables.Chain) bool { return c.Name == chainSource }))
		return tx.commit()
	}
	tx := fw.change(nil)
	for _, t := range existing(inet, bridge) {
		tx.add(func(c *nftables.Conn) { c.DelTable(t) })
	}
	return tx.commit()
}

// A tableState is what a table holds now: its chains, and the fingerprints of their rules.
type tableState struct {
	table  *nftables.Table
	chains []*nftables.Chain
	rules  map[string][]string
}

func (fw *firewall) read(t *nftables.Table, exists bool) (tableState, error) {
	s := tableState{table: t, rules: map[string][]string{}}
	if !exists {
		return s, nil
	}
	var err error
	if s.chains, err = fw.chains(t); err != nil {
		return s, err
	}
	for _, c := range s.chains {
		if s.rules[c.Name], err = fw.fingerprints(t, c.Name); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (fw *firewall) chains(t *nftables.Table) ([]*nftables.Chain, error) {
	cs, err := ask(fw, func(c *nftables.Conn) ([]*nftables.Chain, error) { return c.ListChainsOfTableFamily(t.Family) })
	if err != nil {
		return nil, fmt.Errorf("listing nftables chains: %w", absent(err))
	}
	return slices.DeleteFunc(cs, func(c *nftables.Chain) bool { return c.Table.Name != t.Name }), nil
}

// fingerprints reads the comments of a chain's rules; nil when the chain has none or does not exist.
func (fw *firewall) fingerprints(t *nftables.Table, chain string) ([]string, error) {
	rules, err := fw.rules(t, chain)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing the rules of nftables chain %s: %w", chain, err)
	}
	var marks []string
	for _, r := range rules {
		comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		marks = append(marks, comment)
	}
	return marks, nil
}

func (fw *firewall) rules(t *nftables.Table, chain string) ([]*nftables.Rule, error) {
	return ask(fw, func(c *nftables.Conn) ([]*nftables.Rule, error) {
		return c.GetRules(t, &nftables.Chain{Table: t, Name: chain})
	})
}

// has reports whether the table holds the chain as it should be.
func (s tableState) has(w chain) bool {
	c := s.chain(w.name)
	return c != nil && w.sameHook(c) && slices.Equal(s.rules[w.name], w.fingerprints())
}

func (s tableState) chain(name string) *nftables.Chain {
	if i := slices.IndexFunc(s.chains, func(c *nftables.Chain) bool { return c.Name == name }); i >= 0 {
		return s.chains[i]
	}
	return nil
}

func (w chain) sameHook(c *nftables.Chain) bool {
	return c.Type == w.kind && c.Hooknum != nil && *c.Hooknum == w.hook && c.Priority != nil && *c.Priority == w.priority
}

func (w chain) fingerprints() []string {
	marks := make([]string, len(w.rules))
	for i, r := range w.rules {
		marks[i] = r.comment()
	}
	return marks
}

// comment is a rule's comment in the kernel: why it is there, and a hash of what it does, by which Apply sees that it
// is still the one that this version of Warren would write.
func (r chainRule) comment() string {
	h := fnv.New32a()
	for _, e := range r.exprs {
		// The types are plain structs; what can't be marshalled would show as a rule that never settles, in every test.
		text, err := json.Marshal(e)
		if set, ok := e.(anonSet); ok {
			text, err = json.Marshal(struct {
				Key    string
				Elems  [][]byte
				Invert bool
			}{set.key.Name, set.elems, set.invert})
		}
		fmt.Fprintf(h, "%T %s %v;", e, text, err)
	}
	return fmt.Sprintf("%s #%08x", r.why, h.Sum32())
}

// A txn is a transaction on one table: all of it happens at commit, or nothing.
type txn struct {
	fw    *firewall
	table *nftables.Table
	setID uint32 // the library would count in a global variable, without a lock
	steps []func(*nftables.Conn) error
}

// change starts a transaction on a table that exists.
func (fw *firewall) change(t *nftables.Table) *txn { return &txn{fw: fw, table: t} }

// begin starts a transaction that makes the table, its counter and its sets when they are missing.
func (fw *firewall) begin(t *nftables.Table) *txn {
	tx := fw.change(t)
	tx.add(func(c *nftables.Conn) {
		c.AddTable(t)
		c.AddObj(&nftables.NamedObj{Table: t, Name: counterSpoofed, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
	})
	sets := podSets(t)
	if t.Family == nftables.TableFamilyINet {
		sets = append(sets, nodeSets(t)...)
	}
	for _, s := range sets {
		tx.addSet(s, nil)
	}
	return tx
}

func (tx *txn) add(step func(*nftables.Conn)) {
	tx.steps = append(tx.steps, func(c *nftables.Conn) error {
		step(c)
		return nil
	})
}

func (tx *txn) addSet(s *nftables.Set, elems []nftables.SetElement) {
	tx.setID++
	s.ID = tx.setID
	tx.steps = append(tx.steps, func(c *nftables.Conn) error { return c.AddSet(s, elems) })
}

// putChain makes the chain hold exactly its rules, whether it exists or not; one on another hook is made anew.
func (tx *txn) putChain(w chain, state tableState) {
	if old := state.chain(w.name); old != nil && !w.sameHook(old) {
		tx.removeChains([]*nftables.Chain{old})
	}
	for _, s := range w.sets {
		tx.addSet(s, nil)
	}
	policy := nftables.ChainPolicyAccept
	c := &nftables.Chain{
		Table: tx.table, Name: w.name, Type: w.kind, Hooknum: &w.hook, Priority: &w.priority, Policy: &policy,
	}
	tx.add(func(conn *nftables.Conn) {
		conn.AddChain(c)
		conn.FlushChain(c)
	})
	for _, r := range w.rules {
		tx.addRule(c, r)
	}
}

func (tx *txn) addRule(c *nftables.Chain, r chainRule) {
	rule := &nftables.Rule{
		Table: tx.table, Chain: c, UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment()),
	}
	for _, e := range r.exprs {
		switch e := e.(type) {
		case expr.Any:
			rule.Exprs = append(rule.Exprs, e)
		case anonSet:
			set := &nftables.Set{Table: tx.table, Name: "__set%d", Anonymous: true, Constant: true, KeyType: e.key}
			elems := make([]nftables.SetElement, len(e.elems))
			for i, key := range e.elems {
				elems[i].Key = key
			}
			tx.addSet(set, elems)
			rule.Exprs = append(rule.Exprs, &expr.Lookup{
				SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: e.invert,
			})
		}
	}
	tx.add(func(conn *nftables.Conn) { conn.AddRule(rule) })
}

func (tx *txn) removeChains(cs []*nftables.Chain) {
	for _, c := range cs {
		tx.add(func(conn *nftables.Conn) { conn.FlushChain(c) })
	}
	for _, c := range cs {
		tx.add(func(conn *nftables.Conn) { conn.DelChain(c) })
		if c.Name != chainUnderlay {
			continue
		}
		for _, s := range directSets() {
			tx.addSet(s, nil) // nobody can delete what is not there
			tx.add(func(conn *nftables.Conn) { conn.DelSet(s) })
		}
	}
}

func (tx *txn) commit() error {
	_, err := ask(tx.fw, func(c *nftables.Conn) (struct{}, error) {
		for _, step := range tx.steps {
			if err := step(c); err != nil {
				return struct{}{}, err
			}
		}
		return struct{}{}, c.Flush()
	})
	return err
}
