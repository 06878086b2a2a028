package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
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
	since   time.Time            // when it began to wait
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

// acceptPoll is how often haldir looks whether a change was confirmed.
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
	w, err := fsnotify.NewWatcher()
	if err == nil {
		defer func() { _ = w.Close() }()
		err = w.Add(filepath.Dir(path))
		if target, e := filepath.EvalSymlinks(path); e == nil && filepath.Dir(target) != filepath.Dir(path) {
			err = errors.Join(err, w.Add(filepath.Dir(target)))
		}
	}
	if err != nil {
		f.a.log.Warn().Err(err).Msg("the config cannot be watched: changes of it need a restart")
		return
	}
	f.mu.Lock()
	f.seen = f.a.cfg.SHA256
	f.mu.Unlock()
	quiet := time.NewTimer(settleFile) // it may have been saved before it was watched
	poll := time.NewTicker(acceptPoll)
	defer poll.Stop()
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
			f.accepted(ctx)
		case <-ctx.Done():
			return
		}
	}
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
	data, err := files.Read(path)
	if err != nil {
		return // it is being replaced, or was removed: the rules of before hold
	}
	sum := sha256.Sum256(data)
	if sum == f.seen {
		return
	}
	f.seen, f.waiting = sum, nil
	if sum == f.a.cfg.SHA256 { // it is again as it was
		f.notice("")
		f.tell(ctx, sum, "")
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
		f.waiting, f.since = cfg, time.Now()
		waits := strings.Join(why, "; ")
		f.tell(ctx, sum, waits)
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
	f.tell(ctx, sum, "")
}

func first(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// verdict is what a running haldir makes of the file as it saw it last.
type verdict struct {
	Sum   string `json:"sum"`             // of the file, SHA-256 in hex
	Waits string `json:"waits,omitempty"` // why a person must confirm it first; "" if it need not
}

// verdictKey is under which a process keeps its own: one that has ended waits for nobody.
func verdictKey(p ledger.Process) string {
	return fmt.Sprintf("reload/seen/%d-%d", p.PID, p.Started.UnixNano())
}

// tell keeps it for other verbs.
func (f *follower) tell(ctx context.Context, sum [sha256.Size]byte, waits string) {
	raw, err := json.Marshal(verdict{hex.EncodeToString(sum[:]), waits})
	if err == nil {
		err = f.a.ledger.SaveCatalogue(ctx, verdictKey(f.a.self), raw)
	}
	if err != nil {
		f.a.log.Error().Err(err).Msg("note what is made of the changed config")
	}
}

func acceptedKey(sum [sha256.Size]byte) string {
	return "reload/confirmed/" + hex.EncodeToString(sum[:])
}

// accepted looks whether a person has confirmed what waits, after it began to: an older
// word was about an older change.
func (f *follower) accepted(ctx context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting == nil {
		return
	}
	raw, err := f.a.ledger.LoadCatalogue(ctx, acceptedKey(f.waiting.SHA256))
	var at time.Time
	if err != nil || raw == nil || at.UnmarshalText(raw) != nil || at.Before(f.since) {
		return
	}
	cfg := f.waiting
	f.waiting = nil
	f.adopt(ctx, cfg, "a person has confirmed it")
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
	f.tell(ctx, cfg.SHA256, "")
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

// verdicts says why a person must confirm a file before the haldirs that run by it take it, "" if
// none waits for that. unseen reports that one has not looked at the file as it is, which most do
// at once.
func verdicts(ctx context.Context, l *ledger.Ledger, living []ledger.Process, path string, sum [sha256.Size]byte) (waits string, unseen bool, err error) {
	for _, p := range living {
		if p.Verb != "serve" && p.Verb != "console" || !files.Same(p.Config, path) {
			continue
		}
		raw, err := l.LoadCatalogue(ctx, verdictKey(p))
		if err != nil {
			return "", false, err
		}
		var v verdict
		if json.Unmarshal(raw, &v) != nil || v.Sum != hex.EncodeToString(sum[:]) {
			unseen = true
			continue
		}
		waits = cmp.Or(waits, v.Waits)
	}
	return waits, unseen, nil
}

// verdicts are those of the haldirs that run beside this one.
func (a *app) verdicts(ctx context.Context, path string, sum [sha256.Size]byte) (waits string, unseen bool, err error) {
	if err := a.open(); err != nil {
		return "", false, err
	}
	view, err := a.ledger.View(ctx)
	if errors.Is(err, ledger.ErrNone) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	return verdicts(ctx, a.ledger, view.Living, path, sum)
}

// tellHeldBack says of rules that are shown that they are not in force where haldir runs. It is
// no reason to fail that this cannot be found out.
func (a *app) tellHeldBack(ctx context.Context) {
	if waits, _, err := a.verdicts(ctx, a.cfg.Path, a.cfg.SHA256); err == nil && waits != "" {
		a.say("haldir: in a running haldir these rules are not in force until a person confirms it: %s reload", a.command())
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
			text, _, err := a.verdicts(cmd.Context(), a.cfg.Path, a.cfg.SHA256)
			if err != nil {
				return err
			}
			if text == "" {
				a.say("no running haldir waits for %s to be confirmed", a.place())
				return nil
			}
			if err := a.printf("%s\n\nThis change\n", a.cfg.Path); err != nil {
				return err
			}
			for w := range strings.SplitSeq(text, "; ") {
				if err := a.printf("  - %s\n", plain(w, 300)); err != nil {
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
			if err := a.ledger.SaveCatalogue(cmd.Context(), acceptedKey(a.cfg.SHA256), now); err != nil {
				return err
			}
			a.say("confirmed; it is in force within a second or two")
			return a.ledger.RecordConfig(cmd.Context(), configConfirmed, audit.Hash(a.cfg.SHA256), text)
		},
	}
}
