package main

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/rs/zerolog"
	"github.com/rs/zerolog/diode"
	"github.com/spf13/pflag"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/secret"
	"github.com/haldir-mcp/haldir/internal/telemetry"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

// app is one run of the program: what the verbs share, made when first needed.
type app struct {
	in       io.Reader
	out, err io.Writer
	layers   *config.Layered
	quick    quick
	verb     string        // with the words of its groups
	serving  bool          // this is haldir serve
	looking  bool          // this is haldir doctor: nothing is written
	patience time.Duration // for how long, at least, an upstream may connect
	hurry    bool          // a signal has come: the host kills haldir soon
	unsignal func()

	cfg      *config.Config
	settings config.Settings
	log      zerolog.Logger
	logFile  *os.File
	ledger   *ledger.Ledger
	self     ledger.Process // as others see it there

	sends     *telemetry.Config    // where to; nil before it was read
	telemetry *telemetry.Telemetry // nil unless traces or metrics are sent
	unship    func()               // ends the shipping of the audit; nil if there is none

	flags    *pflag.FlagSet
	upsMu    sync.Mutex // guards the next four; a reload may change them
	ups      []*upstream.Upstream
	blocks   map[string]config.Upstream // what each was made of
	shared   *config.Resolver
	host     *upstream.Host // who has introduced itself, nil before
	retiring sync.WaitGroup // upstreams that are not in the config any more, and what waits for the greeting
	greeted  func()         // called when the host has its first answer; nil for nothing
	session  ledger.Use
	state    policy.SessionState
	agent    string
	guard    *upstream.Guard
	store    *secret.Store
	secrets  secrets
}

// load reads the config and the settings.
func (a *app) load() error {
	_, named, err := a.layers.ConfigPath()
	if err != nil {
		return &exit{code: exitUsage, err: err}
	}
	cfg, err := a.quick.config(named)
	if err != nil {
		return err
	}
	if cfg == nil {
		if cfg, err = a.layers.Find(); err != nil {
			return &exit{code: exitUsage, err: err}
		}
	}
	a.cfg = cfg
	return a.set()
}

// set layers the settings over the config, if there is one, and opens the log.
func (a *app) set() (err error) {
	if a.settings, err = a.layers.Settings(a.cfg); err != nil {
		return &exit{code: exitUsage, err: err}
	}
	return a.openLog()
}

func (a *app) openLog() error {
	if a.looking && a.settings.LogLevel == "auto" {
		a.log = zerolog.Nop() // the findings say it
		return nil
	}
	w := a.err
	if a.serving { // a host that does not read its server's stderr must not stop it
		d := diode.NewWriter(a.err, 1000, 0, func(int) {})
		w = d
	}
	tty := false
	if path := a.settings.LogFile; path != "" && !a.looking {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return &exit{code: exitUsage, err: fmt.Errorf("log.file: %w", err)}
		}
		a.logFile, w = f, f
	} else {
		tty = terminal(a.err) != nil
	}
	if a.settings.LogFormat == "console" || a.settings.LogFormat == "auto" && tty {
		w = zerolog.ConsoleWriter{Out: w, NoColor: colourless() || !tty, TimeFormat: time.TimeOnly}
	}
	level := zerolog.WarnLevel
	if a.serving {
		level = zerolog.InfoLevel
	}
	if name := a.settings.LogLevel; name != "auto" {
		var err error
		if level, err = zerolog.ParseLevel(name); err != nil {
			return &exit{code: exitUsage, err: err}
		}
	}
	a.log = zerolog.New(w).Level(level).With().Timestamp().Logger()
	return nil
}

// open opens the ledger. A snapshot of one, as an auditor mounts it, can be looked at.
func (a *app) open() (err error) {
	if a.ledger != nil {
		return nil
	}
	a.self = a.process()
	look := a.looking || !a.serving && ledger.Frozen(a.settings.StateDir)
	a.ledger, err = ledger.Open(ledger.Options{
		Dir: a.settings.StateDir, Clock: time.Now, Logger: a.log, ReadOnly: look, Process: a.self,
		Soon: a.serving,
	})
	if err == nil && a.cfg != nil && !look { // verbs that need no config have no say in what is kept
		a.ledger.Retain(a.retention())
	}
	return err
}

// process is what others are told of this run.
func (a *app) process() ledger.Process {
	p := ledger.Process{PID: os.Getpid(), Version: version(), Verb: a.verb, Started: time.Now().UTC()}
	if a.cfg != nil {
		if p.Config = a.place(); p.Config == a.cfg.Path {
			p.Config = a.lasting()
		}
		p.Seen = hex.EncodeToString(a.cfg.SHA256[:])
	}
	return p
}

// retention is for how long the config wants records kept.
func (a *app) retention() ledger.Retention {
	return ledger.Retention{Place: a.lasting(), Keep: a.settings.Retain}
}

// openState opens the ledger for verbs that need no config.
func (a *app) openState() error {
	if err := a.set(); err != nil {
		return err
	}
	return a.open()
}

// use says which session the calls of this process belong to: the one named;
// else the host's own, so that a haldir that is started anew goes on with the
// same budget; else a new one.
func (a *app) use(ctx context.Context) (ledger.Use, policy.SessionState, string, error) {
	s := a.cfg.Session
	terms := a.terms()
	if id := a.settings.SessionID; id != "" {
		use := ledger.Use{ID: id, Command: a.command()}
		found, err := a.ledger.Session(ctx, use)
		if err != nil {
			return use, policy.SessionState{}, "", fmt.Errorf("join session %s: %w", id, err)
		}
		if found.Origin == ledger.OriginConfig {
			use.Terms = terms
		}
		return use, found.State(), found.Agent, nil
	}
	id, fresh := ledger.NewSessionID(), true
	if host := os.Getenv("CLAUDE_CODE_SESSION_ID"); host != "" {
		sum := sha256.Sum256([]byte("claude-code\x00" + host))
		id, fresh = "ses_"+strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10])), false
	}
	return ledger.Use{ID: id, Terms: terms, Fresh: fresh, Command: a.command()}, policy.SessionState{ID: id, AllScopes: s.AllScopes, Scopes: s.Scopes, SpendLimit: s.SpendLimit}, s.Agent, nil
}

// server makes the upstreams and the proxy before them. Nothing is started.
func (a *app) server(ctx context.Context) (*proxy.Server, error) {
	use, state, agent, err := a.use(ctx)
	if err != nil {
		return nil, err
	}
	a.session, a.state, a.agent, a.shared = use, state, agent, a.resolver()
	var srv *proxy.Server
	observe := a.measure(ctx)
	a.arrange(a.cfg, func() { srv.Changed() })
	r := a.rules()
	srv = proxy.New(proxy.Options{
		Upstreams: r.Upstreams, Engine: r.Engine, Ledger: a.ledger, Use: r.Use, Session: r.Session, Agent: r.Agent, Config: r.Config,
		Detail: r.Detail, Secrets: a.secrets.list, Clean: a.secrets.clean, HideNever: r.HideNever, NameLimit: r.NameLimit,
		ListWait: r.ListWait, Message: a.settings.MaxMessage, Version: version(), Command: a.command(), Log: a.log, Observe: observe, Initialize: a.start,
	})
	return srv, nil
}

// rules are those of the config in force, for the session of this process.
func (a *app) rules() proxy.Rules {
	use, state, agent := a.session, a.state, a.agent
	if s := a.cfg.Session; use.Terms != nil { // the config's session, not one that was made for itself
		use.Terms, agent = a.terms(), s.Agent
		state.AllScopes, state.Scopes, state.SpendLimit = s.AllScopes, s.Scopes, s.SpendLimit
	}
	a.upsMu.Lock()
	defer a.upsMu.Unlock()
	var ups []proxy.Upstream
	for _, u := range a.ups {
		ups = append(ups, u)
	}
	return proxy.Rules{
		Upstreams: ups, Engine: a.cfg.Engine, Use: use, Session: state, Agent: agent, Config: audit.Hash(a.cfg.SHA256), Detail: a.settings.Arguments,
		HideNever: a.settings.DeniedTools == "hide", NameLimit: a.settings.ToolNameLimit, ListWait: a.settings.ListWait,
	}
}

func (a *app) terms() *ledger.Terms {
	s := a.cfg.Session
	return &ledger.Terms{Agent: s.Agent, AllScopes: s.AllScopes, Scopes: s.Scopes, SpendLimit: s.SpendLimit, TTL: s.TTL}
}

// layersAnew is the layers without what an earlier file has set.
func (a *app) layersAnew() *config.Layered {
	l, err := config.Layer(a.flags)
	if err != nil {
		return a.layers // it went well the first time
	}
	return l
}

func (a *app) resolver() *config.Resolver {
	return config.NewResolver(workingDir(), a.vault().Get, a.secrets.add)
}

func (a *app) upstream(c config.Upstream, r *config.Resolver, changed func()) *upstream.Upstream {
	if a.guard == nil {
		a.guard = upstream.NewGuard(a.serving)
	}
	c.Eager = c.Eager || !a.serving // whoever asks wants to know how it is now
	c.Connect = max(c.Connect, a.patience)
	var pinned upstream.Pins // not for verbs that need no ledger
	var cache upstream.Cache = a.ledger
	switch {
	case a.looking:
		pinned, cache = onlooker{a.ledger}, onlooker{a.ledger}
	case a.ledger != nil:
		pinned = pinBoard{a.ledger}
	}
	return upstream.New(upstream.Options{
		Config: c, Pins: pinned, Resolver: r, Cache: cache, Guard: a.guard, Secrets: a.vault(), SecretsDir: a.settings.StateDir, Log: a.log.With().Str("upstream", c.Name).Logger(),
		Version: version(), MaxMessage: a.settings.MaxMessage, Changed: changed, Clean: a.secrets.clean, Command: a.command(),
		Env: a.behind(),
	})
}

// command is how a person runs haldir for the config and the state of this process, as
// far as to the verb: what a host has said by flags and variables a person must, too.
func (a *app) command() string { return a.commandWith(shellWord) }

// launched is command for a client, which starts haldir in any directory.
func (a *app) launched() string {
	return a.commandWith(func(path string) string {
		if abs, err := filepath.Abs(path); err == nil {
			path = abs
		}
		return shellWord(path)
	})
}

// commandWith is command with its paths written by a function. It needs no settings, which
// what goes wrong early does not have yet.
func (a *app) commandWith(path func(string) string) string {
	words := []string{itself()}
	if file, named, err := a.layers.ConfigPath(); err == nil && named {
		words = append(words, "--config", path(file))
	}
	state := os.Getenv("HALDIR_STATE_DIR")
	if f := a.flags.Lookup("state-dir"); f != nil && f.Changed {
		state = f.Value.String()
	}
	if state != "" {
		words = append(words, "--state-dir", path(state))
	}
	for _, u := range a.quick.upstreams {
		words = append(words, "--upstream", shellWord(shownUpstream(u)))
	}
	return strings.Join(words, " ")
}

// only is the session that a listing is of, "" for all. A variable that was set for calls is easily
// forgotten, and would leave out the rest without a word.
func (a *app) only() string {
	id := a.settings.SessionID
	if id != "" && !a.flags.Changed("session") {
		a.say("haldir: of session %s alone, which HALDIR_SESSION_ID names; unset it for all", id)
	}
	return id
}

// itself is how a person starts the program that runs: by its name where a shell finds it by
// that. One that is there for this run only cannot be started again, and has but the name.
var itself = sync.OnceValue(func() string {
	host, _ := machine() // it need not have a home directory
	if host.Own == "" {
		return "haldir"
	}
	e, _, err := started(host.Own, host.Program("haldir"), host.Program("npx"), runtime.GOOS)
	if err != nil {
		return "haldir"
	}
	words := []string{shellWord(e.Command)}
	for _, a := range e.Args {
		words = append(words, shellWord(a))
	}
	return strings.Join(words, " ")
})

// shownUpstream leaves out of a server of the flags what may be secret: its arguments,
// and of a URL all but where it is.
func shownUpstream(s string) string {
	name, what, _ := strings.Cut(s, "=")
	if u, err := url.Parse(what); err == nil && u.Host != "" && u.User == nil && u.RawQuery == "" && u.Fragment == "" {
		return s
	}
	if len(strings.Fields(what)) == 1 && !strings.Contains(what, "://") {
		return s
	}
	return name + "=…"
}

// shownURL is where a server is, without what may be secret: a reference is shown, not what
// it stands for.
func shownURL(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "…"
	}
	u.User, u.RawQuery, u.Fragment, u.ForceQuery = nil, "", "", false
	return u.String()
}

// place is what the config was read from.
func (a *app) place() string {
	if len(a.quick.upstreams) > 0 {
		return "the flags"
	}
	return a.cfg.Path
}

// lasting is the config's path for others, who may be in another directory; "" without a file.
func (a *app) lasting() string {
	if abs, err := filepath.Abs(a.cfg.Path); err == nil && a.cfg.Path != "" {
		return abs
	}
	return a.cfg.Path
}

// shellWord is a text as a shell takes it for one word.
func shellWord(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("/._-+:,@%=", r) && !unicode.IsLetter(r) && !unicode.IsDigit(r)
	}) {
		return s
	}
	if runtime.GOOS == "windows" {
		return `"` + s + `"`
	}
	if !utf8.ValidString(s) {
		return shellBytes(s)
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// shellBytes is shellWord for a path that is no text, which JSON would not keep. Its bytes that are
// none go by their numbers, in the way that every shell knows.
func shellBytes(s string) string {
	var b strings.Builder
	for s != "" {
		n := 0
		for n < len(s) {
			r, size := utf8.DecodeRuneInString(s[n:])
			if r == utf8.RuneError && size == 1 {
				break
			}
			n += size
		}
		if n > 0 {
			b.WriteString(shellWord(s[:n]))
		} else {
			fmt.Fprintf(&b, `"$(printf '\%03o')"`, s[0])
			n = 1
		}
		s = s[n:]
	}
	return b.String()
}

// start begins to connect to the upstreams.
func (a *app) start(h upstream.Host) {
	a.upsMu.Lock()
	a.host = &h
	ups := a.ups
	a.upsMu.Unlock()
	for _, u := range ups {
		u.Start(h)
	}
	if a.greeted != nil {
		a.retiring.Go(func() {
			if h.Answered != nil {
				<-h.Answered
			}
			a.greeted()
		})
	}
}

// introduce starts upstreams that have come later, if there is a host yet.
func (a *app) introduce(ups []*upstream.Upstream) {
	a.upsMu.Lock()
	h := a.host
	a.upsMu.Unlock()
	if h == nil {
		return
	}
	for _, u := range ups {
		u.Start(*h)
	}
}

// stop ends the upstreams, all at once.
func (a *app) stop() {
	if a.guard != nil {
		a.guard.Look()
	}
	a.upsMu.Lock()
	ups := a.ups
	a.upsMu.Unlock()
	var wg sync.WaitGroup
	for _, u := range ups {
		wg.Go(u.Close)
	}
	wg.Wait()
	a.retiring.Wait()
	if a.guard != nil {
		a.guard.Close()
	}
}

// closeGrace bounds how long the ledger may take at the end.
const closeGrace = 2 * time.Second

// After a signal the host waits 500 ms before it kills, and what is promised is
// 400: stopGrace, the children's ladder of 300, and what is left for the ledger.
const (
	hurryGrace  = 25 * time.Millisecond
	hurryLadder = 315 * time.Millisecond
)

func (a *app) close() error {
	begun, grace, ladder := time.Now(), closeGrace, time.Minute
	if a.hurry {
		grace, ladder = hurryGrace, hurryLadder
	}
	unship := a.unship
	a.unship = nil
	stopped := make(chan struct{})
	go func() {
		var wg sync.WaitGroup
		if unship != nil { // it may be waiting for the disk
			wg.Go(unship)
		}
		wg.Go(func() { a.unmeasure() })
		a.stop()
		wg.Wait()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(ladder): // a host that does not read may hold a reader up
	}
	var err error
	if a.ledger != nil {
		if a.hurry { // what the children did not need of their time is the ledger's
			grace = max(grace, ladder+grace-time.Since(begun))
		}
		ctx, cancel := context.WithTimeout(context.Background(), grace)
		defer cancel()
		err = a.ledger.Close(ctx)
		if a.hurry && errors.Is(err, context.DeadlineExceeded) { // as agreed with the host, which kills otherwise
			a.log.Warn().Msg("the ledger was not closed in time; calls whose outcome is not on disk count as spent, and the next haldir records them as abandoned")
			err = nil
		}
		a.ledger = nil
	}
	if a.logFile != nil {
		err = errors.Join(err, a.logFile.Close())
		a.logFile = nil
	}
	if a.unsignal != nil {
		a.unsignal()
	}
	return err
}

// secrets are the texts that came from outside the config.
type secrets struct {
	mu   sync.Mutex
	seen []string
}

func (s *secrets) add(v string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(s.seen, v) {
		return
	}
	// The longest first: one may be a part of another. The old slice may be in use.
	s.seen = append(slices.Clone(s.seen), v)
	for _, f := range forms(v) {
		if !slices.Contains(s.seen, f) {
			s.seen = append(s.seen, f)
		}
	}
	slices.SortFunc(s.seen, func(a, b string) int { return len(b) - len(a) })
}

// forms are the ways in which a server may write a secret that it repeats: in JSON and
// in a URL.
func forms(v string) []string {
	all := []string{url.QueryEscape(v), url.PathEscape(v)}
	plain := string(wire.Quote(v))
	all = append(all, plain[1:len(plain)-1])
	if html, err := json.Marshal(v); err == nil { // as Go and others write it for HTML
		all = append(all, string(html[1:len(html)-1]))
	}
	return all
}

// clean takes the secrets out of a text that was not made by haldir.
func (s *secrets) clean(text string) string {
	list := s.list()
	for _, v := range list {
		text = strings.ReplaceAll(text, v, audit.Redacted)
	}
	parts := strings.SplitAfter(text, "…")
	for i, p := range parts {
		parts[i] = cleanCut(p, list)
	}
	return strings.Join(parts, "")
}

// cleanCut takes out what is left of a secret where a text was cut short.
func cleanCut(text string, list []string) string {
	text, cut := strings.CutSuffix(text, "…")
	if !cut {
		return text
	}
	longest := 0
	for _, v := range list {
		for n := min(len(v)-1, len(text)); n >= minCut && n > longest; n-- {
			if strings.HasSuffix(text, v[:n]) {
				longest = n
			}
		}
	}
	if longest > 0 {
		text = text[:len(text)-longest] + audit.Redacted
	}
	return text + "…"
}

// minCut is how much of a secret is worth hiding, in bytes: less is in ordinary words.
const minCut = 4

func (s *secrets) list() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

// printJSON writes one object, indented.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func (a *app) printf(format string, args ...any) error {
	_, err := fmt.Fprintf(a.out, format, args...)
	return err
}

// lines makes a text of several lines safe for a terminal.
func lines(s string) string {
	parts := strings.Split(s, "\n")
	for i, p := range parts {
		cells := strings.Split(strings.TrimSuffix(p, "\r"), "\t")
		for j, c := range cells {
			cells[j] = plain(c, 0)
		}
		parts[i] = strings.Join(cells, "\t")
	}
	return strings.Join(parts, "\n")
}

// plain makes text from outside safe and short enough for a terminal.
func plain(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '\ufffd'
		}
		return r
	}, s)
	if r := []rune(s); limit > 0 && len(r) > limit {
		return string(r[:limit-1]) + "…"
	}
	return s
}

func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}
