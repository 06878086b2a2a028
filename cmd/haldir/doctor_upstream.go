package main

import (
	"context"
	"crypto/x509"
	"errors"
	"math"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/doctor"
	"github.com/haldir-mcp/haldir/internal/secret"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/upstream"
	"github.com/haldir-mcp/haldir/upstream/oauth"
	"github.com/haldir-mcp/haldir/upstream/pins"
)

// usualToolName is the longest name of a tool where tool_name_limit says nothing.
const usualToolName = 89

// upstreams connects to each as a host would that can do everything.
func (e *examination) upstreams(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, e.wait)
	defer cancel()
	took := make([]time.Duration, len(e.ups))
	began := time.Now()
	var wg sync.WaitGroup
	for i, u := range e.ups {
		u.Start(upstream.Host{Capabilities: []byte(capable)})
		wg.Go(func() { u.Connected(ctx); took[i] = time.Since(began) })
	}
	wg.Wait()
	for i, u := range e.ups {
		e.upstream(u, took[i])
	}
}

func (e *examination) upstream(u *upstream.Upstream, took time.Duration) {
	st := u.Status()
	switch {
	case st.State == upstream.StateReady:
		c := u.Catalogue()
		tools := make([]doctor.Tool, 0, len(c.Tools))
		for _, t := range c.Tools {
			tools = append(tools, doctor.Tool{Shown: t.Raw})
		}
		e.add(doctor.Upstream, doctor.Fine, u.Name(), doctor.Fix{}, "ready in %d ms: %s, protocol %s, %d tools, some %d tokens of context",
			took.Milliseconds(), plain(st.Server, 80), st.Version, len(c.Tools), doctor.Tokens(tools))
		if most := e.blocks[u.Name()].Connect; took > most {
			e.add(doctor.UpstreamSlow, doctor.Warning, u.Name(), doctor.Fix{Text: "nothing if it was downloaded meanwhile; else give it longer in timeouts of " + e.key() + ": {connect: " + minutes(2*took) + "}"},
				"it took longer to be ready than its timeouts.connect allows (%s)", most)
		}
	case st.Err != nil:
		id, fix := e.trouble(u.Name(), st.Err)
		e.add(id, doctor.Failure, u.Name(), fix, "%s", plain(st.Err.Error(), 500))
	case st.Heard != "":
		e.add(doctor.UpstreamSlow, doctor.Failure, u.Name(), e.amend(u.Name(), "look whether "+e.entry()+" starts an MCP server, and one over stdio; or"), "has not answered in %s; %s", e.wait, plain(st.Heard, 500))
	default:
		fix := e.amend(u.Name(), "give it longer with --wait, look at its log, or")
		if program := programName(e.blocks[u.Name()].Command); slices.Contains(fetchers, program) {
			fix = doctor.Do(program+" downloads a server at its first start, which can take minutes; give it that time once: %s; or look at its log", e.command()+" doctor --wait "+minutes(2*e.wait))
		}
		e.add(doctor.UpstreamSlow, doctor.Failure, u.Name(), fix, "has not answered in %s", e.wait)
	}
	if st.Ends > 1 {
		e.add(doctor.UpstreamEnds, doctor.Warning, u.Name(), e.amend(u.Name(), "look at its own log, or run its command by hand; or"), "has ended %d times within two minutes", st.Ends)
	}
	e.signedIn(u, st)
	e.pinned(u)
}

// fetchers are the programs that download what they start, if it is not there yet.
var fetchers = []string{"npx", "npm", "pnpx", "pnpm", "yarn", "bunx", "bun", "uvx", "uv", "pipx", "docker", "podman"}

// programName is what a program is called, wherever it is.
func programName(command string) string {
	name := filepath.Base(command)
	return strings.TrimSuffix(strings.TrimSuffix(name, ".exe"), ".cmd")
}

// minutes is a time that a download may take, at least so long.
func minutes(d time.Duration) string {
	return strconv.Itoa(max(2, int(math.Ceil(d.Minutes())))) + "m"
}

// amend is what to do about an upstream; at last, that is to do without it. Where flags stand in place
// of a file, there is none to be edited.
func (e *examination) amend(name, words string, commands ...string) doctor.Fix {
	if len(e.quick.upstreams) > 0 {
		return doctor.Do(words+" leave that out", commands...)
	}
	return doctor.Do(words+" take it out: %s", append(commands, e.takeOut(name))...)
}

// entry is what says what an upstream is.
func (e *examination) entry() string {
	if len(e.quick.upstreams) > 0 {
		return "its --upstream"
	}
	return "its entry in haldir.yaml"
}

// key is where an upstream has what --upstream cannot say.
func (e *examination) key() string {
	if len(e.quick.upstreams) > 0 {
		return "an entry in a config file, in place of --upstream"
	}
	return e.entry()
}

// trouble tells what kind of failure it is that an upstream cannot be used.
func (e *examination) trouble(name string, err error) (doctor.ID, doctor.Fix) {
	login := e.command() + " upstream login " + name
	if ref, ok := errors.AsType[*config.ReferenceError](err); ok {
		switch ref.Kind {
		case "env":
			// Others can see arguments, so that there may be no stored secret in them.
			if u := e.blocks[name]; slices.ContainsFunc(append([]string{u.Command}, u.Args...), func(word string) bool { return strings.Contains(word, "${env:"+ref.Name+"}") }) {
				return doctor.UpstreamReference, doctor.Fix{Text: "set the variable where haldir is started (in the env of its entry, for a client)"}
			}
			return doctor.UpstreamReference, doctor.Do("set the variable where haldir is started (in the env of its entry, for a client), or keep it as a secret: %s, and write ${keyring:"+ref.Name+"} in "+e.entry(),
				e.command()+" secret set "+shellWord(ref.Name))
		case "keyring":
			if !errors.Is(err, secret.ErrNotFound) {
				return doctor.UpstreamReference, doctor.Fix{Text: "it is stored, but the store cannot be read: do what is said of that"}
			}
			return doctor.UpstreamReference, doctor.Run(e.command() + " secret set " + shellWord(ref.Name))
		}
		return doctor.UpstreamReference, doctor.Fix{Text: "put the file there, or correct the reference in " + e.entry()}
	}
	start, unstarted := errors.AsType[*upstream.StartError](err)
	status, web := errors.AsType[*wire.HTTPError](err)
	switch {
	case oauth.IsSignIn(err):
		return doctor.UpstreamAuth, doctor.Run(login)
	case web && (status.Status == http.StatusUnauthorized || status.Status == http.StatusForbidden):
		return doctor.UpstreamAuth, doctor.Do("correct auth or headers in "+e.key()+"; if people sign in to it, make that auth: {type: oauth}, and: %s", login)
	case errors.Is(err, upstream.ErrNoProgram):
		command := strings.ReplaceAll(e.blocks[name].Command, "%", "%%") // these words are a format
		hint, at := "install it, or write its whole path", " as command in "+e.entry()
		switch programName(command) {
		case "npx", "node":
			hint = "install Node.js, or write the whole path of " + command
		case "uvx", "uv":
			hint = "install uv, or write the whole path of " + command
		}
		return doctor.UpstreamProgram, e.amend(name, hint+at+"; or")
	case unstarted && start.File != "" && e.secrets.clean(start.File) == start.File:
		return doctor.UpstreamProgram, e.amend(name, "make it executable: %s; or", "chmod +x "+shellWord(start.File))
	case unstarted:
		return doctor.UpstreamProgram, e.amend(name, "mend what it names, or correct "+e.entry()+"; or")
	}
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); unknown {
		return doctor.UpstreamDown, e.amend(name, "if its certificate is your own, or of an authority of yours, trust that by tls: {ca_file: FILE.pem} in "+e.key()+"; or")
	}
	return doctor.UpstreamDown, e.amend(name, "start it, correct "+e.entry()+", or")
}

// signedIn says what is to be known of a sign-in beside what a connection has told.
func (e *examination) signedIn(u *upstream.Upstream, st upstream.Status) {
	source, err := u.Auth()
	if err != nil {
		return // nobody signs in to it
	}
	g, err := source.Granted()
	login := doctor.Run(e.command() + " upstream login " + u.Name())
	switch {
	case err != nil:
		e.add(doctor.Secrets, doctor.Failure, u.Name(), doctor.Fix{Text: "open the keyring, or do what it says"}, "%v", err)
	case g.Ended != "" && !oauth.IsSignIn(st.Err):
		e.add(doctor.UpstreamAuth, doctor.Warning, u.Name(), login, "the sign-in has ended: %s", plain(e.secrets.clean(g.Ended), 200))
	case g.SignedIn && !g.Renews && !g.Expires.IsZero():
		e.add(doctor.SignInEnds, doctor.Note, u.Name(), login, "the sign-in ends at %s and cannot be renewed without a person", when(g.Expires))
	}
}

// pinned says what has changed in a server's definitions, and what in them should be read.
func (e *examination) pinned(u *upstream.Upstream) {
	p, name := u.Pinned(), u.Name()
	diff, accept := e.command()+" pins diff "+name, e.command()+" pins accept "+name
	switch n := len(p.Changes); {
	case p.Damaged != nil:
		e.add(doctor.PinsDamaged, doctor.Failure, name, doctor.Do("read all that it offers now: %s; and if it is meant so, pin it anew: %s", diff, accept), "%s", plain(p.Damaged.Error(), 300))
	case n > 0:
		e.add(doctor.PinsChanged, doctor.Warning, name, doctor.Do("read what has changed: %s; and if it is meant so: %s", diff, accept), "not as pinned: %s", count(n, "definition", "definitions"))
	}
	for _, f := range p.Found {
		fix := e.amend(name, "read it, and if it is not meant well,")
		if f.Kind == pins.Tool {
			if e.denied(name, f.Name) {
				continue // the model does not see it
			}
			if len(e.quick.upstreams) == 0 {
				fix = doctor.Do("read it, and if it is not meant well, deny the tool: %s", e.command()+" policy add "+denying(name, f.Name))
			}
		}
		e.add(doctor.Flagged, doctor.Warning, name, fix, "%s %s, %s: %s", f.Kind, plain(f.Name, 80), plain(f.Path, 80), plain(f.Reason, 200))
	}
}

// denied reports whether an agent never sees a tool, because policy could never allow it.
func (e *examination) denied(name, tool string) bool {
	return e.settings.DeniedTools == "hide" && e.cfg.Engine.Never(policy.Call{Session: e.session.ID, Agent: e.agent, Upstream: name, Tool: tool}, e.state)
}

// denying is what haldir policy add is told to deny one tool, and no other: of a name that flags,
// patterns or terminals would take for something else, an entry has the pattern.
func denying(name, tool string) string {
	if !strings.ContainsAny(tool, `*?[]\{},"`) && plain(tool, 0) == tool {
		return "--type deny --tools " + shellWord(name+"/"+tool)
	}
	pattern := strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, "\x00", "?").Replace(tool) // a pattern cannot have a zero
	return shellWord("{type: deny, tools: [" + strconv.QuoteToASCII(name+"/"+pattern) + "]}")
}
