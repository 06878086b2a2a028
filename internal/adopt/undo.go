package adopt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/haldir-mcp/haldir/internal/clients"
	"github.com/haldir-mcp/haldir/internal/config/edit"
	"github.com/haldir-mcp/haldir/internal/replace"
	"github.com/haldir-mcp/haldir/internal/secret"
)

// ErrNothing says that there is no init to undo.
var ErrNothing = errors.New("there is nothing to undo")

// Undo is how the last init is taken back.
type Undo struct {
	Dir     string // of its copies
	Made    time.Time
	Files   []Reversal
	Secrets []string // that go
	Kept    []string // secrets that stay, since they are not what init stored any more
	Named   []string // secrets that stay, since haldir.yaml goes on to refer to them
	Masks   []string // texts that must not be shown

	Earlier []time.Time // when inits before it were done that stay in place, the last one first

	store  Store
	values map[string]string // digests of what init stored
}

// Way is how a file gets back.
type Way string

// The ways.
const (
	WayNone     Way = "none"     // it is as it was before init
	WayRestore  Way = "restore"  // it is as init left it: byte for byte
	WayMerge    Way = "merge"    // it has gone on since: init's part of it is taken back
	WayAside    Way = "aside"    // init made it, and it has been worked on since: it goes, and is kept beside the copies
	WayConflict Way = "conflict" // what init did to it has been changed since: it can be only as it was before
)

// Reversal is how one file gets back.
type Reversal struct {
	Kind Kind
	Path string
	Way  Way
	Why  string   // there is a conflict, if there is more to say
	More []string // what a person should know of what becomes of it

	Left, Now, After []byte // as init left it, as it is, as it will be; nil for no file

	before []byte
	place  clients.Place
	copies string // where its copies are, without their ends
	mode   fs.FileMode
}

// undoable are the directories of the inits that were not undone, the last one first.
func undoable(stateDir string) (dirs []string, err error) {
	names, err := runs(stateDir)
	for _, name := range slices.Backward(names) {
		dir := filepath.Join(stateDir, initDir, name)
		if _, err := os.Stat(filepath.Join(dir, manifestFile)); err == nil {
			dirs = append(dirs, dir)
		}
	}
	return dirs, err
}

// Last reads the init that was done last of those that were not undone.
func Last(stateDir string, h clients.Host, store Store) (*Undo, error) {
	dirs, err := undoable(stateDir)
	if err != nil {
		return nil, err
	}
	if len(dirs) == 0 {
		return nil, ErrNothing
	}
	_, unlock, err := alone(stateDir) // what was killed may have a child that still writes
	if err != nil {
		return nil, err
	}
	u, err := open(dirs[0], h, store)
	if err == nil {
		u.Earlier = made(dirs[1:])
	}
	return u, errors.Join(err, unlock())
}

// made is when inits were done. Of one that cannot be read it is not known, which is no reason
// not to undo a later one.
func made(dirs []string) []time.Time {
	times := make([]time.Time, len(dirs))
	for i, dir := range dirs {
		if m, err := readManifest(dir); err == nil {
			times[i] = m.Made
		}
	}
	return times
}

func readManifest(dir string) (m manifest, err error) {
	path := filepath.Join(dir, manifestFile)
	raw, err := os.ReadFile(path)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("%s: %w", path, err)
	}
	if m.Version != 1 {
		return m, fmt.Errorf("%s is of another haldir (version %d)", path, m.Version)
	}
	return m, nil
}

func open(dir string, h clients.Host, store Store) (*Undo, error) {
	m, err := readManifest(dir)
	if err != nil {
		return nil, err
	}
	u := &Undo{Dir: dir, Made: m.Made, store: store, values: m.Values}
	for i, r := range m.Files {
		v, err := u.reverse(h, r, filepath.Join(dir, strconv.Itoa(i)))
		if err != nil {
			return nil, err
		}
		u.Files = append(u.Files, v)
	}
	for _, name := range m.Secrets {
		switch {
		case !u.ours(name):
			u.Kept = append(u.Kept, name)
		case slices.ContainsFunc(u.Files, func(v Reversal) bool { return v.names(name) }):
			u.Named = append(u.Named, name)
		default:
			u.Secrets = append(u.Secrets, name)
		}
	}
	return u, nil
}

// names reports whether a haldir.yaml will refer to a secret as it did not before init: a person
// has used it for an upstream of theirs.
func (v Reversal) names(secret string) bool {
	ref := []byte("${keyring:" + secret + "}")
	return v.Kind == KindConfig && bytes.Contains(v.After, ref) && !bytes.Contains(v.before, ref)
}

// ours reports whether a secret is what init stored, or is not there. One that cannot be read
// is taken for it: to remove it will fail as well, and says why. An init of before values
// were noted has stored whatever it names.
func (u *Undo) ours(name string) bool {
	was, noted := u.values[name]
	if !noted {
		return true
	}
	v, err := u.store.Get(name)
	return err != nil || digest([]byte(v)) == was
}

// Undone is where Do keeps what a file was until then: one that is put back by force, a
// haldir.yaml that goes or that upstreams are taken out of, as a person has worked on it, and
// one of which More says what it loses; "" if it keeps nothing. What an undo before has kept,
// which was cut off, is not written over.
func (v Reversal) Undone() string {
	if v.Now == nil || bytes.Equal(v.Now, v.After) {
		return ""
	}
	if v.Way != WayConflict && v.Way != WayAside && (v.Way != WayMerge || v.Kind != KindConfig) && len(v.More) == 0 {
		return ""
	}
	for n := 1; ; n++ {
		path := v.undone(n)
		if data, _, err := replace.Read(path); err != nil || data == nil || bytes.Equal(data, v.Now) {
			return path
		}
	}
}

func (v Reversal) undone(n int) string {
	if n == 1 {
		return v.copies + ".undone"
	}
	return fmt.Sprintf("%s-%d.undone", v.copies, n)
}

// Original is where Do keeps the very bytes of before init, of a file that does not get them
// back as they were; "" for one that does.
func (v Reversal) Original() string {
	if v.Way != WayMerge || v.before == nil || bytes.Equal(v.before, v.After) {
		return ""
	}
	path := v.copies + ".original"
	if _, err := os.Lstat(path); err != nil && v.settled() {
		return ""
	}
	return path
}

// Aside is what is kept of a file as it was until an undo, this one or one that was cut off.
func (v Reversal) Aside() (paths []string) {
	for n := 1; ; n++ {
		path := v.undone(n)
		if _, err := os.Lstat(path); err != nil {
			return paths
		}
		paths = append(paths, path)
	}
}

// reverse finds the way back of one file.
func (u *Undo) reverse(h clients.Host, r record, copies string) (v Reversal, err error) {
	v = Reversal{Kind: r.Kind, Path: r.Path, copies: copies, mode: r.Mode}
	if r.Before != "" {
		if v.before, err = os.ReadFile(copies + ".before"); err != nil {
			return v, err
		}
		if digest(v.before) != r.Before {
			return v, fmt.Errorf("%s.before is not the copy that was made", copies)
		}
	}
	if v.Left, _, err = replace.Read(copies + ".after"); err != nil {
		return v, err
	}
	target, err := replace.Follow(r.Path)
	if err != nil {
		return v, err
	}
	if v.Now, _, err = replace.Read(target); err != nil {
		return v, err
	}
	v.After = v.before
	v.place = clients.Place{Client: r.Client, Scope: r.Scope, Path: r.Path}
	was := &clients.File{Place: v.place, Target: target}
	for _, data := range [][]byte{v.before, v.Left, v.Now} {
		if r.Kind == KindConfig {
			u.Masks = append(u.Masks, unshown(r.Path, data)...)
			continue
		}
		f, err := h.With(was, data)
		if u.Masks = append(u.Masks, f.Secrets(secretive, among)...); err != nil {
			u.Masks = append(u.Masks, lines(data)...)
		}
	}
	switch now := digest(v.Now); {
	case now == r.Before:
		v.Way = WayNone
		return v, nil
	case v.Now != nil && (now == r.After || now == r.Planned):
		v.Way, v.More = WayRestore, noted(h, was, v, r)
		return v, nil
	}
	v.Way = WayMerge
	switch {
	case v.Now == nil:
		err = errors.New("the file is gone")
	case r.Kind == KindClient:
		v.After, v.More, err = putBack(h, was, v, r.Swaps)
	case r.Kind == KindSettings:
		v.After, err = clients.Undeny(r.Path, v.Now, r.Rules)
	case r.Kind == KindConfig && v.before != nil:
		v.After, v.More, err = withdraw(r.Path, v.Now, v.before, r)
	case r.After == "": // init was cut off, or failed as somebody else was first
		err = errors.New("it was not there before init, which has not noted that it made it")
	default:
		// Rules are added, so it has nearly always been worked on. That must not be in the way
		// of the clients, whose servers are to be there again.
		v.Way = WayAside
	}
	if err != nil {
		v.Way, v.Why, v.After = WayConflict, err.Error(), v.before
	}
	return v, nil
}

// putBack puts the servers of a client back into its file as it is now.
func putBack(h clients.Host, place *clients.File, v Reversal, swaps []Swapped) (text []byte, notes []string, err error) {
	before, err := h.With(place, v.before)
	if err != nil {
		return nil, nil, err
	}
	left, err := h.With(place, v.Left)
	if err != nil {
		return nil, nil, err
	}
	text = v.Now
	for _, s := range swaps {
		now, err := h.With(place, text)
		if err != nil {
			return nil, nil, err
		}
		was := before.Find(s.Scope, s.Dir)
		if was == nil {
			return nil, nil, errors.New("its copy has no such servers")
		}
		if s.Placed && altered(left.Find(s.Scope, s.Dir), now.Find(s.Scope, s.Dir), s.Name) {
			notes = append(notes, fmt.Sprintf("the entry %s goes, and what was changed in it since init goes with it", s.Name))
		}
		if text, err = h.PutBack(now, was, s.Gone, s.Name, s.Placed); err != nil {
			return nil, nil, err
		}
	}
	if now, err := h.With(place, text); err == nil && ownForm(place.Place) {
		if changed, added := now.Since(before); len(changed)+len(added) == 0 {
			return v.before, notes, nil
		}
	}
	return text, notes, nil
}

// ownForm reports whether a file is always in the form that Claude Code gives it, which is no
// work of a person's: if it says what it said before init, it can have its bytes of then.
func ownForm(p clients.Place) bool { return p.Client == clients.ClaudeCode && p.Scope == clients.User }

// noted says what goes when a file gets its bytes of before init: Claude Code has put it there
// while it registered haldir.
func noted(h clients.Host, place *clients.File, v Reversal, r record) (notes []string) {
	if r.Kind != KindClient || !ownForm(place.Place) {
		return nil
	}
	before, errBefore := h.With(place, v.before)
	now, errNow := h.With(place, v.Now)
	if errBefore != nil || errNow != nil {
		return nil
	}
	if _, added := now.Since(before); len(added) > 0 {
		notes = append(notes, fmt.Sprintf("what Claude Code put into it while it registered haldir goes with that: %s", strings.Join(added, ", ")))
	}
	return notes
}

// altered reports whether haldir's entry says something else than init has written.
func altered(left, now *clients.List, name string) bool {
	if left == nil || now == nil {
		return false
	}
	a, b := left.Server(name), now.Server(name)
	return a != nil && b != nil && b.Guard != nil && !a.Alike(b)
}

// withdraw takes upstreams out of a haldir.yaml, first what was written for them, and with
// each what is about it alone and was not there before init, such as the policies of a pack:
// without it they would not load.
func withdraw(path string, text, before []byte, was record) (after []byte, notes []string, err error) {
	policies := slices.Clone(was.Policies)
	for _, name := range was.Added {
		if id := withheld(name); !slices.Contains(policies, id) { // an init of before they were noted
			policies = append(policies, id)
		}
	}
	// One that a person has taken out is no mistake.
	without := func(names []string, remove func(name string) (edit.Result, error)) error {
		for _, name := range names {
			r, err := remove(name)
			if errors.Is(err, edit.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if len(r.IDs) > 0 {
				notes = append(notes, fmt.Sprintf("what was about %s alone goes with it: %s", name, strings.Join(r.IDs, ", ")))
			}
			text, notes = r.After, append(notes, r.Notes...)
		}
		return nil
	}
	if err := without(policies, func(id string) (edit.Result, error) {
		return edit.RemoveFrom(text, path, edit.Policies, id, before)
	}); err != nil {
		return nil, nil, err
	}
	err = without(was.Added, func(name string) (edit.Result, error) {
		return edit.RemoveUpstreamFrom(text, path, name, before)
	})
	return text, notes, err
}

// Conflicts are the files that have no way back but by force.
func (u *Undo) Conflicts() (out []Reversal) {
	for _, v := range u.Files {
		if v.Way == WayConflict {
			out = append(out, v)
		}
	}
	return out
}

// Do takes the init back. force puts files with conflicts back as they were before it, and
// those alone: what was saved since in a file that has another way back is not to be lost. The
// directory of the copies goes, unless something is kept there: see Undone and Original.
func (u *Undo) Do(force bool) (err error) {
	stateDir := filepath.Dir(filepath.Dir(u.Dir))
	_, unlock, err := alone(stateDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	switch dirs, err := undoable(stateDir); {
	case err != nil:
		return err
	case !slices.Contains(dirs, u.Dir):
		return fmt.Errorf("%w: it was undone meanwhile", ErrNothing)
	case dirs[0] != u.Dir:
		return errors.New("there was another init meanwhile, which is to be undone first; nothing was undone, try again")
	}
	for _, v := range u.Files {
		if _, _, err := v.still(); err != nil {
			return fmt.Errorf("%s: %w; nothing was undone, try again", v.Path, err)
		}
	}
	return u.do(force)
}

func (u *Undo) do(force bool) error {
	if len(u.Conflicts()) > 0 && !force {
		return errors.New("files were changed since")
	}
	for _, v := range slices.Backward(u.Files) { // clients first: haldir serves as long as they ask it
		if err := v.sweep(); err != nil {
			return err
		}
		if v.settled() {
			continue
		}
		for path, data := range map[string][]byte{v.Undone(): v.Now, v.Original(): v.before} {
			if path == "" {
				continue
			}
			if err := writeNew(path, data); err != nil {
				return err
			}
		}
		if err := v.back(); err != nil {
			return fmt.Errorf("%s: %w", v.Path, err)
		}
	}
	for _, name := range u.Secrets {
		if !u.ours(name) {
			continue // it was changed since Last
		}
		if err := u.store.Remove(name); err != nil && !errors.Is(err, secret.ErrNotFound) {
			return fmt.Errorf("remove the secret %s: %w", name, err)
		}
	}
	if err := os.Remove(filepath.Join(u.Dir, manifestFile)); err != nil {
		return err
	}
	return sweep(u.Dir)
}

// settled reports whether nothing is to be written: what others have saved has nothing of init.
func (v Reversal) settled() bool {
	return v.Way == WayNone || v.Now != nil && v.After != nil && bytes.Equal(v.Now, v.After)
}

// sweep removes what an init or an undo that was killed has left beside a file, which has its
// secrets. Beside haldir.yaml others may be at work, and it has none.
func (v Reversal) sweep() error {
	if v.Kind == KindConfig {
		return nil
	}
	target, err := replace.Follow(v.Path)
	if err != nil {
		return err
	}
	return replace.Sweep(target, v.before, v.Left, v.After)
}

// still is where a file is, if it is as the way back was found for.
func (v Reversal) still() (target string, info fs.FileInfo, err error) {
	if target, err = replace.Follow(v.Path); err != nil {
		return "", nil, err
	}
	now, info, err := replace.Read(target)
	if err == nil && digest(now) != digest(v.Now) {
		err = replace.ErrChanged
	}
	return target, info, err
}

// back writes what a file is to be.
func (v Reversal) back() (err error) {
	if v.After != nil { // its directory may have gone since
		path, err := replace.Follow(v.Path)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(path), 0o700)
		}
		if err != nil {
			return err
		}
	}
	release, err := hold(context.Background(), v.place)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	target, info, err := v.still()
	if err != nil {
		return err
	}
	switch {
	case v.After == nil:
		return os.Remove(target)
	case v.Kind == KindConfig:
		return edit.Replace(v.Path, v.Now, v.After)
	}
	if err := replace.File(target, v.Now, v.After, info); err != nil {
		return err
	}
	if info == nil && v.mode != 0 {
		return os.Chmod(target, v.mode)
	}
	return nil
}
