package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/haldir-mcp/haldir/audit"
)

// The log of checkpoints grows with every one. Those over fewer records than are gone can be
// compared with no record any more, so that compaction keeps few of them: the one that what
// is gone is held against, those that records of pruning name, for exports, and the last of
// each day, to compare one that was kept elsewhere with.
// All that are over records which are there stay, and with them what tells a rollback or a
// cut.
//
// Of the two files that change the database is the first: it says how long the new log is
// and the old one was. Either is right, if the last checkpoint stands where that says.

// errNewLog says that the log is not the one that was read.
var errNewLog = errors.New("the checkpoint log was replaced meanwhile")

// thin thins the log of checkpoints out. Others go on while the signatures are verified.
func (l *Ledger) thin(ctx context.Context) error {
	gone, err := l.Pruned(ctx)
	if err != nil || gone.Size == 0 {
		return err
	}
	named, err := l.boundaries(ctx)
	if err != nil {
		return err
	}
	named[gone.Size] = true
	old, public, err := l.checkpointLog(ctx)
	if err != nil {
		return err
	}
	list, err := audit.ReadLog(old, public)
	if err != nil {
		return err // what is wrong with it must stay to be seen
	}
	thinned := thinOut(old, list, gone.Size, named)
	if len(thinned) == len(old) {
		return nil
	}
	return l.wait(ctx, &op{run: func(*tx) error { return nil }, done: make(chan error, 1), then: func() error {
		return l.replaceLog(old, thinned)
	}})
}

// boundaries returns how far pruning has come at times, as records tell.
func (l *Ledger) boundaries(ctx context.Context) (sizes map[uint64]bool, err error) {
	sizes = map[uint64]bool{}
	f := audit.Filter{Status: audit.StatusPruned, Limit: step}
	for {
		entries, next, err := l.Find(ctx, f)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			var told audit.Pruning
			if json.Unmarshal(e.Arguments, &told) == nil { // else Verify tells
				sizes[told.To] = true
			}
		}
		if next == 0 {
			return sizes, nil
		}
		f.Before = next
	}
}

// thinOut leaves out lines of a log, of which list are the checkpoints.
func thinOut(log []byte, list []audit.Checkpoint, gone uint64, named map[uint64]bool) []byte {
	var thinned []byte
	day := func(c audit.Checkpoint) string { return c.Time.Format(time.DateOnly) }
	for i, c := range list {
		line := log[:bytes.IndexByte(log, '\n')+1]
		log = log[len(line):]
		if c.Size > gone || named[c.Size] || i == len(list)-1 || day(c) != day(list[i+1]) {
			thinned = append(thinned, line...)
		}
	}
	return thinned
}

// replaceLog puts a log in the place of an older one and of what was appended to that. It
// runs in the writer, so that nobody else appends.
func (l *Ledger) replaceLog(old, thinned []byte) error {
	var log checkpointLog
	defer func() { log.close() }()
	if err := l.commit([]*op{{run: func(t *tx) error { return log.open(t, l.o.Dir) }}}); err != nil {
		return err
	}
	now, err := log.read()
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(now, old) {
		return errNewLog
	}
	thinned = append(thinned, now[len(old):]...)
	state := log.state
	state.Was, state.Logged = log.known, log.known-int64(len(now)-len(thinned))
	err = l.commit([]*op{{write: true, run: func(t *tx) error { return t.space(spaceMeta).putJSON(keyTree, state) }}})
	log.close() // or some systems would not let it be replaced
	if err != nil {
		return err
	}
	return writeFile(logPath(l.o.Dir), thinned)
}
