//go:build unix

package main_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// consoles is a running `haldir console` before a running example server.
type consoles struct {
	t        *testing.T
	dir, url string
	key      string
	upstream string
	session  string
	cmd      *exec.Cmd
	stderr   *stderrs
}

const guideConfig = "version: 1\ncosts:\n  - {tools: [buy_report], from_argument: /amount}\n"

// startConsole starts both, with a config of this text; "" for no config at all.
func startConsole(t *testing.T, config string) *consoles {
	t.Helper()
	c := &consoles{t: t, dir: t.TempDir(), stderr: &stderrs{}}
	if config != "" {
		if err := os.WriteFile(filepath.Join(c.dir, "haldir.yaml"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	example := exec.Command("securitytools")
	said, err := example.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := example.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = example.Process.Kill(); _ = example.Wait() })
	line, err := bufio.NewReader(said).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	_, c.upstream, _ = strings.Cut(strings.TrimSpace(line), "serving on ")

	c.key = strings.TrimSpace(c.haldir("key", "create", "--name", "guide", "--scopes", "all"))
	c.cmd = c.command("console", "--port", "0")
	c.cmd.Stderr = c.stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c.cmd.ProcessState != nil {
			return
		}
		_ = c.cmd.Process.Signal(syscall.SIGTERM)
		if err := c.cmd.Wait(); err != nil {
			t.Errorf("haldir console: %v; stderr: %s", err, c.stderr)
		}
	})
	link, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%v; stderr: %s", err, c.stderr)
	}
	c.url, _, _ = strings.Cut(link, "/console/#token=")
	return c
}

// stderrs is what several processes say, at once.
type stderrs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (e *stderrs) Write(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.b.Write(p)
}

func (e *stderrs) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.b.String()
}

func (c *consoles) command(args ...string) *exec.Cmd {
	cmd := exec.Command(program(c.t), args...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "HALDIR_") || strings.HasPrefix(e, "XDG_") }),
		"HOME="+c.dir, "HALDIR_STATE_DIR="+filepath.Join(c.dir, "state"))
	if _, err := os.Stat(filepath.Join(c.dir, "haldir.yaml")); err == nil {
		cmd.Env = append(cmd.Env, "HALDIR_CONFIG="+filepath.Join(c.dir, "haldir.yaml"))
	}
	return cmd
}

func (c *consoles) haldir(args ...string) string {
	c.t.Helper()
	cmd := c.command(args...)
	cmd.Stderr = c.stderr
	out, err := cmd.Output()
	if err != nil {
		c.t.Fatalf("haldir %v: %v: %s", args, err, c.stderr)
	}
	return string(out)
}

// curl runs a command as it stands in the original's guide, but for host, key, session and
// the address of the server. It returns the status and the body.
func (c *consoles) curl(command string) (int, []byte) {
	c.t.Helper()
	command = strings.NewReplacer("https://haldir.xyz", c.url, "hld_xxx", c.key, "ses_a1b2c3d4", c.session, "https://my-mcp-server.com/mcp", c.upstream).Replace(command)
	cmd := exec.Command("sh", "-c", strings.TrimSpace(command)+` -sS -w '\n%{http_code}'`)
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("%s: %v: %s", command, err, out)
	}
	i := bytes.LastIndexByte(out, '\n')
	status, err := strconv.Atoi(string(out[i+1:]))
	if err != nil {
		c.t.Fatalf("%s: %s", command, out)
	}
	return status, bytes.TrimSpace(out[:i])
}

// must is curl with the status it must have.
func (c *consoles) must(status int, command string, into any) {
	c.t.Helper()
	got, body := c.curl(command)
	if got != status {
		c.t.Fatalf("%s: %d %s, want %d", command, got, body, status)
	}
	if into != nil {
		if err := json.Unmarshal(body, into); err != nil {
			c.t.Fatalf("%s: %v: %s", command, err, body)
		}
	}
}

// The commands of the guide.
const (
	guideRegister = `curl -X POST https://haldir.xyz/v1/proxy/upstreams \
  -H "Authorization: Bearer hld_xxx" \
  -H "Content-Type: application/json" \
  -d '{
    "name": "security-tools",
    "url": "https://my-mcp-server.com/mcp"
  }'`
	guideTools = `curl https://haldir.xyz/v1/proxy/tools \
  -H "Authorization: Bearer hld_xxx"`
	guideSession = `curl -X POST https://haldir.xyz/v1/sessions \
  -H "Authorization: Bearer hld_xxx" \
  -H "Content-Type: application/json" \
  -d '{
    "agent_id": "research-bot",
    "scopes": ["read", "execute", "spend"],
    "spend_limit": 25.00,
    "ttl": 3600
  }'`
	guideDeny = `curl -X POST https://haldir.xyz/v1/proxy/policies \
  -H "Authorization: Bearer hld_xxx" \
  -H "Content-Type: application/json" \
  -d '{
    "type": "deny",
    "tools": ["delete_database", "drop_table", "send_wire_transfer"]
  }'`
	guideSpend = `curl -X POST https://haldir.xyz/v1/proxy/policies \
  -H "Authorization: Bearer hld_xxx" \
  -H "Content-Type: application/json" \
  -d '{
    "type": "spend_limit",
    "max_usd": 50.00,
    "per": "session"
  }'`
	guideRate = `curl -X POST https://haldir.xyz/v1/proxy/policies \
  -H "Authorization: Bearer hld_xxx" \
  -H "Content-Type: application/json" \
  -d '{
    "type": "rate_limit",
    "max_calls": 100,
    "window_seconds": 3600
  }'`
	guideWindow = `curl -X POST https://haldir.xyz/v1/proxy/policies \
  -H "Authorization: Bearer hld_xxx" \
  -H "Content-Type: application/json" \
  -d '{
    "type": "time_window",
    "allowed_hours": {"start": "09:00", "end": "17:00"},
    "timezone": "America/New_York"
  }'`
	guideAllow = `curl -X POST https://haldir.xyz/v1/proxy/policies \
  -H "Authorization: Bearer hld_xxx" \
  -H "Content-Type: application/json" \
  -d '{
    "type": "allow",
    "tools": ["scan_domain", "dns_lookup", "whois_lookup", "get_headers"]
  }'`
	guideCall = `curl -X POST https://haldir.xyz/v1/proxy/call \
  -H "Authorization: Bearer hld_xxx" \
  -H "Content-Type: application/json" \
  -d '{
    "tool": "scan_domain",
    "arguments": {"domain": "example.com"},
    "session_id": "ses_a1b2c3d4"
  }'`
	guideAudit = `curl "https://haldir.xyz/v1/audit?session_id=ses_a1b2c3d4" \
  -H "Authorization: Bearer hld_xxx"`
	guideMoney = `curl "https://haldir.xyz/v1/audit/spend?session_id=ses_a1b2c3d4" \
  -H "Authorization: Bearer hld_xxx"`
	guideRevoke = `curl -X DELETE https://haldir.xyz/v1/sessions/ses_a1b2c3d4 \
  -H "Authorization: Bearer hld_xxx"`
)

type toolResult struct {
	Content []struct{ Type, Text string }
	IsError bool
}

type guideEntry struct {
	Timestamp  time.Time
	SessionID  string `json:"session_id"`
	AgentID    string `json:"agent_id"`
	Tool       string
	Upstream   string
	Status     string
	Flagged    bool
	FlagReason string      `json:"flag_reason"`
	CostUSD    json.Number `json:"cost_usd"`
	Arguments  json.RawMessage
}

// begin is the first half of the guide: a server and a session.
func (c *consoles) begin() {
	c.t.Helper()
	var registered struct {
		Registered bool
		Name, URL  string
		Healthy    bool
		Tools      int      `json:"tools_discovered"`
		ToolNames  []string `json:"tool_names"`
	}
	c.must(http.StatusCreated, guideRegister, &registered)
	if !registered.Registered || registered.Name != "security-tools" || registered.URL != c.upstream || !registered.Healthy || registered.Tools != 6 || !slices.Contains(registered.ToolNames, "scan_domain") {
		c.t.Errorf("%+v", registered)
	}
	c.newSession()
}

func (c *consoles) newSession() {
	c.t.Helper()
	var session struct {
		SessionID  string    `json:"session_id"`
		AgentID    string    `json:"agent_id"`
		Scopes     []string  `json:"scopes"`
		SpendLimit float64   `json:"spend_limit"`
		ExpiresAt  time.Time `json:"expires_at"`
		TTL        int       `json:"ttl"`
	}
	c.must(http.StatusCreated, guideSession, &session)
	if session.AgentID != "research-bot" || strings.Join(session.Scopes, " ") != "read execute spend" || session.SpendLimit != 25 || session.TTL != 3600 || session.ExpiresAt.IsZero() {
		c.t.Errorf("%+v", session)
	}
	c.session = session.SessionID
}

// add adds one of the policies.
func (c *consoles) add(command string) {
	c.t.Helper()
	var added struct{ Added bool }
	if c.must(http.StatusCreated, command, &added); !added.Added {
		c.t.Errorf("%s: %+v", command, added)
	}
}

// call calls a tool as the guide does.
func (c *consoles) call(tool, arguments string) (int, []byte) {
	c.t.Helper()
	return c.curl(strings.NewReplacer("scan_domain", tool, `{"domain": "example.com"}`, arguments).Replace(guideCall))
}

// refused calls a tool that a policy must refuse, and returns what the agent is told.
func (c *consoles) refused(policy, tool, arguments string) string {
	c.t.Helper()
	status, body := c.call(tool, arguments)
	var p struct {
		toolResult
		Refusal struct{ Error, Policy string }
	}
	if err := json.Unmarshal(body, &p); err != nil || status != http.StatusForbidden || p.Refusal.Policy != policy || !p.IsError || len(p.Content) != 1 || !strings.Contains(p.Content[0].Text, `"blocked_by":"haldir"`) {
		c.t.Fatalf("%s: %d %s", tool, status, body)
	}
	return p.Refusal.Error
}

func (c *consoles) allowed(tool, arguments string) toolResult {
	c.t.Helper()
	status, body := c.call(tool, arguments)
	var r toolResult
	if err := json.Unmarshal(body, &r); err != nil || status != http.StatusOK || r.IsError {
		c.t.Fatalf("%s: %d %s", tool, status, body)
	}
	return r
}

func (c *consoles) audit() (list struct {
	Count   int
	Entries []guideEntry
},
) {
	c.t.Helper()
	c.must(http.StatusOK, guideAudit, &list)
	return list
}

// TestTheExamplesOfTheAPI runs the commands of docs/rest-api.md in their order: one makes a
// session, and the next calls a tool in it.
func TestTheExamplesOfTheAPI(t *testing.T) {
	t.Parallel()
	c := startConsole(t, guideConfig)
	c.must(http.StatusCreated, guideRegister, nil)
	page, err := os.ReadFile("../../docs/rest-api.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?s)```sh\n(curl .*?)```").FindAllSubmatch(page, -1)
	if len(examples) != 2 {
		t.Fatalf("%d examples", len(examples))
	}
	for i, status := range []int{http.StatusCreated, http.StatusOK} {
		var answer struct {
			SessionID string `json:"session_id"`
		}
		command := strings.NewReplacer("http://127.0.0.1:8764", c.url, "$KEY", c.key, "ses_…", c.session).Replace(string(examples[i][1]))
		c.must(status, command, &answer)
		c.session = cmp.Or(answer.SessionID, c.session)
	}
}

// TestTheOriginalsGuide goes through the guide of the original product, "How to Secure Any
// MCP Server with Haldir Proxy Mode", with curl.
func TestTheOriginalsGuide(t *testing.T) {
	t.Parallel()
	c := startConsole(t, guideConfig)
	c.begin()
	var tools struct {
		Count int
		Tools []struct {
			Name, Description, Upstream, Tool string
			InputSchema                       struct{ Required []string }
		}
	}
	c.must(http.StatusOK, guideTools, &tools)
	i := slices.IndexFunc(tools.Tools, func(t struct {
		Name, Description, Upstream, Tool string
		InputSchema                       struct{ Required []string }
	},
	) bool {
		return t.Tool == "scan_domain"
	})
	if i < 0 || tools.Count != len(tools.Tools) || tools.Tools[i].Upstream != "security-tools" || tools.Tools[i].Description == "" || strings.Join(tools.Tools[i].InputSchema.Required, "") != "domain" {
		t.Errorf("%+v", tools)
	}
	for _, p := range []string{guideDeny, guideSpend, guideRate, guideAllow} {
		c.add(p)
	}
	if r := c.allowed("scan_domain", `{"domain": "example.com"}`); len(r.Content) != 1 || r.Content[0].Text != "example.com: 80/tcp open, 443/tcp open" {
		t.Errorf("%+v", r)
	}
	c.refused("deny", "delete_database", `{}`)
	c.refused("allow", "buy_report", `{"amount": 1}`)

	list := c.audit()
	var seen []string
	for _, e := range list.Entries {
		if e.Tool == "" {
			continue // of the session itself
		}
		seen = append(seen, e.Tool+" "+e.Status)
		if e.SessionID != c.session || e.AgentID != "research-bot" || e.Timestamp.IsZero() || e.CostUSD != "0" || e.Flagged != (e.Status == "denied") {
			t.Errorf("%+v", e)
		}
		if e.Tool == "delete_database" && e.FlagReason != "Tool 'delete_database' is on the deny list" {
			t.Errorf("%+v", e)
		}
	}
	if strings.Join(seen, ", ") != "buy_report denied, delete_database denied, scan_domain allowed" {
		t.Errorf("%v", seen)
	}
	var spend struct {
		Total  float64            `json:"total_usd"`
		Count  int                `json:"action_count"`
		ByTool map[string]float64 `json:"by_tool"`
	}
	if c.must(http.StatusOK, guideMoney, &spend); spend.Total != 0 || spend.Count != 1 {
		t.Errorf("%+v", spend)
	}
	var revoked struct {
		Revoked   bool
		SessionID string `json:"session_id"`
	}
	if c.must(http.StatusOK, guideRevoke, &revoked); !revoked.Revoked || revoked.SessionID != c.session {
		t.Errorf("%+v", revoked)
	}
	c.refused("session", "scan_domain", `{"domain": "example.com"}`)
	// The last of its policies, whose answer depends on the hour.
	c.newSession()
	c.add(guideWindow)
	c.inNewYork()
	// What was written is a config like any other.
	if out := c.haldir("policy", "list"); strings.Count(out, "\n") != 6 {
		t.Errorf("%s", out)
	}
}

// inNewYork calls a tool and compares with what the hour there says.
func (c *consoles) inNewYork() {
	c.t.Helper()
	zone, err := time.LoadLocation("America/New_York")
	if err != nil {
		c.t.Fatal(err)
	}
	open := func() bool { h := time.Now().In(zone).Hour(); return h >= 9 && h < 17 }
	for {
		before := open()
		status, body := c.call("scan_domain", `{"domain": "example.com"}`)
		if open() != before {
			continue // it is opening or closing just now
		}
		if before {
			if status != http.StatusOK {
				c.t.Errorf("it is open, and the answer is %d %s", status, body)
			}
			return
		}
		var p struct {
			Refusal struct {
				Error, Policy string
				RetryAt       time.Time `json:"retry_at"`
			}
		}
		if err := json.Unmarshal(body, &p); err != nil || status != http.StatusForbidden || p.Refusal.Policy != "time_window" {
			c.t.Fatalf("it is closed, and the answer is %d %s", status, body)
		}
		at := p.Refusal.RetryAt.In(zone)
		if at.Hour() != 9 || at.Minute() != 0 || !at.After(time.Now()) || at.Sub(time.Now()) > 25*time.Hour || !strings.Contains(p.Refusal.Error, "the window opens next at") {
			c.t.Errorf("%+v", p.Refusal)
		}
		return
	}
}

// TestThePoliciesOfTheGuide: each of the five bodies alone does what the guide says.
func TestThePoliciesOfTheGuide(t *testing.T) {
	t.Parallel()
	t.Run("deny", func(t *testing.T) {
		t.Parallel()
		c := startConsole(t, guideConfig)
		c.begin()
		for _, tool := range []string{"delete_database", "drop_table", "send_wire_transfer"} {
			c.allowed(tool, `{}`)
		}
		c.add(guideDeny)
		for _, tool := range []string{"delete_database", "drop_table", "send_wire_transfer", "security-tools/drop_table", "security-tools__drop_table"} {
			c.refused("deny", tool, `{}`)
		}
		c.allowed("scan_domain", `{"domain": "a"}`)
	})
	t.Run("allow", func(t *testing.T) {
		t.Parallel()
		c := startConsole(t, guideConfig)
		c.begin()
		c.add(guideAllow)
		c.allowed("scan_domain", `{"domain": "a"}`)
		c.allowed("dns_lookup", `{"domain": "a"}`)
		for _, tool := range []string{"buy_report", "delete_database"} {
			if got := c.refused("allow", tool, `{"domain": "a", "amount": 1}`); !strings.Contains(got, "not on the allow list") {
				t.Errorf("%s", got)
			}
		}
	})
	t.Run("spend_limit", func(t *testing.T) {
		t.Parallel()
		c := startConsole(t, guideConfig)
		c.begin()
		c.add(guideSpend)
		// The session's own 25 is the lower one.
		c.allowed("buy_report", `{"domain": "a", "amount": 25}`)
		if got := c.refused("spend_limit", "buy_report", `{"domain": "a", "amount": 0.01}`); !strings.Contains(got, "$25.00") {
			t.Errorf("%s", got)
		}
		// Of a session with more the policy's 50 is.
		var rich struct {
			SessionID string `json:"session_id"`
		}
		c.must(http.StatusCreated, strings.Replace(guideSession, "25.00", "100.00", 1), &rich)
		c.session = rich.SessionID
		c.allowed("buy_report", `{"domain": "a", "amount": 49.99}`)
		if got := c.refused("spend_limit", "buy_report", `{"domain": "a", "amount": 0.02}`); !strings.Contains(got, "$50.00") {
			t.Errorf("%s", got)
		}
		c.allowed("buy_report", `{"domain": "a", "amount": 0.01}`)
		c.allowed("scan_domain", `{"domain": "a"}`) // what costs nothing goes on
		var spend struct {
			Total     float64 `json:"total_usd"`
			Remaining float64 `json:"remaining_usd"`
		}
		if c.must(http.StatusOK, guideMoney, &spend); spend.Total != 50 || spend.Remaining != 0 {
			t.Errorf("%+v", spend)
		}
	})
	t.Run("rate_limit", func(t *testing.T) {
		t.Parallel()
		c := startConsole(t, guideConfig)
		c.begin()
		c.add(guideRate)
		for range 100 {
			c.allowed("scan_domain", `{"domain": "a"}`)
		}
		began := time.Now()
		if got := c.refused("rate_limit", "scan_domain", `{"domain": "a"}`); !strings.Contains(got, "100 calls per 1h") || !strings.Contains(got, "the window resets at") {
			t.Errorf("%s", got)
		}
		c.newSession() // it is one limit for all
		status, body := c.call("dns_lookup", `{"domain": "a"}`)
		var p struct {
			Refusal struct {
				RetryAt time.Time `json:"retry_at"`
			}
		}
		if err := json.Unmarshal(body, &p); err != nil || status != http.StatusForbidden || p.Refusal.RetryAt.Before(began) || p.Refusal.RetryAt.After(began.Add(time.Hour)) {
			t.Errorf("%d %s", status, body)
		}
		if list := c.audit(); list.Entries[0].Status != "denied" || !list.Entries[0].Flagged {
			t.Errorf("what was refused is not on record: %+v", list)
		}
	})
	t.Run("time_window", func(t *testing.T) {
		t.Parallel()
		c := startConsole(t, guideConfig)
		c.begin()
		c.add(guideWindow)
		c.inNewYork()
	})
}

// TestAConsoleWithoutAConfigMakesOne: somebody who follows the guide has none.
func TestAConsoleWithoutAConfigMakesOne(t *testing.T) {
	t.Parallel()
	c := startConsole(t, "")
	c.begin()
	c.add(guideDeny)
	c.refused("deny", "drop_table", `{}`)
	found := false
	err := filepath.WalkDir(c.dir, func(path string, _ os.DirEntry, err error) error {
		found = found || filepath.Base(path) == "haldir.yaml"
		return err
	})
	if err != nil || !found {
		t.Errorf("no haldir.yaml: %v", err)
	}
}

// TestAConsoleDoesNotTakeWhatNobodyConfirmed: a change of the file that waits for a person
// must not come into force with one that is made over the API.
func TestAConsoleDoesNotTakeWhatNobodyConfirmed(t *testing.T) {
	t.Parallel()
	c := startConsole(t, guideConfig+"policies:\n  - {type: deny, tools: [drop_table]}\n")
	c.begin()
	path := filepath.Join(c.dir, "haldir.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	loose := bytes.Replace(text, []byte("  - {type: deny, tools: [drop_table]}\n"), []byte("  - {type: deny, tools: [nothing]}\n"), 1)
	if err := os.WriteFile(path, loose, 0o600); err != nil {
		t.Fatal(err)
	}
	status, body := c.curl(guideAllow)
	if status != http.StatusConflict || !strings.Contains(string(body), "haldir reload") {
		t.Errorf("%d %s", status, body)
	}
	c.refused("deny", "drop_table", `{}`)
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, loose) {
		t.Errorf("the file was changed: %s, %v", now, err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	c.add(guideAllow)
	c.refused("deny", "drop_table", `{}`)
}

// TestARevokedKeyEndsAtOnce: in a console that runs.
func TestARevokedKeyEndsAtOnce(t *testing.T) {
	t.Parallel()
	c := startConsole(t, guideConfig)
	c.must(http.StatusOK, guideTools, nil)
	var list struct {
		Keys []struct {
			ID     string `json:"key_id"`
			Status string
		}
	}
	if err := json.Unmarshal([]byte(c.haldir("key", "list", "--json")), &list); err != nil || len(list.Keys) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	if out := c.haldir("key", "revoke", list.Keys[0].ID); !strings.Contains(out, "revoked "+list.Keys[0].ID) {
		t.Errorf("%s", out)
	}
	c.must(http.StatusUnauthorized, guideTools, nil)
	if out := c.haldir("key", "list"); !strings.Contains(out, "revoked") {
		t.Errorf("%s", out)
	}
}

// TestAConsoleEnds: with what it has to do, and not before.
func TestAConsoleEnds(t *testing.T) {
	t.Parallel()
	c := startConsole(t, guideConfig)
	r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, c.url+"/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-API-Key", c.key)
	res, err := http.DefaultClient.Do(r) // a stream that does not end by itself
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if err := c.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, res.Body); err != nil && !strings.Contains(err.Error(), "EOF") && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
	if err := c.cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, c.stderr)
	}
	// The port is free, and the ledger whole.
	again := c.command("console", "--port", c.url[strings.LastIndexByte(c.url, ':')+1:])
	out, err := again.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, c.url+"/console/#token=") {
		t.Errorf("%q, %v", line, err)
	}
	other := c.command("console", "--port", c.url[strings.LastIndexByte(c.url, ':')+1:])
	if text, err := other.CombinedOutput(); err == nil || !strings.Contains(string(text), "--port") {
		t.Errorf("the port is taken, and it says: %s, %v", text, err)
	}
	_ = again.Process.Signal(syscall.SIGTERM)
	if err := again.Wait(); err != nil {
		t.Error(err)
	}
	c.haldir("audit", "verify")
}
