package upstream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/upstream/pins"
)

// Pins keeps what is pinned of upstreams, for all processes.
type Pins interface {
	LoadPins(ctx context.Context, upstream string) ([]byte, error)
	// ChangePins replaces what is pinned by what change makes of it, and records the
	// notes, in one step. Unchanged bytes change nothing.
	ChangePins(ctx context.Context, upstream string, change func(old []byte) (now []byte, notes []pins.Note, err error)) error
}

// readPins reads what is stored; nothing pins nothing.
func readPins(raw []byte) (r pins.Record, err error) {
	if raw == nil {
		return r, nil
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return pins.Record{}, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return r, nil
}

// errDamaged says that what is stored are no pins. Only a person can replace them: whoever has
// damaged them may have changed the server, too.
var errDamaged = errors.New("what is pinned is damaged")

// offering is what a catalogue holds for a model, and from whom.
func offering(c Catalogue, server string) pins.Offer {
	o := pins.Offer{Server: server}
	if at, ok := wire.At(c.Server, "instructions"); ok {
		o.Instructions, _ = wire.String(at.Value)
	}
	for _, t := range c.Tools {
		o.Tools = append(o.Tools, pins.Item{Name: t.Name, Raw: t.Raw})
	}
	for _, p := range c.Prompts {
		o.Prompts = append(o.Prompts, pins.Item{Name: p.Key, Raw: p.Raw})
	}
	for _, r := range slices.Concat(c.Resources, c.Templates) {
		o.Resources = append(o.Resources, pins.Item{Name: r.Key, Raw: r.Raw})
	}
	return o
}

// Pinned is what is pinned of an upstream, and what has changed.
type Pinned struct {
	Mode    string // of its config: hold, block or warn
	Record  pins.Record
	Changes []pins.Change
	Found   []pins.Finding // in what is offered now
	// Damaged says why what is pinned cannot be read; nil if it can. Then all that is offered
	// is in Changes.
	Damaged error
}

// hold compares a catalogue with what is pinned, and makes of it what the host may see.
// What is new is pinned and recorded if pin says so, which is when it comes from the
// server itself. list is what the catalogue was read from. Its error is that of ctx: what
// could not be compared any more is nothing to show or to tell of.
func (u *Upstream) hold(ctx context.Context, c Catalogue, list []byte, pin bool) (Catalogue, error) {
	if u.o.Pins == nil {
		return c, nil
	}
	raw, err := u.o.Pins.LoadPins(ctx, u.Name())
	if err == nil && !pin && pins.Settles(raw, list) {
		u.mu.Lock()
		u.pinned, u.pinnedRaw, u.unpinned = Pinned{}, raw, false
		u.mu.Unlock()
		return c, nil
	}
	var r pins.Record
	var damaged error
	var o pins.Offer
	if err == nil {
		r, damaged = readPins(raw)
		var program pins.Program
		o, program, err = u.offers(c, r, pin)
		if err == nil && damaged == nil && pin && (r.Program != program || !pins.Settles(raw, list) || !r.Knows(o, r.Compare(o, u.strict()))) {
			r, raw, err = u.pin(ctx, raw, o, program, list)
		}
	}
	if err != nil { // what was looked at before cannot be told from what is new
		if ctx.Err() != nil {
			return c, context.Cause(ctx)
		}
		u.o.Log.Error().Err(err).Msg("what is pinned of the upstream cannot be read; its tools are withheld until it can")
		u.set(func() { u.unpinned = true })
		return withholdAll(c, nil, fmt.Sprintf("what is pinned of this upstream cannot be read: %v", err)), nil
	}
	if damaged != nil {
		return u.anew(c, o, raw, damaged, pin), nil
	}
	changes := r.Compare(o, u.strict())
	u.mu.Lock()
	u.pinned, u.pinnedRaw, u.pinnable = Pinned{Record: r, Changes: changes}, raw, o
	u.unpinned = false
	if pin {
		u.met = o.Server
	}
	u.mu.Unlock()
	c = apply(c, u.o.Config.Pins, r.Instructions, changes, u.differs())
	if u.o.Config.Pins == "warn" || !r.Known() {
		return c, nil
	}
	return bounded(c, r), nil
}

// anew withholds all that is offered until a person has accepted it in place of pins that are
// damaged.
func (u *Upstream) anew(c Catalogue, o pins.Offer, raw []byte, damaged error, pin bool) Catalogue {
	u.mu.Lock()
	if u.pinned.Damaged == nil { // else it was told
		u.o.Log.Error().Err(damaged).Msg("all of the upstream is withheld until a person has accepted it anew; see: " + u.differs())
	}
	u.pinned, u.pinnedRaw, u.pinnable = Pinned{Changes: o.All("what was pinned is damaged"), Damaged: damaged}, raw, o
	u.unpinned = false
	if pin {
		u.met = o.Server
	}
	u.mu.Unlock()
	return withholdAll(c, nil, damaged.Error()+"; see: "+u.differs())
}

// differs is the command that shows what has changed.
func (u *Upstream) differs() string { return u.o.Command + " pins diff " + u.Name() }

// strict reports whether an addition is a change.
func (u *Upstream) strict() bool { return u.o.Config.Pins == "block" }

// bounded leaves out what there was no room to pin: it could change unseen.
func bounded(c Catalogue, r pins.Record) Catalogue {
	c.Withheld = slices.Clone(c.Withheld)
	left := func(kind pins.Kind, name string) bool {
		out := !r.Pins(kind, name)
		if out {
			c.Withheld = append(c.Withheld, Withheld{Name: wire.Printable(name, shown), Reason: "there is no room to pin it"})
		}
		return out
	}
	c.Tools = slices.DeleteFunc(slices.Clone(c.Tools), func(t Tool) bool { return left(pins.Tool, t.Name) })
	c.Prompts = slices.DeleteFunc(slices.Clone(c.Prompts), func(p Item) bool { return left(pins.Prompt, p.Key) })
	return c
}

// offers adds who the server is. A program is read again only if it looks different.
func (u *Upstream) offers(c Catalogue, r pins.Record, look bool) (pins.Offer, pins.Program, error) {
	cfg := u.o.Config
	if cfg.Command == "" {
		return offering(c, place(cfg.URL, u.o.Resolver)), pins.Program{}, nil
	}
	if !look {
		return offering(c, u.running(r.Server)), r.Program, nil
	}
	p, err := program(cfg, u.o.Resolver, r.Program)
	if err != nil {
		return pins.Offer{}, p, err
	}
	return offering(c, p.Path+" sha256:"+p.SHA256), p, nil
}

// running is who the child is, as it was compared when it was started; otherwise, while
// none runs, it is taken for the one that is pinned.
func (u *Upstream) running(pinned string) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.met != "" {
		return u.met
	}
	return pinned
}

// place is where a server is, without what may be secret: references are resolved, and
// a path stands as its hash.
func place(text string, r *config.Resolver) string {
	resolved, err := r.URL(text)
	if err != nil {
		return text // nothing can be connected either
	}
	u, err := url.Parse(resolved)
	if err != nil {
		return text
	}
	sum := sha256.Sum256([]byte(u.EscapedPath()))
	return u.Scheme + "://" + u.Host + " path sha256:" + hex.EncodeToString(sum[:8])
}

func program(cfg config.Upstream, r *config.Resolver, known pins.Program) (pins.Program, error) {
	path, err := Program(cfg, r)
	if err != nil {
		return known, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return known, err
	}
	// The time of the last change of the file itself, which nobody can set; where the
	// system has none it is read each time.
	now := pins.Program{Path: path, Size: info.Size(), Time: inodeTime(info), SHA256: known.SHA256}
	if known.Path == now.Path && known.Size == now.Size && known.Time.Equal(now.Time) && !now.Time.IsZero() && known.SHA256 != "" {
		return now, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return known, err
	}
	defer func() { _ = f.Close() }() // only read from
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return known, err
	}
	now.SHA256 = hex.EncodeToString(h.Sum(nil))
	return now, nil
}

// pin pins what is new and tells of what has changed, each once. known is what was pinned
// a moment ago.
func (u *Upstream) pin(ctx context.Context, known []byte, o pins.Offer, program pins.Program, list []byte) (r pins.Record, now []byte, err error) {
	var news []pins.Change
	var found []string
	wrote := false
	scanned := map[string][]pins.Finding{}
	change := func(old []byte) (_ []byte, notes []pins.Note, err error) {
		now, news, found, wrote = old, nil, nil, false
		if r, err = readPins(old); err != nil {
			return nil, nil, err
		}
		note := func(s pins.Status, name, text string, raw []byte) {
			notes = append(notes, pins.Note{Status: s, Name: wire.Printable(name, shown), Text: text, Digest: sha256.Sum256(raw)})
		}
		first := !r.Known()
		var added []pins.Change
		if first || !u.strict() {
			added = r.Learn(o, time.Now().UTC().Truncate(time.Second))
		}
		if first {
			whole, err := json.Marshal([]any{o.Server, o.Instructions, r.Tools, r.Prompts})
			if err != nil {
				return nil, nil, err
			}
			note(pins.Pinned, "", fmt.Sprintf("%d tools and %d prompts were seen first", len(r.Tools), len(r.Prompts)), whole)
		} else {
			for i, c := range added {
				if i == maxNoted {
					note(pins.Pinned, "", fmt.Sprintf("%d more are new", len(added)-i), nil)
					break
				}
				note(pins.Pinned, c.Key(), wire.Printable(c.Key(), shown)+" is new", c.New)
			}
		}
		changes := r.Compare(o, u.strict())
		var fresh bool
		news, fresh = r.Tell(changes)
		for i, c := range news {
			if i == maxNoted {
				note(pins.Changed, "", fmt.Sprintf("%d more have changed", len(news)-i), nil)
				break
			}
			note(pins.Changed, c.Key(), wire.Printable(c.Summary(), 400), c.New)
		}
		for _, f := range scan(o, append(added, news...), first, scanned) {
			found = append(found, fmt.Sprintf("%s %s, %s: %s", f.Kind, wire.Printable(f.Name, 80), wire.Printable(f.Path, 80), f.Reason))
		}
		if n := len(found); n > 0 {
			text := strings.Join(found[:min(n, 3)], "; ")
			if n > 3 {
				text += fmt.Sprintf("; and %d more", n-3)
			}
			note(pins.Flagged, "", text, []byte(strings.Join(found, "\n")))
		}
		before := r.Settled
		r.Settle(list, o, changes)
		if !first && len(added) == 0 && !fresh && r.Program == program && r.Settled == before {
			return old, nil, nil
		}
		r.Program = program
		wrote = true
		now, err = json.Marshal(r)
		return now, notes, err
	}
	// Once for what it costs to look through large texts: every process waits while the
	// ledger is changed.
	if _, _, err := change(known); err != nil {
		return r, nil, err
	}
	if err := u.o.Pins.ChangePins(ctx, u.Name(), change); err != nil {
		return r, nil, err
	}
	u.wrote = u.wrote || wrote
	for _, c := range news {
		u.o.Log.Warn().Str("change", wire.Printable(u.o.Clean(c.Summary()), 400)).Str("pins", u.o.Config.Pins).Msg("the upstream is not as it is pinned; see: " + u.differs())
	}
	if n := len(found); n > 0 {
		u.o.Log.Info().Int("texts", n).Msg("texts of the upstream's should be looked at; see: " + u.o.Command + " pins list")
	}
	return r, now, nil
}

// maxNoted bounds how many changes of one list have a record of their own.
const maxNoted = 20

// withheld says why a call must not be made of a server that has turned out to be another
// one, or to offer something else, when it was started for the call; nil if it may be.
func (u *Upstream) withheld(call Call) error {
	if u.o.Pins == nil {
		return nil
	}
	c := u.Catalogue()
	if c.Blocked != "" {
		return fmt.Errorf("upstream %q: all that it offers is withheld: %s: %w", u.Name(), c.Blocked, wire.ErrNotSent)
	}
	at, _ := wire.At(call.Params, "name")
	name, ok := wire.String(at.Value)
	if !ok || c.offers(call.Method, name) {
		return nil
	}
	for _, w := range c.Withheld {
		if w.Name == wire.Printable(name, shown) {
			return fmt.Errorf("upstream %q: %s is withheld: %s: %w", u.Name(), w.Name, w.Reason, wire.ErrNotSent)
		}
	}
	return nil
}

// offers reports whether what a request of this method asks for by name is there, or
// cannot be withheld.
func (c Catalogue) offers(method, name string) bool {
	switch method {
	case "tools/call":
		return slices.ContainsFunc(c.Tools, func(t Tool) bool { return t.Name == name })
	case "prompts/get":
		return slices.ContainsFunc(c.Prompts, func(p Item) bool { return p.Key == name })
	}
	return true
}

// scan looks through what of an offer is new. What was scanned before is known by its
// digest.
func scan(o pins.Offer, news []pins.Change, first bool, scanned map[string][]pins.Finding) (found []pins.Finding) {
	look := func(id string, part pins.Offer) {
		if _, known := scanned[id]; !known {
			scanned[id] = pins.Scan(part)
		}
		found = append(found, scanned[id]...)
	}
	if first {
		look("", pins.Offer{Instructions: o.Instructions})
	}
	for _, c := range news {
		id, item := c.Key()+" "+c.Digest(), []pins.Item{{Name: c.Name, Raw: c.New}}
		switch c.Kind {
		case pins.Tool:
			look(id, pins.Offer{Tools: item})
		case pins.Prompt:
			look(id, pins.Offer{Prompts: item})
		case pins.Instructions:
			look("", pins.Offer{Instructions: o.Instructions})
		case pins.Server, pins.Resource:
		}
	}
	return found
}

// withholdAll leaves nothing that a model could read but what is pinned, and has the
// server asked for nothing: it may have more than it lists.
func withholdAll(c Catalogue, pinned json.RawMessage, why string) Catalogue {
	c.Withheld = slices.Clone(c.Withheld)
	for _, t := range c.Tools {
		c.Withheld = append(c.Withheld, Withheld{wire.Printable(t.Name, shown), why})
	}
	c.Blocked = why
	c.Tools, c.Prompts, c.Resources, c.Templates = nil, nil, nil, nil
	c.Server = wire.Edit(c.Server, wire.Field{Name: "instructions", Value: instructions(pinned)})
	return c
}

// apply makes of a catalogue what the host may see; words are the pinned instructions, and see
// the command that shows what has changed.
func apply(c Catalogue, mode, words string, changes []pins.Change, see string) Catalogue {
	if mode == "warn" {
		return c
	}
	pinned := json.RawMessage(wire.Quote(words))
	c.Tools, c.Prompts, c.Withheld = slices.Clone(c.Tools), slices.Clone(c.Prompts), slices.Clone(c.Withheld)
	for _, x := range changes {
		why := x.Blocks
		if mode == "block" && why == "" {
			why = "it is not as it is pinned"
		}
		why += "; see: " + see
		switch x.Kind {
		case pins.Server:
			if mode == "block" {
				return withholdAll(c, pinned, "the server is not the one that is pinned; see: "+see)
			}
		case pins.Instructions:
			c.Server = wire.Edit(c.Server, wire.Field{Name: "instructions", Value: instructions(x.Old)})
		case pins.Tool:
			i := slices.IndexFunc(c.Tools, func(t Tool) bool { return t.Name == x.Name })
			old, err := readTool(x.Old)
			if mode != "block" && x.Blocks == "" && err == nil {
				c.Tools[i] = old
				continue
			}
			c.Tools = slices.Delete(c.Tools, i, i+1)
			c.Withheld = append(c.Withheld, Withheld{wire.Printable(x.Name, shown), why})
		case pins.Prompt:
			i := slices.IndexFunc(c.Prompts, func(p Item) bool { return p.Key == x.Name })
			old, err := ReadItem(x.Old, "name")
			if mode != "block" && x.Blocks == "" && err == nil {
				c.Prompts[i] = old
				continue
			}
			c.Prompts = slices.Delete(c.Prompts, i, i+1)
			c.Withheld = append(c.Withheld, Withheld{wire.Printable(x.Name, shown), "the prompt: " + why})
		case pins.Resource: // is not pinned
		}
	}
	return c
}

// instructions is a text as JSON, nil if it is empty: there were none.
func instructions(raw json.RawMessage) json.RawMessage {
	if raw == nil || string(raw) == `""` {
		return nil
	}
	return raw
}

// Pinned says how the upstream stands to what is pinned of it.
func (u *Upstream) Pinned() Pinned {
	u.mu.Lock()
	p, o := u.pinned, u.pinnable
	u.mu.Unlock()
	p.Mode, p.Found = u.o.Config.Pins, pins.Scan(o)
	return p
}

// Accept pins these changes, as [Upstream.Pinned] has told of them: what has changed
// since is not accepted with them. In place of damaged pins only all of it is.
func (u *Upstream) Accept(ctx context.Context, changes []pins.Change) error {
	all := u.Pinned() // which takes its time, and others wait while the ledger is changed
	return u.o.Pins.ChangePins(ctx, u.Name(), func(old []byte) ([]byte, []pins.Note, error) {
		r, err := readPins(old)
		if errors.Is(err, errDamaged) {
			if all.Damaged == nil || len(changes) != len(all.Changes) {
				return nil, nil, fmt.Errorf("%w; only all that the upstream offers can be pinned in its place", err)
			}
			r, err = pins.Record{Since: time.Now().UTC().Truncate(time.Second)}, nil
		}
		if err != nil {
			return nil, nil, err
		}
		if !r.Known() {
			return nil, nil, errors.New("nothing is pinned any more")
		}
		r.Accept(changes)
		r.Settled = ""
		var notes []pins.Note
		for _, c := range changes {
			notes = append(notes, pins.Note{Status: pins.Accepted, Name: wire.Printable(c.Key(), shown), Text: wire.Printable(c.Summary(), 400), Digest: sha256.Sum256(c.New)})
		}
		now, err := json.Marshal(r)
		return now, notes, err
	})
}

// What is pinned is written to everybody's ledger: a server that changes its lists again
// and again is followed so many times at once, and then at this pace.
const (
	pinBurst = 20
	pinPause = 5 * time.Second
)

// pinPoll is how often haldir looks whether a person has accepted what has changed.
const pinPoll = time.Second

// awaitAcceptance looks, while something is not as it is pinned, whether a person has
// accepted it.
func (u *Upstream) awaitAcceptance(ctx context.Context) {
	t := time.NewTicker(pinPoll)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		u.mu.Lock()
		pending, failed, before := len(u.pinned.Changes) > 0, u.unpinned, u.pinnedRaw
		u.mu.Unlock()
		if !pending && !failed {
			continue
		}
		raw, err := u.o.Pins.LoadPins(ctx, u.Name())
		if err != nil || bytes.Equal(raw, before) && !failed {
			continue
		}
		u.reconsider(ctx)
	}
}

// reconsider compares what the server listed last with what is pinned by now.
func (u *Upstream) reconsider(ctx context.Context) {
	u.comparing.Lock()
	defer u.comparing.Unlock()
	u.mu.Lock()
	failed, listed, connected := u.unpinned, u.listed, u.conn != nil
	u.mu.Unlock()
	if listed == nil {
		return
	}
	o, err := decode(listed)
	if err != nil {
		return
	}
	if c, err := u.hold(ctx, o.read(u.remote()), listed, failed && connected); err == nil {
		u.retake(c, listed)
	}
}

// alike reports whether two catalogues show the host the same.
func alike(a, b Catalogue) bool {
	return a.Known == b.Known && a.Blocked == b.Blocked && bytes.Equal(a.Server, b.Server) && slices.Equal(a.Withheld, b.Withheld) &&
		slices.EqualFunc(a.Tools, b.Tools, func(x, y Tool) bool { return bytes.Equal(x.Raw, y.Raw) }) &&
		slices.EqualFunc(a.Prompts, b.Prompts, func(x, y Item) bool { return bytes.Equal(x.Raw, y.Raw) })
}

// retake takes a catalogue that was made anew from the same list, unless there is
// another one by now.
func (u *Upstream) retake(c Catalogue, listed []byte) {
	taken := false
	u.set(func() {
		if bytes.Equal(u.listed, listed) {
			c.Revision, c.Said = u.catalogue.Revision+1, u.catalogue.Said
			u.catalogue, taken = c, true
		}
	})
	if taken {
		u.o.Changed()
	}
}
