package ledger

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Process is what a process that uses a ledger says of itself to the others.
type Process struct {
	PID     int       `json:"pid"`
	Version string    `json:"version"` // of haldir
	Verb    string    `json:"verb"`    // what it was started to do
	Config  string    `json:"config,omitempty"`
	Started time.Time `json:"started"`

	// What it makes of the file of Config, as it has looked at it last.
	Seen    string   `json:"seen,omitempty"`    // SHA-256 of the file, in hex
	Waits   []string `json:"waits,omitempty"`   // why a person must confirm it first
	Wait    string   `json:"wait,omitempty"`    // the id of that waiting, which is what is confirmed; "" if nothing waits
	Refuses string   `json:"refuses,omitempty"` // what is wrong with it
}

// Introduce tells others what this process is from now on. They find it by [Ledger.View].
func (l *Ledger) Introduce(ctx context.Context, p Process) error {
	return l.do(ctx, false, func(*tx) error {
		if l.o.Process = p; l.presence != nil {
			p.introduce(l.presence.lock.Path())
		}
		return nil
	})
}

// introduce writes p into its file. The turn must be taken, as it is not written at once. Its
// first byte says nothing, as that is the one which is locked, and Windows lets nobody read or
// write it.
func (p Process) introduce(path string) {
	raw, err := json.Marshal(p)
	if err != nil {
		return
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return
	}
	if _, err := f.WriteAt(raw, 1); err == nil {
		_ = f.Truncate(1 + int64(len(raw)))
	}
	_ = f.Close()
}

// maxProcess is more than any process says of itself, in bytes.
const maxProcess = 1 << 20

// processIn reads what a process has said of itself, which may be nothing.
func processIn(path string) (p Process) {
	f, err := os.Open(path)
	if err != nil {
		return p
	}
	defer func() { _ = f.Close() }() // only read from
	raw, err := io.ReadAll(io.NewSectionReader(f, 1, maxProcess))
	if err != nil || json.Unmarshal(raw, &p) != nil {
		return Process{}
	}
	return p
}

// View is how a ledger is, for whoever looks after it.
type View struct {
	Format    uint64    // of the file; older ones are brought up to date by the next to write
	Now, Wall time.Time // by the ledger, and by the clock
	Living    []Process // that use it, but this one
	Dead      int       // processes that ended without a word
	Orphans   int       // calls of theirs, which count as spent
	Doubt     time.Time // since when limits without a window count as used up; zero if they do not
	Remains   int64     // bytes that a compaction has left that was killed
	Kept      Retention // for how long records are kept, and which config says so
}

// View looks at all of it at once. What can be asked for by itself is not in it. It changes
// nothing, and needs no older file to be brought up to date.
func (l *Ledger) View(ctx context.Context) (v View, err error) {
	err = l.do(ctx, false, func(t *tx) error {
		v = View{Format: number(t.space(spaceMeta).get(keyVersion)), Now: t.now, Wall: t.wall, Doubt: t.doubt()}
		open := map[string]int{}
		err := t.space(spaceHolds).each(nil, func(k, _ []byte) error {
			owner, _, _ := strings.Cut(string(k), "-")
			open[owner]++
			return nil
		})
		if err != nil {
			return err
		}
		owners := map[string]bool{}
		for id := range open {
			owners[id] = true
		}
		gone, err := dead(l.o.Dir, owners, l.id)
		if err != nil {
			return err
		}
		v.Dead = len(gone)
		for _, id := range gone {
			v.Orphans += open[id]
		}
		if v.Living, err = others(l.o.Dir, append(gone, l.id)); err != nil {
			return err
		}
		if v.Remains, err = remains(l.o.Dir); err != nil {
			return err
		}
		claims, _, err := t.claims()
		if err == nil && len(claims) > 0 {
			v.Kept = Retention{Place: claims[0].Place, Keep: claims[0].Keep}
		}
		return err
	})
	return v, err
}

// others are the processes that have registered themselves, but some.
func others(dir string, but []string) (list []Process, err error) {
	procs := filepath.Join(dir, "procs")
	entries, err := os.ReadDir(procs)
	if os.IsNotExist(err) {
		return nil, nil
	}
	for _, e := range entries {
		if e.Type().IsRegular() && !slices.Contains(but, e.Name()) {
			list = append(list, processIn(filepath.Join(procs, e.Name())))
		}
	}
	return list, err
}
