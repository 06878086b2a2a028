package adopt

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/haldir-mcp/haldir/internal/clients"
	"github.com/haldir-mcp/haldir/internal/config/edit"
	"github.com/haldir-mcp/haldir/internal/replace"
)

// manifestFile names what a run of init has done, in its directory.
const manifestFile = "manifest.json"

// manifest is the record of one run, as it is on disk.
type manifest struct {
	Version int       `json:"version"`
	Made    time.Time `json:"made"`
	Done    bool      `json:"done"` // false: it was cut off
	Config  string    `json:"config"`
	Files   []record  `json:"files"`
	Secrets []string  `json:"secrets"` // that it has stored

	Values map[string]string `json:"values,omitempty"` // SHA-256 of what was stored, by name
}

// record is what has become of one file.
type record struct {
	Kind   Kind           `json:"kind"`
	Client clients.Client `json:"client,omitempty"`
	Scope  clients.Scope  `json:"scope,omitempty"` // of the file
	Path   string         `json:"path"`
	Mode   fs.FileMode    `json:"mode,omitempty"`
	Before string         `json:"before,omitempty"` // SHA-256; "" for no file
	After  string         `json:"after,omitempty"`  // "" while it is not known to be written
	Swaps  []Swapped      `json:"swaps,omitempty"`
	Rules  []string       `json:"rules,omitempty"`
	Added  []string       `json:"added,omitempty"` // upstreams in a haldir.yaml that was there

	Policies []string `json:"policies,omitempty"` // ids of those that it got for upstreams

	// Planned is noted before it is written: an init that is cut off right then has made it.
	Planned string `json:"planned,omitempty"`
}

func digest(data []byte) string {
	if data == nil {
		return ""
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// initDir is where the runs of init are kept, below the state directory.
const initDir = "init"

// Done is what a plan has come to.
type Done struct {
	Backup string   // the directory of the copies
	Notes  []string // what went another way
}

// ErrBegun says that a plan has failed, and that what it had done by then stands.
var ErrBegun = errors.New("what was begun could not be taken back")

// ErrInterrupted says that a person has stopped it.
var ErrInterrupted = errors.New("it was interrupted")

func interrupted(ctx context.Context) error {
	if ctx.Err() != nil {
		return ErrInterrupted
	}
	return nil
}

// Do carries the plan out. After an error everything is as it was, or the error is ErrBegun
// as well and says what is not.
func (p *Plan) Do(ctx context.Context) (d Done, err error) {
	turn, unlock, err := alone(p.o.StateDir)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	for _, c := range p.Files {
		if err := c.still(); err != nil {
			return d, err
		}
	}
	m := p.manifest()
	if d.Backup, err = p.begin(m); err != nil {
		return d, err
	}
	defer func() {
		if err != nil {
			if left := p.takeBack(d.Backup); left != nil {
				err = errors.Join(err, fmt.Errorf("%w: %w", ErrBegun, left))
			}
		}
	}()
	if err := p.store(ctx, m, d.Backup); err != nil {
		return d, err
	}
	for i, c := range p.Files {
		if err := interrupted(ctx); err != nil {
			return d, err
		}
		note, err := p.change(ctx, c, turn, func() error {
			m.Files[i].Planned = digest(c.After)
			return errors.Join(writeNew(filepath.Join(d.Backup, strconv.Itoa(i)+".after"), c.After), m.save(d.Backup))
		})
		if err != nil {
			return d, err
		}
		if note != "" {
			d.Notes = append(d.Notes, note)
		}
		m.Files[i].After = m.Files[i].Planned
		if err := m.save(d.Backup); err != nil {
			return d, err
		}
	}
	if err := interrupted(ctx); err != nil { // by somebody who does not know how far it is
		return d, err
	}
	m.Done = true
	return d, m.save(d.Backup)
}

// manifest is what a run is to do.
func (p *Plan) manifest() *manifest {
	m := &manifest{Version: 1, Made: p.o.Now.UTC(), Config: p.Config, Values: map[string]string{}}
	for _, c := range p.Files {
		r := record{Kind: c.Kind, Client: c.Client, Path: c.Path, Before: digest(c.Before), Planned: digest(c.After), Swaps: c.Swaps, Rules: c.Rules}
		if c.file != nil {
			r.Scope = c.file.Scope
		}
		if c.info != nil {
			r.Mode = c.info.Mode().Perm()
		}
		if c.Kind == KindConfig && c.Before != nil {
			r.Policies = p.Policies
			for _, u := range p.Upstreams {
				if !u.There {
					r.Added = append(r.Added, u.Name)
				}
			}
		}
		m.Files = append(m.Files, r)
	}
	return m
}

// begin makes the directory of a run, with a copy of every file as it is and as it is to be.
// The manifest is last: what has none has done nothing.
func (p *Plan) begin(m *manifest) (dir string, err error) {
	if err := tidy(p.o.StateDir); err != nil {
		return "", err
	}
	if dir, err = makeDir(p.o.StateDir, p.o.Now); err != nil {
		return "", err
	}
	for i, c := range p.Files {
		for end, data := range map[string][]byte{".before": c.Before, ".after": c.After} {
			if data == nil {
				continue
			}
			if err := writeNew(filepath.Join(dir, strconv.Itoa(i)+end), data); err != nil {
				return "", errors.Join(err, sweep(dir))
			}
		}
	}
	return dir, m.save(dir)
}

// store stores the secrets.
func (p *Plan) store(ctx context.Context, m *manifest, dir string) error {
	for _, s := range p.secrets() {
		if s.there || slices.Contains(m.Secrets, s.Name) {
			continue
		}
		if err := interrupted(ctx); err != nil {
			return err
		}
		m.Secrets = append(m.Secrets, s.Name)
		m.Values[s.Name] = digest([]byte(s.value))
		if err := m.save(dir); err != nil { // first: what is stored must be known
			return err
		}
		if err := p.o.Store.Set(s.Name, s.value); err != nil {
			return fmt.Errorf("store the secret %s: %w", s.Name, err)
		}
	}
	return nil
}

// change makes one change. note says what went another way, and noted keeps what is planned by now.
func (p *Plan) change(ctx context.Context, c *Change, turn *os.File, noted func() error) (note string, err error) {
	if c.Command != nil {
		if err := c.still(); err != nil {
			return "", err
		}
		if note, err = p.register(ctx, c, turn); err != nil { // which takes the lock that hold takes
			return "", err
		}
	}
	if c.file != nil {
		release, err := hold(ctx, c.file.Place)
		if err != nil {
			return "", err
		}
		defer func() { err = errors.Join(err, release()) }()
	}
	if c.Command != nil && note == "" {
		if note, err = p.follow(c); err != nil {
			return "", err
		}
		if err := noted(); err != nil {
			return "", err
		}
	}
	return note, c.write()
}

// write makes the change, of what is still as it was planned on.
func (c *Change) write() error {
	if err := c.still(); err != nil {
		return err
	}
	if c.Kind == KindConfig {
		return edit.Replace(c.Path, c.Before, c.After)
	}
	target, err := replace.Follow(c.Path)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return err
	}
	if err := replace.Sweep(target, c.Before, c.After); err != nil { // of an init that was killed
		return err
	}
	return replace.File(target, c.planned(), c.After, c.info)
}

// planned is what the change was planned on.
func (c *Change) planned() []byte {
	if c.base != nil {
		return c.base
	}
	return c.Before
}

// still reports whether a file is as it was planned on.
func (c *Change) still() error {
	target, err := replace.Follow(c.Path)
	if err != nil {
		return err
	}
	now, _, err := replace.Read(target)
	if err != nil {
		return err
	}
	if base := c.planned(); (now == nil) != (base == nil) || !bytes.Equal(now, base) {
		return fmt.Errorf("%s: %w by something else; nothing was written to it, try again", c.Path, replace.ErrChanged)
	}
	return nil
}

// takeBack undoes what was begun.
func (p *Plan) takeBack(dir string) error {
	u, err := open(dir, p.o.Host, p.o.Store)
	if err != nil {
		return err
	}
	if conflicts := u.Conflicts(); len(conflicts) > 0 {
		return fmt.Errorf("%s is not as haldir left it; its copy is in %s", conflicts[0].Path, dir)
	}
	return u.do(false)
}

// copies are the files in the directory of a run that are of no use once it is taken back, and what
// a cut has left of them. What is kept for a person has another end.
var copies = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(\d+\.(before|after)|manifest\.json|\.(\d+(-\d+)?\.(before|after|undone|original)|manifest\.json)-\d+)$`)
})

// sweep removes the copies of a run, and its directory unless something is kept there.
func sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	kept := false
	for _, e := range entries {
		if !copies().MatchString(e.Name()) {
			kept = true
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if kept {
		return nil
	}
	return os.Remove(dir)
}

// Tidy removes what runs have left that were cut off before they began, or at their very end.
func Tidy(state string) (err error) {
	_, unlock, err := alone(state)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	return tidy(state)
}

// tidy is Tidy for one that is alone already.
func tidy(state string) error {
	root := filepath.Join(state, initDir)
	entries, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		dir := filepath.Join(root, e.Name())
		if _, err := os.Stat(filepath.Join(dir, manifestFile)); !e.IsDir() || !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := sweep(dir); err != nil {
			return err
		}
	}
	return nil
}

// waits is how long one run waits for another, which mostly takes milliseconds.
const waits = 10 * time.Second

// alone waits until no other run of init, and none of its undoing, is at work: what the other
// has done would be taken for one's own, and taken back with it. So it is with the Claude Code
// that a run has started which was killed since. turn is the file that is locked, if a child can
// have that.
func alone(state string) (turn *os.File, unlock func() error, err error) {
	if turn, unlock, err = lock(filepath.Join(state, "init.lock"), waits); err != nil {
		return nil, nil, fmt.Errorf("wait for other runs of haldir init: %w; wait until the other, or the claude mcp add that it has started, has ended, and try again", err)
	}
	return turn, unlock, nil
}

// stamped is the name of the directory of a run: when it was begun, and a number if others
// before it have that as well.
var stamped = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(\d{8}T\d{6}Z)(?:-(\d{1,9}))?$`) })

// rank is what runs are ordered by. What has another name is before all of them.
func rank(name string) (stamp string, n int) {
	m := stamped().FindStringSubmatch(name)
	if m == nil {
		return "", 0
	}
	n, err := strconv.Atoi(m[2])
	if err != nil { // it has no number
		n = 1
	}
	return m[1], n
}

// runs are the names of the directories of runs, in the order in which the runs were begun. The
// names alone say which that is, as makeDir gives a greater one to each: a clock may have been set
// back since.
func runs(state string) (names []string, err error) {
	entries, err := os.ReadDir(filepath.Join(state, initDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.SortStableFunc(names, func(a, b string) int {
		stampA, nA := rank(a)
		stampB, nB := rank(b)
		return cmp.Or(cmp.Compare(stampA, stampB), cmp.Compare(nA, nB))
	})
	return names, nil
}

// makeDir makes the directory of this run. If one is there with its time or a later one, it is
// named by that and the next number.
func makeDir(state string, now time.Time) (string, error) {
	root := filepath.Join(state, initDir)
	if err := os.MkdirAll(root, 0o700); err != nil {
		return "", err
	}
	names, err := runs(state)
	if err != nil {
		return "", err
	}
	name := now.UTC().Format("20060102T150405Z")
	if len(names) > 0 {
		if stamp, n := rank(names[len(names)-1]); stamp >= name {
			name = stamp + "-" + strconv.Itoa(n+1)
		}
	}
	dir := filepath.Join(root, name)
	return dir, os.Mkdir(dir, 0o700)
}

// writeNew writes a file that only its owner can read, to stay.
func writeNew(path string, data []byte) error {
	now, info, err := replace.Read(path)
	if err != nil {
		return err
	}
	return replace.File(path, now, data, info)
}

func (m *manifest) save(dir string) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return writeNew(filepath.Join(dir, manifestFile), append(text, '\n'))
}
