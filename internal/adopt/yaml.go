package adopt

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/haldir-mcp/haldir/internal/clients"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/config/edit"
	"github.com/haldir-mcp/haldir/internal/secret"
	"github.com/haldir-mcp/haldir/internal/wire"
)

// starter is a new haldir.yaml. Its policies let tools that read go free, and have a person
// asked before others: the names of tools say which, since what a server says of its tools
// is its own word.
const starter = `# haldir.yaml: the MCP servers behind haldir, and what their tools may be called for.
# haldir init has made it of the servers of your MCP clients; haldir init --undo takes it
# back. Change it as you like: docs/policies.md says how, haldir check says what is wrong
# with it, and a running haldir takes a change at once, or after haldir reload.
version: 1

# The servers. Their tools are listed as name__tool.
upstreams: []

# A call must pass every policy that applies to it. Reading is free; what no policy is
# about is allowed and recorded: haldir audit list.
policies:
  # A person must allow what destroys, each call by itself or for the rest of the session:
  # tools with such a word in their name, as delete_file, deleteFile, FILE-DELETE or deletefile.
  - type: require_approval
    id: destructive
    tools: ["*"]
    when: >-
      words(tool).exists(w, w in ["drop", "droptable", "dropdatabase", "unlink", "kill", "rm", "force"]
      || w.matches("^(delete|remove|destroy|truncate|purge|wipe|erase|terminate|revoke|uninstall)")
      && !(w in ["deleted", "removed", "destroyed", "truncated", "purged", "wiped", "erased", "terminated", "revoked", "uninstalled"]))
    timeout: 5m
  # The same for what moves money, unless its name begins by reading, as get_payment does.
  - type: require_approval
    id: money
    tools: ["*"]
    when: >-
      words(tool).exists(w, w in ["pay", "payment", "payments", "payout", "payouts", "money", "buy"]
      || w.matches("^(charge|refund|transfer|withdraw|purchase)") && !(w in ["charged", "refunded", "transferred", "purchased"]))
      && (!(words(tool)[0] in ["get", "list", "search", "find", "read", "retrieve", "fetch"])
      || "and" in words(tool))
    timeout: 5m
  # An agent that has gone wild stops here. Every agent counts by itself.
  - {type: rate_limit, id: calls, max_calls: 600, window: 1h, per: agent}
  # What a session may spend. It counts what costs, below, says of calls; without that
  # everything is free and nothing is refused.
  - {type: spend_limit, id: dollars, max_usd: 10.00, per: session}

# What calls cost, such as those of a paid API:
# costs:
#   - {tools: ["search/*"], usd: 0.004}
`

// write makes haldir.yaml with the upstreams that are not there yet. Those that haldir would
// not take stay with their clients.
func (p *Plan) write(before []byte) ([]byte, error) {
	text := before
	if text == nil {
		text = []byte(starter)
	}
	var moving []*Upstream
	for _, u := range p.Upstreams {
		if !u.There {
			r, err := edit.AddTo(text, p.o.Config, edit.Upstreams, []byte(p.describe(u)), edit.Options{})
			if err != nil {
				if errors.Is(err, edit.ErrShape) || errors.Is(err, edit.ErrAlias) {
					return nil, err // of the file, not of the server
				}
				for _, s := range u.From {
					p.Left = append(p.Left, Left{Server: s, Why: "haldir would not take it: " + reason(err)})
				}
				continue
			}
			if p.o.Look { // each by itself: a text that grows is parsed for each of them
				moving = append(moving, u)
				continue
			}
			text, u.entry = r.After, r.Entry
		}
		var err error
		if text, err = p.rules(text, u); err != nil {
			return nil, err
		}
		moving = append(moving, u)
	}
	p.Upstreams = moving
	return text, nil
}

// reason is what is wrong, without places that nobody knows.
func reason(err error) string {
	problems, ok := errors.AsType[config.Problems](err)
	if !ok {
		return err.Error()
	}
	var out []string
	for _, q := range problems {
		if q.Where != "" {
			out = append(out, q.Where+": "+q.Message)
			continue
		}
		out = append(out, q.Message)
	}
	return strings.Join(out, "; ")
}

var word = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z_/][A-Za-z0-9_/.@-]*$`) })

// words that YAML takes for something else than a text.
var notWords = []string{"true", "false", "null", "yes", "no", "on", "off", "y", "n"}

// scalar is a text in YAML.
func scalar(s string) string {
	if word().MatchString(s) && !slices.Contains(notWords, strings.ToLower(s)) {
		return s
	}
	var b strings.Builder
	for _, r := range string(wire.Quote(s)) {
		if r >= ' ' && printable(r) == r {
			b.WriteRune(r)
			continue
		}
		fmt.Fprintf(&b, `\u%04x`, r) // YAML would not take it, or take it for the end of a line
	}
	return b.String()
}

func flow(list []string) string {
	var out []string
	for _, s := range list {
		out = append(out, scalar(s))
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// describe writes the entry of an upstream, and notes its secrets.
func (p *Plan) describe(u *Upstream) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	u.unsaid = map[*clients.Server][]string{}
	var from []string
	for _, s := range u.From {
		where := fmt.Sprintf("%s (%s)", s.List.File.Client, s.List.Scope)
		if s.Name != u.Name {
			where += fmt.Sprintf(", there called %q", s.Name)
		}
		if !slices.Contains(from, where) {
			from = append(from, where)
		}
	}
	line("# From %s.", strings.Join(from, "; "))
	s := u.From[0]
	for _, o := range u.From {
		for i, text := range slices.Concat(o.Comments, o.Lost) {
			if edit.LooksSecret("", text) || p.shows(text) {
				if i < len(o.Comments) {
					u.unsaid[o] = append(u.unsaid[o], text)
				}
				continue
			}
			line("# %s", strings.Map(printable, text))
		}
	}
	line("name: %s", scalar(u.Name))
	if s.Command != "" {
		line("command: %s", scalar(s.Command))
		if len(s.Args) > 0 {
			line("args: %s", flow(s.Args))
		}
		if s.Cwd != "" {
			line("cwd: %s", scalar(s.Cwd))
		}
		if len(s.Env) > 0 {
			line("env:")
			for _, e := range s.Env {
				line("  - %s", scalar(e.Name+"="+p.safe(u, "the variable "+e.Name, e.Name, e.Value)))
			}
		}
	} else {
		line("url: %s", scalar(p.safeURL(u, s.URL)))
		signed := false
		if len(s.Headers) > 0 {
			line("headers:")
			for _, h := range s.Headers {
				signed = signed || strings.EqualFold(h.Name, "Authorization")
				line("  - %s", scalar(h.Name+": "+p.safe(u, "the header "+h.Name, h.Name, h.Value)))
			}
		}
		switch {
		case s.OAuth != nil:
			line("auth: {%s}", strings.Join(p.oauth(u, s.OAuth), ", "))
		case !signed:
			line("auth: {type: oauth}   # used only if it asks for it: haldir upstream login %s", u.Name)
		}
	}
	if t := u.timeout(); t > 0 {
		line("timeouts: {call: %v}", t)
	}
	if p.o.Trust {
		line("trust_annotations: true")
	}
	return b.String()
}

// printable makes a comment of somebody's fit for one line.
func printable(r rune) rune {
	if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || r == '\ufeff' {
		return ' '
	}
	return r
}

// shows reports whether a text has one of the secrets in it.
func (p *Plan) shows(text string) bool {
	return slices.ContainsFunc(p.Masks, func(m string) bool { return strings.Contains(text, m) })
}

func (p *Plan) oauth(u *Upstream, o *clients.OAuth) []string {
	out := []string{"type: oauth"}
	if o.ClientID != "" {
		out = append(out, "client_id: "+scalar(o.ClientID))
	}
	if o.ClientSecret != "" {
		secret := o.ClientSecret
		if !strings.Contains(strings.ReplaceAll(secret, "$${", ""), "${") {
			secret = p.keep(u, "the client's secret", "client-secret", secret)
		}
		out = append(out, "client_secret: "+scalar(secret))
	}
	if len(o.Scopes) > 0 {
		out = append(out, "scopes: "+flow(o.Scopes))
	}
	if o.Port != 0 {
		out = append(out, fmt.Sprintf("redirect_port: %d", o.Port))
	}
	return out
}

// secretive reports whether a value is to be kept in the store. A switch and an address without
// more are not, whatever they are called.
func secretive(name, value string) bool {
	if !edit.LooksSecret(name, value) {
		return false
	}
	if edit.LooksSecret("", value) {
		return true
	}
	if slices.Contains(switches, strings.ToLower(value)) {
		return false
	}
	u, err := url.Parse(value)
	return err != nil || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != ""
}

var switches = []string{"true", "false", "none", "null", "auto", "enabled", "disabled", "required", "optional"}

var scheme = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(?i:bearer|basic|token|digest|apikey) +`) })

// safe is a value without what is secret in it, which is kept.
func (p *Plan) safe(u *Upstream, what, name, value string) string {
	if !secretive(name, value) {
		return parts(value, func(_, part string) string { return p.keep(u, what, name, part) })
	}
	word := scheme().FindString(value)
	return word + p.keep(u, what, name, value[len(word):])
}

// parts is a value without those of its parts that are secret, as in JSON. What is between them
// stays as it is, so that the server gets what it got before.
func parts(value string, keep func(name, part string) string) string {
	var b strings.Builder
	list, at := []string{value}, 0
	for _, a := range edit.Arguments(list) {
		part := a.In(list)
		if !secretive(a.Name, part) {
			continue
		}
		if open := strings.LastIndex(value[:a.Start], "$${"); open >= 0 && !strings.Contains(value[open:a.Start], "}") {
			return whole(value, keep) // haldir.yaml would take a reference here for a plain text
		}
		word := scheme().FindString(part)
		b.WriteString(value[at:a.Start] + word + keep(a.Name, part[len(word):]))
		at = a.End
	}
	return b.String() + value[at:]
}

// whole is a value that is kept as one, if it refers to nothing.
func whole(value string, keep func(name, part string) string) string {
	if strings.Contains(strings.ReplaceAll(value, "$${", ""), "${") {
		return value
	}
	return keep("", value)
}

// hidden are the secrets among the arguments of a program. They stay where they are, since
// haldir.yaml refuses a reference to the store there: other users would see what it stands for.
func hidden(args []string) (out []string) {
	for _, a := range edit.Arguments(args) {
		if v := a.In(args); secretive(a.Name, v) {
			out = append(out, v[len(scheme().FindString(v)):])
		}
	}
	return out
}

// safeURL is an address without the secrets in its path and its parameters.
func (p *Plan) safeURL(u *Upstream, address string) string {
	if head, _, _ := strings.Cut(address, "?"); edit.LooksSecret("", head) {
		return p.keep(u, "the url", "url", address)
	}
	return parts(address, func(name, part string) string {
		if name == "" || name == edit.Unnamed {
			return p.keep(u, "a part of the url", "url", part)
		}
		return p.keep(u, "the parameter "+name, name, part)
	})
}

var unnamed = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`[^A-Za-z0-9._-]+`) })

// maxName is the longest name of a secret.
const maxName = 64

// keep puts a value among the secrets and returns the reference to it.
func (p *Plan) keep(u *Upstream, what, name, value string) string {
	value = strings.ReplaceAll(value, "$${", "${") // as it is, not as haldir.yaml has it
	base := u.Name + "." + strings.Trim(unnamed().ReplaceAllString(name, "-"), "-.")
	base = base[:min(len(base), maxName-3)]
	s := Secret{Name: base, What: what, value: value}
	for n := 2; ; n++ {
		other, mine := "", false
		for _, o := range p.secrets() {
			if o.Name == s.Name {
				other, mine = o.value, true
			}
		}
		if !mine {
			v, err := p.o.Store.Get(s.Name)
			if err != nil && !errors.Is(err, secret.ErrNotFound) {
				p.fail = err
			}
			if err != nil {
				break
			}
			other, s.there = v, true
		}
		if other == value {
			s.there = s.there || mine
			break
		}
		s.there = false
		s.Name = fmt.Sprintf("%s-%d", base, n)
	}
	u.Secrets = append(u.Secrets, s)
	p.Masks = append(p.Masks, value)
	return "${keyring:" + s.Name + "}"
}

func (p *Plan) secrets() (out []Secret) {
	for _, u := range p.Upstreams {
		out = append(out, u.Secrets...)
	}
	return out
}
