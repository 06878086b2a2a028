package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/clients"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/doctor"
	"github.com/haldir-mcp/haldir/internal/files"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/packs"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream/pins"
)

// examination is one look of doctor.
type examination struct {
	*app
	wait   time.Duration
	path   string // of the config, "" for the flags
	code   int    // of the worst so far
	found  []doctor.Finding
	usable bool // the ledger can be read
	view   ledger.View
}

// visit is what `haldir doctor` was told.
type visit struct {
	wait                     time.Duration
	asJSON, fix, yes, strict bool
}

func doctorCommand(a *app) *cobra.Command {
	v := &visit{}
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look at all that haldir rests on, and say what to do",
		Long: "doctor looks at the config, the state directory, the ledger and its whole audit, the\n" +
			"clock, every upstream and what it offers, the MCP clients and the programs, and says\n" +
			"what is wrong, what that means, and what mends it. It changes nothing, but that a\n" +
			"sign-in which is due is renewed, as with any connection.\n\n" +
			"With --fix it does what is safe by itself, after it has said it and been told yes: it\n" +
			"closes files to others, and settles for processes that died. What is a person's to\n" +
			"decide it never does. Then it looks again.\n\n" +
			"exit status: 0 nothing is wrong, 1 something does not work, 2 the config is broken,\n" +
			"4 the audit was changed or the ledger is damaged; the greatest counts. Warnings and\n" +
			"notes do not, but with --strict a warning is 1.",
		Example: "  haldir doctor\n  haldir doctor --fix\n  haldir doctor --json --strict",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return v.run(cmd.Context(), a) },
	}
	f := cmd.Flags()
	f.BoolVar(&v.asJSON, "json", false, "print one JSON object")
	f.BoolVar(&v.fix, "fix", false, "mend what is safe to mend, and look again")
	f.BoolVarP(&v.yes, "yes", "y", false, "with --fix: do not ask")
	f.BoolVar(&v.strict, "strict", false, "warnings count: exit with 1")
	durationVar(f, &v.wait, "wait", pinsWait, "how long to wait for the audit and for the upstreams, each")
	return cmd
}

func (v *visit) run(ctx context.Context, a *app) error {
	if v.wait <= 0 {
		return usage("--wait %s is no time in which anything answers; give it some, such as %s", v.wait, pinsWait)
	}
	if v.yes && !v.fix {
		return usage("--yes goes with --fix")
	}
	if v.fix && !v.yes && (v.asJSON || terminal(a.in) == nil) {
		return usage("nobody is at a terminal to be asked; see what is wrong by haldir doctor alone, or say --yes")
	}
	e, err := v.look(ctx, a)
	if err != nil {
		return err
	}
	var did []string
	if v.fix {
		if !v.asJSON {
			if err := e.print(nil, false); err != nil {
				return err
			}
		}
		did = v.mend(ctx, e)
		if e, err = v.look(ctx, a); err != nil {
			return err
		}
	}
	warned := v.strict && slices.ContainsFunc(e.found, func(f doctor.Finding) bool { return f.Severity == doctor.Warning })
	if warned && e.code == exitDone {
		e.code = exitFailed
	}
	if err := e.print(did, v.asJSON); err != nil || e.code == exitDone {
		return err
	}
	return &exit{code: e.code, err: errors.New("something is wrong"), silent: true}
}

// look examines everything once. It leaves nothing open, so that what is mended afterwards
// is seen by a look of its own.
func (v *visit) look(ctx context.Context, a *app) (*examination, error) {
	own := a.alike()
	own.looking, own.patience = true, v.wait+time.Minute // --wait ends it, not timeouts.connect
	e := &examination{app: own, wait: v.wait}
	e.examine(ctx)
	return e, own.close()
}

// alike is an app that was told the same, and has done nothing yet.
func (a *app) alike() *app {
	return &app{in: a.in, out: a.out, err: a.err, flags: a.flags, layers: a.layersAnew(), quick: a.quick, verb: a.verb}
}

// mend does what may be done, one after another, and says what that was.
func (v *visit) mend(ctx context.Context, e *examination) (did []string) {
	some := false
	for _, f := range e.found {
		m := f.Mend
		if f.ID == doctor.Leftovers {
			m = &doctor.Mend{Does: "record the calls of processes that died as abandoned", Do: func() error { return e.settle(ctx) }}
		}
		if f.ID == doctor.CompactionLeft {
			m = &doctor.Mend{Does: "remove what a compaction has left that was killed", Do: func() error { return e.sweep(ctx) }}
		}
		if m == nil {
			continue
		}
		some = true
		if !v.asJSON {
			e.say("fix: %s", m.Does)
		}
		if !v.yes && !e.atTerminal("Do it?") {
			continue
		}
		if err := m.Do(); err != nil {
			e.say("haldir: that failed: %v", err)
			continue
		}
		did = append(did, m.Does)
	}
	if !some && !v.asJSON {
		e.say("there is nothing that haldir may mend by itself")
	}
	return did
}

// settle does what every haldir does that uses the ledger.
func (e *examination) settle(ctx context.Context) (err error) {
	own := e.alike()
	if own.settings = e.settings; own.settings.StateDir == "" {
		return errors.New("the state directory is not known")
	}
	own.log = e.log
	if err := own.open(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, own.close()) }()
	own.ledger.Watched() // removes what dead ones have left
	_, err = own.ledger.View(ctx)
	return err
}

// sweep has the next to open the ledger remove what a compaction has left, which says nothing if it cannot.
func (e *examination) sweep(ctx context.Context) error {
	err := e.settle(ctx)
	if _, there := os.Lstat(e.compacted()); err == nil && there == nil {
		err = fmt.Errorf("%s is still there; find out what keeps it, and remove it", e.compacted())
	}
	return err
}

// compacted is what a compaction writes.
func (e *examination) compacted() string {
	return filepath.Join(e.settings.StateDir, "haldir.db.compact")
}

// add is for what is not wrong enough to count in the exit status.
func (e *examination) add(id doctor.ID, s doctor.Severity, about string, fix doctor.Fix, format string, args ...any) {
	e.take(exitFailed, doctor.New(id, s, about, fix, format, args...))
}

// take adds findings; those that are errors have a code.
func (e *examination) take(code int, found ...doctor.Finding) {
	for _, f := range found {
		f.Text = e.secrets.clean(f.Text)
		if !e.quick.shown() { // a shell cannot run what is not written out
			f.Commands = slices.DeleteFunc(slices.Clone(f.Commands), func(c string) bool { return strings.HasPrefix(c, e.command()+" ") })
		}
		if e.found = append(e.found, f); f.Severity == doctor.Failure {
			e.code = max(e.code, code)
		}
	}
}

func (e *examination) examine(ctx context.Context) {
	sound := e.config()
	if e.settings.StateDir == "" {
		return // the settings are not to be used
	}
	files := e.files()
	e.take(exitFailed, files.Config(e.path)...)
	e.take(exitFailed, files.Log(e.settings.LogFile)...)
	e.take(exitFailed, files.State(e.settings.StateDir)...)
	e.records(ctx)
	e.programs(ctx)
	if !sound {
		return
	}
	e.vaulted()
	e.clients(ctx, files)
	e.hooks()
	srv, err := e.endpoint(ctx)
	if err != nil {
		e.add(doctor.SessionUnknown, doctor.Failure, "session", doctor.Do("name another one: %s", e.command()+" session list"), "%v", err)
		return
	}
	e.upstreams(ctx)
	e.tools(srv)
	e.take(exitFailed, doctor.Shadows(e.cfg.Ruleset, e.command()+" audit list")...)
}

func (e *examination) files() doctor.Files {
	return doctor.Files{Quote: shellWord, Free: ledger.DiskFree, Windows: runtime.GOOS == "windows"}
}

// said reports whether there is a finding of a kind.
func (e *examination) said(id doctor.ID) bool {
	return slices.ContainsFunc(e.found, func(f doctor.Finding) bool { return f.ID == id && f.Severity != doctor.Fine })
}

// config reports whether the file can be used.
func (e *examination) config() bool {
	err := e.load()
	path, _, _ := e.layers.ConfigPath() // what is wrong with it, load has said
	if len(e.quick.upstreams) == 0 {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() { // a pipe is read only once
			e.path = path
		}
	}
	problems, broken := errors.AsType[config.Problems](err)
	switch {
	case broken:
		for _, p := range problems {
			e.problem(p)
		}
	case err != nil && e.cfg != nil:
		e.unset(err)
	case err != nil:
		fix := doctor.Fix{Text: "name another file with --config, or HALDIR_CONFIG"}
		if errors.Is(err, fs.ErrPermission) && e.path != "" {
			fix = e.files().Readable(e.path)
		}
		if len(e.quick.upstreams) > 0 {
			fix = doctor.Fix{Text: "correct the flag that it names"}
		}
		e.take(exitUsage, doctor.New(doctor.ConfigBroken, doctor.Failure, "config", fix, "%v", err))
	default:
		for _, p := range e.cfg.Warnings {
			e.problem(p)
		}
		about := contents(e.cfg)
		switch {
		case len(e.quick.upstreams) > 0:
			e.add(doctor.Config, doctor.Fine, "config", doctor.Fix{}, "the flags: %s", about)
		case e.cfg.Path == "":
			e.add(doctor.ConfigNone, doctor.Warning, "config", doctor.Do("make one: %s; or write %s, or name a file with --config", itself()+" init", path), "there is no file")
		default:
			e.add(doctor.Config, doctor.Fine, "config", doctor.Fix{}, "%s: %s", e.cfg.Path, about)
		}
	}
	if err != nil && e.cfg == nil && e.settings.StateDir == "" { // the ledger can be looked at without
		if err := e.set(); err != nil {
			e.unset(err)
		}
	}
	return err == nil
}

// unset says why the settings are not to be used.
func (e *examination) unset(err error) {
	e.take(exitUsage, doctor.New(doctor.ConfigBroken, doctor.Failure, "config", doctor.Fix{Text: "correct the flag, the variable or the key that it names"}, "%v", err))
}

func (e *examination) problem(p config.Problem) {
	fix := doctor.Do("mend it there; all keys are told by: %s", itself()+" schema")
	if p.Warning {
		e.take(exitUsage, doctor.New(doctor.ConfigWarning, doctor.Warning, "config", fix, "%s", p))
		return
	}
	e.take(exitUsage, doctor.New(doctor.ConfigBroken, doctor.Failure, "config", fix, "%s", p))
}

// records looks at the ledger. What cannot be told because of one thing is left out.
func (e *examination) records(ctx context.Context) {
	if info, err := os.Stat(e.settings.StateDir); err != nil || !info.IsDir() {
		return // that has been said
	}
	err := e.open()
	if err == nil {
		e.view, err = e.ledger.View(ctx)
	}
	if errors.Is(err, ledger.ErrNone) {
		e.add(doctor.StateNone, doctor.Note, "ledger", doctor.Fix{}, "%s has no ledger yet", e.settings.StateDir)
		return
	}
	if ledger.Retryable(err) && e.said(doctor.StateUnusable) {
		return // it follows from that, which says how to mend it
	}
	if err != nil {
		e.broken(err)
		return
	}
	e.usable = true
	e.take(exitFailed, doctor.Time(e.view.Now, e.view.Wall, e.command()+" ledger reset-clock --reason 'the clock was wrong'")...)
	e.users()
	if e.view.Format < ledger.FormatVersion {
		e.add(doctor.LedgerOlder, doctor.Note, "ledger", doctor.Run(e.command()+" ledger stats"), "the file is of format %d, and this haldir writes %d", e.view.Format, ledger.FormatVersion)
	}
	e.verify(ctx)
	if e.usable && e.view.Format == ledger.FormatVersion {
		e.affairs(ctx)
	}
}

// broken says why the ledger cannot be used.
func (e *examination) broken(err error) {
	id, code, fix := doctor.LedgerFailed, exitFailed, doctor.Fix{Text: "mend what it names, and look again"}
	damage, changed := damaged(err)
	busy, waits := errors.AsType[*ledger.BusyError](err)
	switch {
	case changed:
		id, code = doctor.AuditChanged, exitDamaged
		fix = doctor.Do("keep the file as it is and compare it with a backup; then put that back, or set the file aside and go on with what can be verified: %s", e.command()+" ledger recover")
		err = damage
	case errors.Is(err, ledger.ErrDamaged):
		id, code = doctor.LedgerDamaged, exitDamaged
		fix = doctor.Do("put a backup back, or set the file aside and go on with what can be verified: %s", e.command()+" ledger recover")
	case waits && busy.Holder > 0:
		id = doctor.LedgerBusy
		fix = doctor.Do("if it is suspended, let it go on: %s", fmt.Sprintf("kill -CONT %d", busy.Holder))
	case errors.Is(err, ledger.ErrBusy):
		id, fix = doctor.LedgerBusy, doctor.Fix{Text: "find the haldir that is suspended by ps, and let it go on with fg"}
	case errors.Is(err, ledger.ErrNewer):
		id, fix = doctor.LedgerNewer, doctor.Fix{Text: "upgrade haldir, or begin another ledger with --state-dir"}
	case errors.Is(err, fs.ErrPermission):
		fix = doctor.Fix{Text: "give the files of the state directory back to this user"}
	}
	e.take(code, doctor.New(id, doctor.Failure, "ledger", fix, "%v", err))
}

// users says who else uses the ledger, and who has left something behind.
func (e *examination) users() {
	shown := make([]string, 0, len(e.view.Living))
	for _, p := range e.view.Living {
		text := "one that says nothing of itself"
		if p.PID > 0 {
			text = fmt.Sprintf("haldir %s (process %d, since %s)", plain(p.Verb, 40), p.PID, when(p.Started))
			if p.Config != "" {
				text += " with " + plain(p.Config, 300)
			}
		}
		shown = append(shown, text)
		if p.PID > 0 && p.Version != version() {
			e.add(doctor.ProcessVersions, doctor.Warning, "versions", doctor.Do("start it anew: have its client connect again, or end it: %s", fmt.Sprintf("kill %d", p.PID)),
				"process %d (haldir %s) is of version %s, and this one of %s", p.PID, plain(p.Verb, 40), plain(p.Version, 40), version())
		}
	}
	if len(shown) > 0 {
		e.add(doctor.Processes, doctor.Fine, "processes", doctor.Fix{}, "also using this ledger: %s", strings.Join(shown, "; "))
	}
	if n := e.view.Remains; n > 0 && e.view.Format >= ledger.FormatVersion {
		e.add(doctor.CompactionLeft, doctor.Note, "ledger", doctor.Run(e.command()+" doctor --fix"), "a compaction was killed and has left %d KiB: %s", (n+1023)>>10,
			e.compacted())
	}
	// A console that died has left both. What writes for them brings an older file up to
	// date, which is a step of its own.
	if dead := max(e.view.Dead, e.ledger.DeadWatchers()); dead > 0 && e.view.Format >= ledger.FormatVersion {
		e.add(doctor.Leftovers, doctor.Note, "ledger", doctor.Run(e.command()+" doctor --fix"), "%s ended without a word, with %s under way",
			count(dead, "process", "processes"), count(e.view.Orphans, "call", "calls"))
	}
}

// verify reads the whole audit, as far as the time allows.
func (e *examination) verify(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, e.wait)
	defer cancel()
	v, err := e.ledger.Verify(ctx, e.progress())
	switch {
	case err == nil:
		e.add(doctor.Ledger, doctor.Fine, "ledger", doctor.Fix{}, "%s: %d records, the chain is intact", e.settings.StateDir, v.Count())
	case ctx.Err() != nil:
		e.add(doctor.AuditUnread, doctor.Warning, "ledger", doctor.Run(e.command()+" audit verify"), "the audit could not be read within %s", e.wait)
	case errors.Is(err, fs.ErrPermission) && e.said(doctor.StateFileAccess):
		e.add(doctor.AuditUnread, doctor.Warning, "ledger", doctor.Fix{Text: aboveFiles}, "%v", err)
	default:
		_, changed := damaged(err)
		e.usable = changed // the rest can be read
		e.broken(err)
	}
}

// aboveFiles is the fix of what follows from another finding.
const aboveFiles = "give this user the files of the state directory that are named above"

// damaged is what was done to the record, or to the key by which it is known.
func damaged(err error) (error, bool) {
	if damage, changed := errors.AsType[*audit.Damage](err); changed {
		return damage, true
	}
	return err, errors.Is(err, ledger.ErrKey)
}

// affairs are what the ledger knows that waits for a person.
func (e *examination) affairs(ctx context.Context) {
	if !e.view.Doubt.IsZero() {
		e.add(doctor.LedgerDoubt, doctor.Warning, "ledger", doctor.Run(e.command()+" ledger trust --reason 'seen after the recovery'"), "since %s it is not known what had been spent before", when(e.view.Doubt))
	}
	if s, err := e.ledger.Stopped(ctx); err == nil && s != nil {
		e.add(doctor.Stopped, doctor.Warning, "ledger", doctor.Run(e.command()+" resume"), "haldir was stopped at %s: %s", when(s.At), plain(s.Reason, 200))
	}
	if list, err := e.ledger.Approvals(ctx); err == nil && len(list) > 0 {
		e.add(doctor.ApprovalsPending, doctor.Note, "approval", doctor.Run(e.command()+" approvals"), "waiting for a person: %s", count(len(list), "call", "calls"))
	}
	if e.cfg == nil {
		return
	}
	own, others := e.settings.Retain, e.view.Kept
	if own > 0 && others.Place != "" && others.Place != e.retention().Place && (others.Keep == 0 || others.Keep > own) {
		keeps := "for ever"
		if others.Keep > 0 {
			keeps = fmt.Sprintf("for %d days", others.Keep/(24*time.Hour))
		}
		e.add(doctor.RetentionHeld, doctor.Note, "ledger", doctor.Fix{Text: "set audit: {retain} in " + others.Place + ", or take the file away if it is not used"}, "%s wants records kept %s, which is longer than this config does", others.Place, keeps)
	}
	v, err := e.settled(ctx, e.cfg.Path, current(e.cfg.Path, e.cfg.SHA256)) // it may have been saved meanwhile
	if err != nil {
		return // what is wrong with the ledger is told already
	}
	if len(v.waits) > 0 {
		e.add(doctor.ReloadPending, doctor.Note, "config", doctor.Run(e.command()+" reload"), "what was saved waits for a person to confirm it: %s", plain(strings.Join(v.reasons, "; "), 300))
	}
	if len(v.unseen) > 0 {
		e.add(doctor.ReloadUnseen, doctor.Warning, "config", doctor.Fix{Text: "have its client start it anew, or let it go on by kill -CONT if it is suspended"}, "%s of a running haldir has not looked at what was saved", processes(v.unseen))
	}
	if len(v.without) > 0 {
		e.add(doctor.ReloadWithout, doctor.Warning, "config", doctor.Fix{Text: "start it anew, as its client does when you restart that"}, "%s of a running haldir has begun without a config", processes(v.without))
	}
	for _, why := range v.refuses {
		e.add(doctor.ReloadRefused, doctor.Warning, "config", doctor.Fix{Text: "have its client start it anew"}, "a running haldir does not take what was saved; %s", plain(why, 300))
	}
}

func (e *examination) programs(ctx context.Context) {
	host, _ := machine() // it need not have a home directory
	if host.Own == "" {
		return // nothing can be compared with it
	}
	e.take(exitFailed, doctor.Programs(ctx, host.Path(), host.Own, version())...)
}

// vaulted looks whether secrets that are stored can be read.
func (e *examination) vaulted() {
	if _, err := e.vault().Names(); err != nil {
		fix := doctor.Fix{Text: "open the keyring, or do what it says"}
		if errors.Is(err, fs.ErrPermission) && e.said(doctor.StateFileAccess) {
			fix.Text = aboveFiles
		}
		e.add(doctor.Secrets, doctor.Failure, "secrets", fix, "%v", err)
	}
}

// clients looks for servers that go past haldir. Without a file of upstreams none does.
func (e *examination) clients(ctx context.Context, files doctor.Files) {
	if e.path == "" {
		return
	}
	path, named, err := e.layers.ConfigPath()
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return // it could be read, so this is none of it
	}
	if _, err := os.Getwd(); err != nil { // each client would say it
		e.add(doctor.ClientBroken, doctor.Warning, "clients", doctor.Fix{Text: "go to a directory that is there, and look again"}, "the directory in which haldir was started is gone: %v", err)
		return
	}
	i := &adoption{a: e.alike()}
	i.a.looking = true
	o, err := i.options(path, named)
	if err != nil {
		e.add(doctor.ClientBroken, doctor.Warning, "clients", doctor.Fix{Text: "set the variable, or mend the file, that it names, and look again"}, "%v", err)
		return
	}
	init := func(c clients.Client) string { return e.command() + " init --client " + string(c) }
	clean := func(text string, masks []string) string {
		i.mask(masks)
		return i.a.secrets.clean(text)
	}
	e.take(exitFailed, doctor.Clients(ctx, o, doctor.Own{Config: e.cfg, Version: version(), Files: files, Init: init, Clean: clean})...)
}

// hooks looks for what answers a client's forms in place of a person.
func (e *examination) hooks() {
	if !slices.ContainsFunc(e.cfg.Ruleset.Policies, func(r policy.Rule) bool { return r.Type == policy.TypeApproval }) {
		return
	}
	own := os.Getenv("CLAUDE_CONFIG_DIR")
	if home, err := os.UserHomeDir(); err == nil && own == "" {
		own = filepath.Join(home, ".claude")
	}
	here := filepath.Join(workingDir(), ".claude")
	paths := []string{filepath.Join(own, "settings.json"), filepath.Join(here, "settings.json"), filepath.Join(here, "settings.local.json")}
	if own == here { // one is at home
		paths = paths[1:]
	}
	for _, path := range paths {
		raw, err := files.Read(path) // the client's own settings, which its user has chosen
		if err != nil {
			continue // most are not there
		}
		hook, ok := wire.At(raw, "hooks", "Elicitation")
		if hooks, err := wire.Elements(hook.Value); ok && (err != nil || len(hooks) > 0) {
			e.add(doctor.ApprovalHook, doctor.Warning, "approval", doctor.Fix{Text: "take it out, unless you mean it to answer for you"}, "%s has a hook for elicitation", path)
		}
	}
}

// endpoint makes the upstreams and the endpoint before them, for the session that was named if
// that can be had.
func (e *examination) endpoint(ctx context.Context) (*proxy.Server, error) {
	id := e.settings.SessionID
	if id != "" && !e.usable {
		e.settings.SessionID = ""
	}
	srv, err := e.server(ctx)
	if errors.Is(err, ledger.ErrNoSession) && id != "" {
		e.add(doctor.SessionUnknown, doctor.Failure, "session", doctor.Do("name one of those there are, or make one: %s", e.command()+" session create"), "%v", err)
		e.settings.SessionID = ""
		srv, err = e.server(ctx)
	}
	if err != nil || !e.usable || e.view.Format != ledger.FormatVersion {
		return srv, err
	}
	s, err := e.ledger.Session(ctx, e.session)
	switch {
	case err != nil:
		return srv, err
	case !s.RevokedAt.IsZero():
		e.add(doctor.SessionOver, doctor.Failure, "session", doctor.Do("make another one, and name that: %s", e.command()+" session create"), "session %s was revoked at %s", s.ID, when(s.RevokedAt))
	case !s.ExpiresAt.IsZero() && !e.view.Now.Before(s.ExpiresAt):
		e.add(doctor.SessionOver, doctor.Failure, "session", doctor.Run(e.command()+" session renew "+s.ID+" --ttl 8h"), "session %s expired at %s", s.ID, when(s.ExpiresAt))
	}
	return srv, nil
}

// tools looks at what becomes of names and schemas, and at patterns that concern nothing.
func (e *examination) tools(srv *proxy.Server) {
	entries, notes := srv.Known()
	for _, n := range notes {
		e.renamed(n)
	}
	unknown := ""
	var names []string
	var all []doctor.Tool
	for _, t := range entries {
		shown := t.Definition()
		if t.Hidden && e.settings.DeniedTools == "hide" {
			shown = nil
		}
		all = append(all, doctor.Tool{Upstream: t.Upstream, Name: t.Tool, Shown: shown})
	}
	for _, u := range e.ups {
		names = append(names, u.Name())
		for _, w := range u.Catalogue().Withheld {
			all = append(all, doctor.Tool{Upstream: u.Name(), Name: w.Name})
		}
		if !u.Catalogue().Known {
			unknown = u.Name()
		}
	}
	e.take(exitFailed, doctor.Schemas(all, func(s string) string { return plain(s, 128) })...)
	e.take(exitFailed, doctor.Weight(all, func(name string) string {
		if len(e.quick.upstreams) > 0 {
			return "--deny " + shellWord(name+"/NAME") + ", where haldir serve is told --upstream"
		}
		return e.command() + " policy add --type deny --tools " + shellWord(name+"/NAME")
	})...)
	if unknown != "" {
		e.add(doctor.PatternsUnknown, doctor.Note, "policies", doctor.Fix{}, "patterns are not compared with tools, as those of %s are unknown", unknown)
		return
	}
	e.take(exitFailed, doctor.Patterns(e.cfg.Ruleset, names, all, e.command()+" tools", packs.Has)...)
}

// renamed says what the agent does not see as the server gives it.
func (e *examination) renamed(n proxy.Note) {
	id, severity, fix := doctor.Withheld, doctor.Note, doctor.Fix{}
	switch n.Kind {
	case proxy.Renamed:
		id = doctor.NameShortened
		if limit := e.settings.ToolNameLimit; limit < usualToolName {
			set := "tool_name_limit: %d in haldir.yaml"
			if len(e.quick.upstreams) > 0 {
				set = "HALDIR_TOOL_NAME_LIMIT=%d where haldir is started"
			}
			fix = doctor.Fix{Text: fmt.Sprintf("if your client takes longer names, set "+set, usualToolName)}
		}
	case proxy.Clash:
		id, severity = doctor.NameClash, doctor.Warning
		fix = e.amend(n.Upstream, "give one of the two servers other arguments, or")
	case proxy.Withheld:
	}
	e.add(id, severity, n.Upstream, fix, "%s: %s", plain(n.Tool, 128), plain(n.Text, 300))
}

// print tells all findings. did is what was mended before.
func (e *examination) print(did []string, asJSON bool) error {
	if asJSON {
		out := map[string]any{"ok": e.code == exitDone, "findings": e.found}
		if did != nil {
			out["fixed"] = did
		}
		return e.printJSON(out)
	}
	red, green, bold, end := e.colours()
	colour := map[doctor.Severity]string{doctor.Fine: green, doctor.Warning: bold, doctor.Failure: red}
	var b strings.Builder
	if len(did) > 0 {
		b.WriteByte('\n')
	}
	for _, f := range e.found {
		c, stop := colour[f.Severity], end
		if c == "" {
			stop = ""
		}
		fmt.Fprintf(&b, "%s%-7s%s  %s: %s\n", c, f.Severity, stop, f.About, indented(f.Text))
		if f.Means != "" {
			fmt.Fprintf(&b, "         %s\n", f.Means)
		}
		if f.Fix != "" {
			fmt.Fprintf(&b, "         → %s\n", f.Fix)
		}
	}
	return e.printf("%s", b.String())
}

// onlooker lets an upstream read what is kept of it, and keeps nothing of what it says.
type onlooker struct{ *ledger.Ledger }

func (o onlooker) LoadCatalogue(ctx context.Context, key string) ([]byte, error) {
	return o.read(func() ([]byte, error) { return o.Ledger.LoadCatalogue(ctx, key) })
}

func (onlooker) SaveCatalogue(context.Context, string, []byte) error { return nil }

// LoadPins implements [upstream.Pins].
func (o onlooker) LoadPins(ctx context.Context, name string) ([]byte, error) {
	return o.read(func() ([]byte, error) { return o.Ledger.LoadPins(ctx, name) })
}

// ChangePins implements [upstream.Pins].
func (o onlooker) ChangePins(ctx context.Context, name string, change func([]byte) ([]byte, []pins.Note, error)) error {
	raw, err := o.LoadPins(ctx, name)
	if err == nil {
		_, _, err = change(raw)
	}
	return err
}

// read reads what may not be there because there is no ledger, or none to be used: then every
// server is one that was never seen.
func (o onlooker) read(f func() ([]byte, error)) ([]byte, error) {
	if o.Ledger == nil {
		return nil, nil
	}
	raw, err := f()
	if err != nil {
		return nil, nil //nolint:nilerr // that has been said of the ledger
	}
	return raw, nil
}
