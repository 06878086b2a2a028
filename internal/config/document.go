package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/haldir-mcp/haldir/policy"
)

// document is haldir.yaml as it is written. The yaml tags are its keys, alias
// marks an old spelling, doc is the text of the reference and of the schema, example is
// shown to who has written something of another kind there.
type document struct {
	Version       int           `yaml:"version" jsonschema:"required,enum=1" doc:"The version of this format: 1."`
	Session       *sessionDoc   `yaml:"session" example:"{agent_id: research-bot, scopes: [read, execute], ttl: 8h}" doc:"What a session of this config grants. Without it a session has all scopes, no limit and no end."`
	Upstreams     []upstreamDoc `yaml:"upstreams" example:"[{name: files, command: npx, args: [-y, some-server]}]" doc:"The MCP servers behind haldir, in the order their tools are listed."`
	Costs         []costDoc     `yaml:"costs" example:"[{tools: [\"search/*\"], usd: 0.004}]" doc:"What calls cost; the first entry that matches a tool counts."`
	Scopes        []scopeDoc    `yaml:"scopes" example:"[{tools: [\"*/get_*\"], require: [read]}]" doc:"Which scopes calls require; the first entry that matches a tool counts. Default: execute, and spend where a cost applies."`
	Policies      []policyDoc   `yaml:"policies" example:"[{type: deny, tools: [drop_table]}]" doc:"The policies. A call must pass every one that applies."`
	DeniedTools   string        `yaml:"denied_tools" jsonschema:"enum=hide,enum=show" doc:"Whether tools that policy could never allow are listed: hide (default) or show."`
	ToolNameLimit int           `yaml:"tool_name_limit" doc:"The longest tool name that the host takes, in characters, 16 to 128; longer ones are shortened. Default 89."`
	ListWait      duration      `yaml:"list_wait" doc:"How long tools/list waits for upstreams whose tools are not known yet. Default 4s."`
	MaxMessage    int           `yaml:"max_message_bytes" doc:"The largest message taken from the host or an upstream, in bytes. Default 33554432 (32 MiB)."`
	Reload        string        `yaml:"reload" jsonschema:"enum=confirm,enum=auto" doc:"What becomes of a change of this file while haldir runs: confirm (default) has a person confirm what loosens a rule or starts another command, auto takes all of it at once."`
	Keyring       string        `yaml:"keyring" jsonschema:"enum=auto,enum=file" doc:"Where the key of the stored secrets is made: auto (default) is the system's keyring where there is one, file a file in the state directory."`
	Audit         *auditDoc     `yaml:"audit" example:"{arguments: redacted, retain: 90d}" doc:"What the audit keeps."`
	Log           *logDoc       `yaml:"log" example:"{level: info}" doc:"Where haldir's own log goes."`
}

type sessionDoc struct {
	AgentID    string   `yaml:"agent_id" doc:"The agent that sessions belong to. Default: default."`
	Scopes     []string `yaml:"scopes" example:"[read, execute]" doc:"The scopes that a session grants. Default: all."`
	SpendLimit *usd     `yaml:"spend_limit" doc:"What a session may spend, in dollars; 0 means nothing. Default: no limit."`
	TTL        duration `yaml:"ttl" doc:"How long a session lasts: 8h, or a number of seconds. Default: it does not expire."`
}

type upstreamDoc struct {
	Name             string       `yaml:"name" jsonschema:"required,pattern=^[a-z0-9][a-z0-9-]{0\\,31}$" doc:"The upstream's name, the first part of its tools' canonical ids."`
	URL              string       `yaml:"url" doc:"The address of a streamable HTTP server; https, or http for this machine."`
	Command          string       `yaml:"command" example:"npx" doc:"The program of a stdio server, without its arguments."`
	Args             []string     `yaml:"args" example:"[-y, some-server]" doc:"The arguments of command."`
	Env              []string     `yaml:"env" example:"[\"NAME=value\"]" doc:"Variables for command as NAME=value, beside a base environment."`
	EnvPass          []string     `yaml:"env_pass" example:"[NAME]" doc:"Names of haldir's own variables to pass to command."`
	Cwd              string       `yaml:"cwd" doc:"The directory command runs in. Default: the one haldir was started in."`
	Headers          []string     `yaml:"headers" example:"[\"X-Key: ${keyring:key}\"]" doc:"HTTP headers for url as Name: value."`
	Auth             *authDoc     `yaml:"auth" example:"{type: oauth}" doc:"How haldir signs in to url."`
	TLS              *tlsDoc      `yaml:"tls" example:"{ca_file: /etc/ssl/my-ca.pem}" doc:"Certificates for url."`
	Expose           string       `yaml:"expose" jsonschema:"enum=prefixed,enum=bare" doc:"prefixed (default) lists the tools as name__tool, bare as tool; at most one upstream may be bare."`
	TrustAnnotations bool         `yaml:"trust_annotations" doc:"Whether a readOnlyHint of this upstream makes the scope read enough for a call. Default false."`
	Pins             string       `yaml:"pins" jsonschema:"enum=hold,enum=block,enum=warn" doc:"What becomes of a tool that is not any more as it was when it was seen first or accepted: hold (default) goes on offering the pinned text, block withholds the tool, warn offers the new one and reports it."`
	Start            string       `yaml:"start" jsonschema:"enum=lazy,enum=eager" doc:"When command is started if its tools are known from an earlier run: lazy (default) at the first use, eager at once."`
	StopWhenIdle     duration     `yaml:"stop_when_idle" doc:"After how long without a call command is stopped until the next, more than 0. Default: never, as a server may hold state."`
	DenyRequests     []string     `yaml:"deny_requests" example:"[sampling]" doc:"What this upstream must not ask the client for: sampling, elicitation, roots. Such a request is refused and recorded."`
	Timeouts         *timeoutsDoc `yaml:"timeouts" example:"{call: 5m}" doc:"Limits in time."`
}

type authDoc struct {
	Type  string `yaml:"type" jsonschema:"required,enum=bearer,enum=oauth" doc:"bearer, or oauth, which needs no more than: haldir upstream login NAME."`
	Token string `yaml:"token" for:"bearer" doc:"bearer: the token, best as a reference such as ${env:TOKEN}."`

	ClientID          string   `yaml:"client_id" for:"oauth" doc:"oauth: the client that the authorization server knows haldir as. Default: client_metadata_url where the server takes one, else haldir registers itself."`
	ClientSecret      string   `yaml:"client_secret" for:"oauth" doc:"oauth: the secret of client_id, best as a reference such as ${keyring:NAME}."`
	ClientMetadataURL string   `yaml:"client_metadata_url" for:"oauth" doc:"oauth: the https address of a Client ID Metadata Document that is the client's id."`
	TokenAuth         string   `yaml:"token_auth" for:"oauth" jsonschema:"enum=basic,enum=post,enum=none" doc:"oauth: how client_id authenticates to the token endpoint: basic, post or none. Default: what the server supports."`
	Grant             string   `yaml:"grant" for:"oauth" jsonschema:"enum=authorization_code,enum=client_credentials" doc:"oauth: authorization_code (default), in which a person signs in, or client_credentials, in which client_id does."`
	Issuer            string   `yaml:"issuer" for:"oauth" doc:"oauth: the authorization server that client_id is registered with; it must be the one that url names. Default: any."`
	Scopes            []string `yaml:"scopes" for:"oauth" example:"[\"files:read\"]" doc:"oauth: the scopes to ask for. Default: those that url asks for."`
	RedirectPort      int      `yaml:"redirect_port" for:"oauth" doc:"oauth: the port on 127.0.0.1 to which the browser returns, for a client_id that is registered with one. Default: a free one."`
}

type tlsDoc struct {
	CAFile   string `yaml:"ca_file" doc:"A PEM file of certificate authorities to trust beside the system's."`
	CertFile string `yaml:"cert_file" doc:"A PEM file with the certificate that haldir shows, and its chain."`
	KeyFile  string `yaml:"key_file" doc:"A PEM file with the key of cert_file."`
}

type timeoutsDoc struct {
	Connect duration `yaml:"connect" doc:"For connecting and the handshake, more than 0. Default 30s."`
	Call    duration `yaml:"call" doc:"For one call, more than 0. Default: none."`
	Idle    duration `yaml:"idle" doc:"How long a call may go on without a sign of life, more than 0; progress is one. Default: no limit."`
}

type costDoc struct {
	Tools        []string `yaml:"tools" jsonschema:"required" example:"[\"search/*\"]" doc:"Patterns of the tools that cost this."`
	USD          *usd     `yaml:"usd" doc:"Dollars a call; with from_result the ceiling that is reserved."`
	FromArgument *string  `yaml:"from_argument" doc:"JSON pointer (RFC 6901) to the amount in the arguments."`
	Unit         string   `yaml:"unit" jsonschema:"enum=usd,enum=cents" doc:"What the amount at from_argument is counted in: usd (default) or cents."`
	FromResult   string   `yaml:"from_result" doc:"JSON pointer (RFC 6901) to the actual amount in the result."`
}

type scopeDoc struct {
	Tools   []string `yaml:"tools" jsonschema:"required" example:"[\"*/get_*\", \"*/list_*\"]" doc:"Patterns of the tools that require these scopes."`
	Require []string `yaml:"require" jsonschema:"required" example:"[read]" doc:"The scopes."`
}

type policyDoc struct {
	Type      string   `yaml:"type" jsonschema:"required,enum=deny,enum=allow,enum=spend_limit,enum=rate_limit,enum=time_window,enum=require_approval,enum=loop" doc:"The type of the policy."`
	ID        string   `yaml:"id" doc:"A name for the rule in refusals and the audit. Default: its type and number."`
	Mode      string   `yaml:"mode" jsonschema:"enum=enforce,enum=shadow" doc:"shadow records what the rule would have done and lets the call pass. Default enforce."`
	Tools     []string `yaml:"tools" example:"[files/write_file, \"delete_*\"]" doc:"Patterns of tools: name, or upstream/name, with *, ? and [a-z]."`
	Upstreams []string `yaml:"upstreams" jsonschema:"minItems=1" example:"[files]" doc:"Globs of upstream names; the rule concerns their tools only."`
	Agents    []string `yaml:"agents" jsonschema:"minItems=1" example:"[\"research-*\"]" doc:"Globs of agent ids; the rule concerns them only."`
	When      string   `yaml:"when" doc:"A CEL condition over args, tool, upstream, agent, session, cost_usd and now."`

	MaxUSD        *usd      `yaml:"max_usd" for:"spend_limit" doc:"spend_limit: the most that may be spent, in dollars."`
	Per           string    `yaml:"per" for:"spend_limit,rate_limit" doc:"spend_limit: session (default), agent, total, hour, day, week, month. rate_limit: total (default), session, agent, tool, upstream."`
	MaxCalls      *int      `yaml:"max_calls" for:"rate_limit" doc:"rate_limit: the most calls in a window."`
	WindowSeconds *duration `yaml:"window_seconds" for:"rate_limit" doc:"rate_limit: the window in seconds."`
	Window        *duration `yaml:"window" for:"rate_limit,loop" doc:"rate_limit, loop: the window as a duration such as 1h. Default for loop: 60s."`
	AllowedHours  *hoursDoc `yaml:"allowed_hours" for:"time_window" example:"{start: \"09:00\", end: \"17:00\"}" doc:"time_window: the hours of the day; start after end wraps midnight."`
	Days          []day     `yaml:"days" for:"time_window" example:"[mon, fri]" doc:"time_window: mon, tue, wed, thu, fri, sat, sun. Default: every day."`
	Timezone      string    `yaml:"timezone" for:"time_window,spend_limit" doc:"An IANA zone such as America/New_York. Default UTC."`

	Timeout    *duration `yaml:"timeout" for:"require_approval" doc:"require_approval: how long a person has to answer, from 1s to 24h; then the call is refused. Default 5m."`
	Remember   []string  `yaml:"remember" for:"require_approval" jsonschema:"enum=call,enum=session" example:"[call, session]" doc:"require_approval: what an answer may hold for: call, this one call; session, the same call for the rest of the session. Default both."`
	MaxRepeats *int      `yaml:"max_repeats" for:"loop" doc:"loop: how often a tool may be called with the same arguments, or fail in a row, in a window. Default 5."`

	// Old spellings.
	Tool         *string `yaml:"tool" alias:"tools"`
	Max          *usd    `yaml:"max" alias:"max_usd or max_calls" for:"spend_limit,rate_limit"`
	MaxPerMinute *int    `yaml:"max_per_minute" alias:"max_calls and window" for:"rate_limit"`
	StartHour    *clock  `yaml:"start_hour" alias:"allowed_hours" for:"time_window"`
	EndHour      *clock  `yaml:"end_hour" alias:"allowed_hours" for:"time_window"`
}

type hoursDoc struct {
	Start clock `yaml:"start" jsonschema:"required" doc:"When the window opens, HH:MM."`
	End   clock `yaml:"end" jsonschema:"required" doc:"When it closes, HH:MM, up to 24:00."`
}

type auditDoc struct {
	Arguments string   `yaml:"arguments" jsonschema:"enum=full,enum=redacted,enum=digest" doc:"What is kept of a call's arguments: full, redacted (default) or digest."`
	Retain    duration `yaml:"retain" doc:"For how long records are kept: 90d, at least 1d. Older ones are pruned, and a signed checkpoint shows that they were there. Default: for ever."`
}

type logDoc struct {
	Level  string `yaml:"level" jsonschema:"enum=auto,enum=debug,enum=info,enum=warn,enum=error" doc:"The least level that is logged: auto (default) is info in serve, else warn."`
	Format string `yaml:"format" jsonschema:"enum=auto,enum=console,enum=json" doc:"auto (default) is console on a terminal, else json."`
	File   string `yaml:"file" doc:"A file to append to. Default: standard error."`
}

// usd is an amount of dollars.
type usd policy.Micros

func (*usd) what() string { return "an amount such as 25.00" }

func (u *usd) setText(text string) error {
	m, err := policy.ParseUSD(text)
	*u = usd(m)
	return err
}

// duration is a time such as 90s or 8h, or a number of seconds.
type duration time.Duration

func (*duration) what() string { return "a duration such as 90s, or a number of seconds" }

func (d *duration) setText(text string) error {
	if err := zeroFirst(text); err != nil {
		return err
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		if n < 0 || n > int64(time.Duration(1<<62)/time.Second) {
			return fmt.Errorf("%s seconds are out of range", text)
		}
		*d = duration(time.Duration(n) * time.Second)
		return nil
	}
	n, err := ParseDuration(text)
	if err != nil {
		return fmt.Errorf("%w, or as a number of seconds", err)
	}
	*d = duration(n)
	return nil
}

// ReadDuration reads what a duration of haldir.yaml may be: what [ParseDuration] reads, or a number
// of seconds.
func ReadDuration(text string) (time.Duration, error) {
	var d duration
	err := d.setText(text)
	return time.Duration(d), err
}

// ParseDuration reads a time as people write it: what Go reads, and days.
func ParseDuration(text string) (time.Duration, error) {
	n, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok && err != nil {
		if k, e := strconv.Atoi(days); e == nil && k >= 0 && k < 36500 {
			n, err = time.Duration(k)*24*time.Hour, nil
		}
	}
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is no duration; write it like 90s, 15m, 8h or 7d", text)
	}
	return n, nil
}

// clock is a time of day in minutes after midnight.
type clock int

func (*clock) what() string { return "a time of day such as 09:00" }

func (c *clock) setText(text string) error {
	h, m, colon := strings.Cut(text, ":")
	if !colon {
		m = "0"
	}
	hours, err1 := strconv.Atoi(h)
	minutes, err2 := strconv.Atoi(m)
	if err1 != nil || err2 != nil || hours < 0 || hours > 24 || minutes < 0 || minutes > 59 || hours == 24 && minutes > 0 ||
		len(h) > 2 || colon && len(m) != 2 {
		return fmt.Errorf("%q is no time of day; write it like 09:00", text)
	}
	*c = clock(hours*60 + minutes)
	return nil
}

// day is a day of the week.
type day time.Weekday

var dayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

func (*day) what() string { return "a day such as mon" }

func (d *day) setText(text string) error {
	for i, name := range dayNames {
		full := strings.ToLower(time.Weekday(i).String())
		if t := strings.ToLower(text); t == name || t == full {
			*d = day(i)
			return nil
		}
	}
	return errors.New(strconv.Quote(text) + " is no day" + Suggest(text, dayNames))
}
