package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/files"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

// follower keeps a running serve in step with haldir.yaml.
type follower struct {
	a   *app
	srv *proxy.Server

	mu      sync.Mutex           // guards all that a change of the config changes
	seen    [sha256.Size]byte    // of the file that was dealt with last
	waiting *config.Config       // for a person to confirm it; nil if nothing is
	wait    string               // the id of that waiting
	adopted func(*config.Config) // called when another one is in force; nil for nothing
}

// Statuses of the audit's config records, beside that of a config's first use.
const (
	configReloaded  audit.Status = "reloaded"
	configWaits     audit.Status = "waits"
	configBroken    audit.Status = "broken"
	configConfirmed audit.Status = "confirmed"
)

// settleFile is how long a file must be left alone before it is read: editors write it in
// several steps.
const settleFile = 100 * time.Millisecond

// acceptPoll is how often haldir looks whether a change was confirmed, and whether the file is
// another one although no directory that is watched has said so: a link may have been changed
// above them.
const acceptPoll = time.Second

// follow watches the config until ctx ends. Editors replace files, so that the
// directories are watched: that of the file, and that of what it links to.
func (f *follower) follow(ctx context.Context) {
	path := f.a.cfg.Path
	if path == "" {
		return
	}
	f.watch(ctx, path)
}

func (f *follower) watch(ctx context.Context, path string) {
	w, err := watcher(path)
	if err != nil {
		f.a.log.Warn().Err(err).Msg("the config cannot be watched: changes of it are seen a second later")
		w = &fsnotify.Watcher{} // nothing comes from it
	} else {
		defer func() { _ = w.Close() }()
	}
	f.mu.Lock()
	f.seen = f.a.cfg.SHA256
	f.mu.Unlock()
	quiet := time.NewTimer(settleFile) // it may have been saved before it was watched
	poll := time.NewTicker(acceptPoll)
	defer poll.Stop()
	var last fs.FileInfo
	for {
		select {
		case e, ok := <-w.Events:
			if !ok {
				return
			}
			if mine(e.Name, path) {
				quiet.Reset(settleFile)
			}
		case err, ok := <-w.Errors:
			if !ok {
				return
			}
			f.a.log.Warn().Err(err).Msg("watch the config")
			quiet.Reset(settleFile)
		case <-quiet.C:
			f.look(ctx, path)
		case <-poll.C:
			if info, err := os.Stat(path); err == nil && !unchanged(last, info) {
				last = info
				quiet.Reset(settleFile)
			}
			f.accepted(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// watcher watches the directories in which the file is changed.
func watcher(path string) (*fsnotify.Watcher, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	err = w.Add(filepath.Dir(path))
	if target, e := filepath.EvalSymlinks(path); e == nil && filepath.Dir(target) != filepath.Dir(path) {
		err = errors.Join(err, w.Add(filepath.Dir(target)))
	}
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

func unchanged(a, b fs.FileInfo) bool {
	return a != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// mine reports whether an event in a directory may be about the file: by its name, or
// by that of what it links to. A link's own links are not followed here.
func mine(name, path string) bool {
	if filepath.Base(name) == filepath.Base(path) {
		return true
	}
	target, err := filepath.EvalSymlinks(path)
	return err != nil || filepath.Base(name) == filepath.Base(target) || filepath.Base(target) != filepath.Base(path)
}

// look reads the file and deals with what has changed.
func (f *follower) look(ctx context.Context, path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	// One that is being replaced, or was removed, leaves the rules of before in force, and so does
	// what is no file: the writer of a pipe may keep haldir waiting.
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return
	}
	data, err := files.Read(path)
	if err != nil {
		return
	}
	sum := sha256.Sum256(data)
	if sum == f.seen {
		return
	}
	f.seen, f.waiting = sum, nil
	if sum == f.a.cfg.SHA256 { // it is again as it was
		f.notice("")
		f.tell(ctx, sum, nil, "")
		return
	}
	cfg, err := config.Parse(data, path)
	if err != nil {
		if problems, ok := errors.AsType[config.Problems](err); ok {
			for _, p := range problems {
				f.a.log.Error().Msg(p.String())
			}
		}
		f.a.log.Error().Msg("the config has mistakes; the rules of before hold")
		f.broken(ctx, sum, first(err))
		return
	}
	why := config.Loosened(f.a.cfg, cfg)
	if len(why) > 0 && f.a.settings.Reload != "auto" {
		f.waiting, f.wait = cfg, rand.Text()
		waits := strings.Join(why, "; ")
		f.tell(ctx, sum, why, "")
		f.a.log.Warn().Str("because", waits).Msg("the changed config waits for a person to confirm it; run: " + f.a.command() + " reload")
		f.record(ctx, configWaits, sum, waits)
		f.notice("haldir.yaml was changed; until a person confirms it by `" + f.a.command() + " reload`, the rules of before hold: " + waits)
		return
	}
	f.adopt(ctx, cfg, strings.Join(why, "; "))
}

// broken tells everybody why a file is not taken.
func (f *follower) broken(ctx context.Context, sum [sha256.Size]byte, why string) {
	f.record(ctx, configBroken, sum, why)
	f.notice("haldir.yaml was changed and has mistakes, so the rules of before hold: " + why)
	f.tell(ctx, sum, nil, why)
}

func first(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// tell says to the haldirs that run beside this one what it makes of the file.
func (f *follower) tell(ctx context.Context, sum [sha256.Size]byte, waits []string, refuses string) {
	p := &f.a.self
	p.Config = f.a.lasting() // the console may have begun without one
	p.Seen, p.Waits, p.Wait, p.Refuses = hex.EncodeToString(sum[:]), waits, "", refuses
	if len(waits) > 0 {
		p.Wait = f.wait
	}
	if err := f.a.ledger.Introduce(ctx, *p); err != nil {
		f.a.log.Error().Err(err).Msg("note what is made of the changed config")
	}
}

// acceptedKey is under which a person's word is kept for one that waits, until it has heard it.
func acceptedKey(wait string) string { return "reload/confirmed/" + wait }

// accepted looks whether a person has confirmed what waits.
func (f *follower) accepted(ctx context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting == nil {
		return
	}
	key := acceptedKey(f.wait)
	if raw, err := f.a.ledger.LoadCatalogue(ctx, key); err != nil || raw == nil {
		return
	}
	cfg := f.waiting
	f.waiting = nil
	f.adopt(ctx, cfg, "a person has confirmed it")
	if err := f.a.ledger.SaveCatalogue(ctx, key, nil); err != nil { // nobody waits by this id any more
		f.a.log.Warn().Err(err).Msg("forget that a change of the config was confirmed")
	}
}

// adopt puts a config in force. Upstreams whose block is as it was are left alone; the
// calls of those that are not end first. It reports whether it is in force.
func (f *follower) adopt(ctx context.Context, cfg *config.Config, why string) bool {
	a := f.a
	settings, err := a.layersAnew().Settings(cfg)
	if err != nil {
		a.log.Error().Err(err).Msg("the config was changed; the rules of before hold")
		f.broken(ctx, cfg.SHA256, err.Error())
		return false
	}
	settings.StateDir, settings.SessionID, settings.Keyring = a.settings.StateDir, a.settings.SessionID, a.settings.Keyring
	gone, fresh, heirs := a.arrange(cfg, func() { f.srv.Changed() })
	a.cfg, a.settings = cfg, settings
	a.ledger.Retain(a.retention())
	r := a.rules()
	r.Heirs = map[string]bool{}
	for u := range heirs {
		r.Heirs[u.Name()] = true
	}
	r.Inherit = func() {
		for u, before := range heirs {
			u.Inherit(before)
		}
	}
	f.srv.Adopt(r)
	a.introduce(fresh)
	for _, u := range gone {
		a.retiring.Go(func() {
			u.Drain(ctx)
			u.Close()
		})
	}
	for _, w := range cfg.Warnings {
		a.log.Warn().Msg(w.String())
	}
	a.log.Info().Str("config", hex.EncodeToString(cfg.SHA256[:6])).Int("started", len(fresh)).Int("ended", len(gone)).Msg("the changed config is in force")
	f.record(ctx, configReloaded, cfg.SHA256, why)
	f.tell(ctx, cfg.SHA256, nil, "")
	if f.adopted != nil {
		f.adopted(cfg)
	}
	return true
}

func (f *follower) record(ctx context.Context, s audit.Status, sum [sha256.Size]byte, text string) {
	if err := f.a.ledger.RecordConfig(ctx, s, audit.Hash(sum), text); err != nil {
		f.a.log.Error().Err(err).Msg("a change of the config could not be recorded")
	}
}

// notice says something by haldir_check_permission.
func (f *follower) notice(text string) {
	r := f.a.rules()
	r.Notice = text
	f.srv.Adopt(r)
}

// arrange makes the upstreams of a config out of those that run. gone are those that it
// does not have any more, fresh those that are to be started, heirs those among them that
// are a server of before, with other settings.
func (a *app) arrange(cfg *config.Config, changed func()) (gone, fresh []*upstream.Upstream, heirs map[*upstream.Upstream]*upstream.Upstream) {
	a.upsMu.Lock()
	defer a.upsMu.Unlock()
	heirs = map[*upstream.Upstream]*upstream.Upstream{}
	before := map[string]*upstream.Upstream{}
	for _, u := range a.ups {
		before[u.Name()] = u
	}
	var ups []*upstream.Upstream
	for _, c := range cfg.Upstreams {
		if u := before[c.Name]; u != nil && reflect.DeepEqual(a.blocks[c.Name], c) {
			ups = append(ups, u)
			delete(before, c.Name)
			continue
		}
		u := a.upstream(c, a.shared, changed)
		// What the host has said to one server is for no other.
		if old, was := before[c.Name], a.blocks[c.Name]; old != nil && was.URL == c.URL && was.Command == c.Command && slices.Equal(was.Args, c.Args) {
			heirs[u] = old
		}
		ups, fresh = append(ups, u), append(fresh, u)
	}
	for _, u := range before {
		gone = append(gone, u)
	}
	a.ups, a.blocks = ups, map[string]config.Upstream{}
	for _, c := range cfg.Upstreams {
		a.blocks[c.Name] = c
	}
	return gone, fresh, heirs
}

// verdicts are what the haldirs that run by a file make of it as it is.
type verdicts struct {
	reasons []string // why a person must confirm it first, of all that wait
	waits   []string // their ids
	refuses []string // what those say is wrong with it that do not take it
	unseen  []int    // processes that have not looked at it, which most do at once
	without []int    // processes that began without a file, and look at none
}

func verdictsOf(living []ledger.Process, path string, sum [sha256.Size]byte) (v verdicts) {
	if path == "" { // of what this process alone was told there are none
		return v
	}
	for _, p := range living {
		switch {
		case p.Verb != "serve" && p.Verb != "console":
		case p.Config == "":
			v.without = append(v.without, p.PID)
		case !files.Same(p.Config, path):
		case p.Seen != hex.EncodeToString(sum[:]):
			v.unseen = append(v.unseen, p.PID)
		case p.Wait != "":
			v.waits = append(v.waits, p.Wait)
			for _, w := range p.Waits {
				if !slices.Contains(v.reasons, w) {
					v.reasons = append(v.reasons, w)
				}
			}
		case p.Refuses != "":
			v.refuses = append(v.refuses, fmt.Sprintf("process %d of haldir %s: %s", p.PID, p.Version, p.Refuses))
		}
	}
	return v
}

// verdicts are those of the haldirs that run beside this one.
func (a *app) verdicts(ctx context.Context, path string, sum [sha256.Size]byte) (verdicts, error) {
	if err := a.open(); err != nil {
		return verdicts{}, err
	}
	view, err := a.ledger.View(ctx)
	if errors.Is(err, ledger.ErrNone) {
		return verdicts{}, nil
	}
	v := verdictsOf(view.Living, path, sum)
	if _, named, e := a.layers.ConfigPath(); e != nil || named {
		v.without = nil // they would not go by it if they were started anew
	}
	return v, err
}

// verdictWait is how long the haldirs that run are waited for until they have looked at a change.
// They do once the file is left alone for a moment, settleFile, and after acceptPoll at the latest.
const verdictWait = 3 * time.Second

// settled are the verdicts on a file once all have looked at it, or after verdictWait. The file may
// change meanwhile: sum says what it is now.
func (a *app) settled(ctx context.Context, path string, sum func() [sha256.Size]byte) (verdicts, error) {
	for end := time.Now().Add(verdictWait); ; time.Sleep(settleFile / 4) {
		v, err := a.verdicts(ctx, path, sum())
		if err != nil || len(v.unseen) == 0 || time.Now().After(end) {
			return v, err
		}
	}
}

// current is what a file is by then; if it cannot be read, what it was.
func current(path string, was [sha256.Size]byte) func() [sha256.Size]byte {
	return func() [sha256.Size]byte {
		text, err := files.Read(path)
		if err != nil {
			return was
		}
		return sha256.Sum256(text)
	}
}

// tellHeldBack says of rules that are shown that they are not in force where haldir runs. It is
// no reason to fail that this cannot be found out.
func (a *app) tellHeldBack(ctx context.Context) {
	v, err := a.verdicts(ctx, a.cfg.Path, a.cfg.SHA256)
	switch {
	case err != nil:
	case len(v.waits) > 0:
		a.say("haldir: in a running haldir these rules are not in force until a person confirms it: %s reload", a.command())
	case len(v.unseen)+len(v.refuses)+len(v.without) > 0:
		a.say("haldir: in a running haldir these rules are not in force; see: %s doctor", a.command())
	}
}

func reloadCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Confirm a change of the config that loosens a rule or starts a command",
		Long: "A running haldir takes changes of haldir.yaml by itself. One that loosens a rule or\n" +
			"starts another command waits until a person confirms it here, at a terminal, since\n" +
			"an agent that can write files could make it. reload: auto in haldir.yaml ends that.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.load(); err != nil {
				return err
			}
			return a.confirmReload(cmd.Context())
		},
	}
}

// confirmReload asks a person about what waits.
func (a *app) confirmReload(ctx context.Context) error {
	v, err := a.settled(ctx, a.cfg.Path, func() [sha256.Size]byte { return a.cfg.SHA256 })
	if err != nil {
		return err
	}
	for _, why := range v.refuses {
		a.say("haldir: a running haldir does not take %s, and goes on with the rules of before; %s", a.place(), plain(why, 300))
	}
	if len(v.without) > 0 {
		a.say("haldir: %s", a.unruled(v))
	}
	switch {
	case len(v.waits) == 0 && len(v.unseen) > 0:
		return fmt.Errorf("a running haldir (%s) has not looked at %s within %v, so there is nothing to confirm yet; see: %s doctor", processes(v.unseen), a.place(), verdictWait, a.command())
	case len(v.waits) == 0:
		a.say("no running haldir waits for %s to be confirmed", a.place())
		return nil
	case len(v.unseen) > 0:
		a.say("haldir: a running haldir (%s) has not looked at %s within %v: this confirms it for the others, and it needs a reload of its own once it goes on", processes(v.unseen), a.place(), verdictWait)
	}
	if err := a.printf("%s\n\nThis change\n", a.cfg.Path); err != nil {
		return err
	}
	for _, r := range v.reasons {
		if err := a.printf("  - %s\n", plain(r, 300)); err != nil {
			return err
		}
	}
	if !a.atTerminal("Put it in force?") {
		return errors.New("nothing was confirmed; the rules of before hold")
	}
	now, err := time.Now().UTC().MarshalText()
	if err != nil {
		return err
	}
	for _, w := range v.waits {
		if err := a.ledger.SaveCatalogue(ctx, acceptedKey(w), now); err != nil {
			return err
		}
	}
	a.say("confirmed; it is in force within a second or two")
	return a.ledger.RecordConfig(ctx, configConfirmed, audit.Hash(a.cfg.SHA256), strings.Join(v.reasons, "; "))
}

// unruled says which haldirs no file rules.
func (a *app) unruled(v verdicts) string {
	return fmt.Sprintf("a running haldir (%s) has begun without a config, and goes on so; to have it go by this file, start it anew, as its client does when you restart that", processes(v.without))
}

// processes names some.
func processes(pids []int) string {
	var list []string
	for _, pid := range pids {
		list = append(list, strconv.Itoa(pid))
	}
	if len(list) == 1 {
		return "process " + list[0]
	}
	return "processes " + strings.Join(list, ", ")
}
