package adopt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/haldir-mcp/haldir/internal/clients"
	"github.com/haldir-mcp/haldir/internal/config/edit"
	"github.com/haldir-mcp/haldir/internal/replace"
	"github.com/haldir-mcp/haldir/internal/secret"
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
	After  string         `json:"after,omitempty"`  // "" while it is not known
	Swaps  []Swapped      `json:"swaps,omitempty"`
	Rules  []string       `json:"rules,omitempty"`
	Added  []string       `json:"added,omitempty"` // upstreams in a haldir.yaml that was there

	Policies []string `json:"policies,omitempty"` // ids of those that it got for upstreams
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

// Do carries the plan out. After an error everything is as it was, or the error is ErrBegun
// as well and says what is not.
func (p *Plan) Do(ctx context.Context) (d Done, err error) {
	unlock, err := alone(p.o.StateDir)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	for _, c := range p.Files {
		if err := c.still(); err != nil {
			return d, err
		}
	}
	m := &manifest{Version: 1, Made: p.o.Now.UTC(), Config: p.Config, Values: map[string]string{}}
	for _, c := range p.Files {
		r := record{Kind: c.Kind, Client: c.Client, Path: c.Path, Before: digest(c.Before), Swaps: c.Swaps, Rules: c.Rules}
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
	if d.Backup, err = makeDir(p.o.StateDir, p.o.Now); err != nil {
		return d, err
	}
	for i, c := range p.Files {
		if c.Before != nil {
			if err := writeNew(filepath.Join(d.Backup, strconv.Itoa(i)+".before"), c.Before); err != nil {
				return d, err
			}
		}
	}
	if err := m.save(d.Backup); err != nil {
		return d, err
	}
	defer func() {
		if err != nil {
			if left := p.takeBack(d.Backup); left != nil {
				err = errors.Join(err, fmt.Errorf("%w: %w", ErrBegun, left))
			}
		}
	}()
	for _, s := range p.secrets() {
		if s.there || slices.Contains(m.Secrets, s.Name) {
			continue
		}
		m.Secrets = append(m.Secrets, s.Name)
		m.Values[s.Name] = digest([]byte(s.value))
		if err := m.save(d.Backup); err != nil { // first: what is stored must be known
			return d, err
		}
		if err := p.o.Store.Set(s.Name, s.value); err != nil {
			return d, fmt.Errorf("store the secret %s: %w", s.Name, err)
		}
	}
	for i, c := range p.Files {
		note, err := p.change(ctx, c, func() error {
			m.Files[i].Before = digest(c.Before)
			if err := writeNew(filepath.Join(d.Backup, strconv.Itoa(i)+".before"), c.Before); err != nil {
				return err
			}
			return m.save(d.Backup)
		})
		if err != nil {
			return d, err
		}
		if note != "" {
			d.Notes = append(d.Notes, note)
		}
		m.Files[i].After = digest(c.After)
		if err := writeNew(filepath.Join(d.Backup, strconv.Itoa(i)+".after"), c.After); err != nil {
			return d, err
		}
		if err := m.save(d.Backup); err != nil {
			return d, err
		}
	}
	m.Done = true
	return d, m.save(d.Backup)
}

// change makes one change. keep notes what was there before, if that is not c.Before any more.
func (p *Plan) change(ctx context.Context, c *Change, keep func() error) (note string, err error) {
	if err := c.still(); err != nil {
		return "", err
	}
	switch {
	case c.Kind == KindConfig:
		return "", edit.Replace(c.Path, c.Before, c.After)
	case c.Commands != nil:
		err := p.tell(ctx, c)
		if err == nil {
			return "", nil
		}
		if ctx.Err() != nil {
			return "", err
		}
		note = fmt.Sprintf("%v; %s was edited instead", err, c.Path)
		return note, p.instead(c, keep)
	}
	target, err := replace.Follow(c.Path)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return "", err
	}
	return "", replace.File(target, c.Before, c.After, c.info)
}

// instead edits the file that Claude Code was to change, as it is now: Claude Code may have
// saved other things in it, which stay, and have done a part of what it was told, which is
// taken back first. What init goes from then is kept as what was before.
func (p *Plan) instead(c *Change, keep func() error) error {
	changed := func(err error) error {
		return fmt.Errorf("%s: %w while claude mcp worked on it: %w; try again", c.Path, replace.ErrChanged, err)
	}
	now, info, err := replace.Read(c.file.Target)
	if err != nil {
		return err
	}
	if now == nil {
		return changed(errors.New("it is gone"))
	}
	before := now
	for _, s := range c.swap {
		f, err := p.o.Host.With(c.file, before)
		if err != nil {
			return changed(err)
		}
		if before, err = p.o.Host.PutBack(f, s.List, s.Gone, s.Name, s.Entry != nil); err != nil {
			return changed(err)
		}
	}
	f, err := p.o.Host.With(c.file, before)
	if err != nil {
		return changed(err)
	}
	swaps := slices.Clone(c.swap)
	for i, s := range swaps {
		if swaps[i].List = f.Find(s.List.Scope, s.List.Dir); swaps[i].List == nil {
			return changed(errors.New("the servers are gone"))
		}
	}
	after, err := p.o.Host.Swap(f, swaps...)
	if err != nil {
		return changed(err)
	}
	c.Before, c.After, c.info = before, after, info
	if err := keep(); err != nil {
		return err
	}
	return replace.File(c.file.Target, now, after, info)
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
	if (now == nil) != (c.Before == nil) || !bytes.Equal(now, c.Before) {
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

// waits is how long one run waits for another, which mostly takes milliseconds.
const waits = 10 * time.Second

// alone waits until no other run of init, and none of its undoing, is at work: what the other
// has done would be taken for one's own, and taken back with it.
func alone(state string) (unlock func() error, err error) {
	if unlock, err = secret.Lock(filepath.Join(state, "init.lock"), waits); err != nil {
		return nil, fmt.Errorf("wait for other runs of haldir init: %w", err)
	}
	return unlock, nil
}

// makeDir makes the directory of this run.
func makeDir(state string, now time.Time) (string, error) {
	root := filepath.Join(state, initDir)
	if err := os.MkdirAll(root, 0o700); err != nil {
		return "", err
	}
	stamp := now.UTC().Format("20060102T150405Z")
	for n := 1; ; n++ {
		dir := filepath.Join(root, stamp)
		if n > 1 {
			dir += "-" + strconv.Itoa(n)
		}
		if err := os.Mkdir(dir, 0o700); !errors.Is(err, fs.ErrExist) {
			return dir, err
		}
	}
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
