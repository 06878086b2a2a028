//go:build linux

package main_test

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/haldir-mcp/haldir/examples/securitytools"
	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// running is a haldir that serves while its config changes.
type running struct {
	t   *testing.T
	h   *mcptest.Haldir
	s   *mcptest.Session
	url string
}

func serveConfig(t *testing.T, extra string) *running {
	t.Helper()
	srv := httptest.NewServer(securitytools.Handler())
	t.Cleanup(srv.Close)
	r := &running{t: t, url: srv.URL + "/mcp"}
	r.h = mcptest.NewHaldir(t, program(t), r.config(extra))
	r.s = r.h.Serve(t)
	r.s.Initialize(mcptest.Revision)
	r.s.Notify("notifications/initialized")
	r.tools()
	return r
}

func (r *running) config(extra string) string {
	return fmt.Sprintf("version: 1\nupstreams:\n  - {name: sec, url: %q}\n%s", r.url, extra)
}

// edit replaces the file as an editor does.
func (r *running) edit(text string) {
	r.t.Helper()
	next := r.h.Config + ".new"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(next, r.h.Config); err != nil {
		r.t.Fatal(err)
	}
}

func (r *running) call(domain string) string {
	return r.s.Ask("tools/call", fmt.Sprintf(`{"name":"sec__scan_domain","arguments":{"domain":%q}}`, domain)).Raw
}

func (r *running) tools() string { return r.s.Ask("tools/list", "{}").Raw }

func (r *running) notice() string {
	m := r.s.Ask("tools/call", `{"name":"haldir_check_permission","arguments":{"scope":"read"}}`)
	var result struct {
		Structured struct {
			Notice string `json:"notice"`
		} `json:"structuredContent"`
	}
	_ = json.Unmarshal(m.Result, &result)
	return result.Structured.Notice
}

func (r *running) until(what string, f func() bool) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("%s: still not so; stderr: %s", what, r.s.Stderr())
		}
	}
}

func TestAStricterConfigIsTakenAtOnce(t *testing.T) {
	t.Parallel()
	r := serveConfig(t, "")
	if got := r.call("a.example"); strings.Contains(got, "blocked_by") {
		t.Fatal(got)
	}
	r.edit(r.config("policies: [{type: deny, tools: [scan_domain]}]\n"))
	r.until("the call is refused", func() bool { return strings.Contains(r.call("a.example"), "deny list") })
	r.s.Await("tools/list_changed", func(m mcptest.Message) bool { return m.Method == "notifications/tools/list_changed" })
	if strings.Contains(r.tools(), "scan_domain") {
		t.Error("the tool is still listed")
	}
	out := r.h.Must(t, "audit", "list", "--json")
	if !strings.Contains(out, `"reloaded"`) {
		t.Errorf("it is not on record: %s", out)
	}
}

func TestALooserConfigWaitsForAPerson(t *testing.T) {
	t.Parallel()
	strict := "policies: [{type: deny, tools: [scan_domain]}]\n"
	r := serveConfig(t, strict)
	r.edit(r.config(""))
	r.until("it is said", func() bool { return strings.Contains(r.notice(), " reload`") })
	if got := r.call("a.example"); !strings.Contains(got, "deny list") {
		t.Fatalf("it is in force already: %s", got)
	}
	// A pipe is no person.
	if out, errOut, code := r.h.Run(t, "reload"); code == 0 || !strings.Contains(out, "deny rule policies[0] is gone") || !strings.Contains(errOut, "terminal") {
		t.Errorf("exit status %d: %s%s", code, out, errOut)
	}
	if got := r.call("a.example"); !strings.Contains(got, "deny list") {
		t.Fatalf("a pipe has confirmed it: %s", got)
	}
	// Taken back, it is as before.
	r.edit(r.config(strict))
	r.until("nothing is said any more", func() bool { return r.notice() == "" })
	r.edit(r.config(""))
	r.until("it is said again", func() bool { return strings.Contains(r.notice(), " reload`") })
	confirmAtTerminal(t, r.h)
	r.until("the call passes", func() bool { return !strings.Contains(r.call("a.example"), "blocked_by") })
	if n := r.notice(); n != "" {
		t.Errorf("the notice: %s", n)
	}
	// An old word does not serve a new change.
	r.edit(r.config(strict))
	r.until("it is refused", func() bool { return strings.Contains(r.call("a.example"), "deny list") })
	r.edit(r.config(""))
	r.until("it is said once more", func() bool { return strings.Contains(r.notice(), " reload`") })
	time.Sleep(2500 * time.Millisecond)
	if got := r.call("a.example"); !strings.Contains(got, "deny list") {
		t.Fatalf("it was taken: %s", got)
	}
	out := r.h.Must(t, "audit", "list", "--json")
	for _, s := range []string{`"waits"`, `"confirmed"`, `"reloaded"`} {
		if !strings.Contains(out, s) {
			t.Errorf("the audit lacks %s", s)
		}
	}
}

// What is edited beside a change that waits to be confirmed waits with it, as the file is taken
// as a whole: who adds a rule must not believe it in force.
func TestAnEditWaitsWithWhatIsUnconfirmed(t *testing.T) {
	t.Parallel()
	const waits = "waits until a person confirms the change before it"
	r := serveConfig(t, "")
	edit := func(args ...string) (out, errOut string) {
		t.Helper()
		out, errOut, code := r.h.Run(t, args...)
		if code != 0 {
			t.Fatalf("%v: exit status %d: %s", args, code, errOut)
		}
		return out, errOut
	}
	if _, errOut := edit("policy", "add", "--type", "deny", "--tools", "a"); errOut != "" {
		t.Errorf("nothing waits: %s", errOut)
	}
	edit("upstream", "add", "docs", "--url", "https://docs.example.com/mcp")
	// At once, so that the running haldir has not looked at the first one yet.
	if _, errOut := edit("policy", "add", "--type", "deny", "--tools", "scan_domain"); !strings.Contains(errOut, waits) || !strings.Contains(errOut, " reload\n") {
		t.Errorf("it is not said that the rule waits: %q", errOut)
	}
	if got := r.call("a.example"); strings.Contains(got, "deny list") {
		t.Fatalf("it is in force: %s", got)
	}
	if out, _ := edit("policy", "add", "--type", "deny", "--tools", "b", "--json"); !strings.Contains(out, waits) {
		t.Errorf("not in the notes: %s", out)
	}
	if out, _ := edit("policy", "add", "--type", "deny", "--tools", "c", "--dry-run", "--json"); !strings.Contains(out, waits) {
		t.Errorf("not in the notes of a dry run: %s", out)
	}
	for _, args := range [][]string{{"explain", "scan_domain"}, {"policy", "list"}} {
		if _, errOut, _ := r.h.Run(t, args...); !strings.Contains(errOut, "not in force until a person confirms it: ") {
			t.Errorf("%v: %q", args, errOut)
		}
	}
	// Without what has waited, the rest is taken.
	if _, errOut := edit("upstream", "remove", "docs"); strings.Contains(errOut, waits) {
		t.Errorf("nothing waits any more: %s", errOut)
	}
	r.until("the rule is in force", func() bool { return strings.Contains(r.call("a.example"), "deny list") })
	for _, args := range [][]string{{"explain", "scan_domain"}, {"policy", "list"}} {
		if _, errOut, _ := r.h.Run(t, args...); strings.Contains(errOut, "not in force") {
			t.Errorf("%v: %q", args, errOut)
		}
	}
	edit("upstream", "add", "docs", "--url", "https://docs.example.com/mcp")
	r.until("it waits", func() bool { return strings.Contains(r.notice(), " reload`") })
	// One that does not run waits for nobody.
	r.s.End()
	if _, errOut := edit("policy", "add", "--type", "deny", "--tools", "d"); errOut != "" {
		t.Errorf("no haldir runs: %s", errOut)
	}
}

// One that has ended waits for nothing: what is started after it has the file as it is.
func TestWhatAnEndedHaldirWaitedForIsForgotten(t *testing.T) {
	t.Parallel()
	for _, kill := range []bool{false, true} {
		r := serveConfig(t, "policies: [{type: deny, tools: [scan_domain]}]\n")
		r.edit(r.config(""))
		r.until("it waits", func() bool { return strings.Contains(r.notice(), " reload`") })
		if kill {
			r.s.Kill()
		} else {
			r.s.End()
		}
		r.s = r.h.Serve(t)
		r.s.Initialize(mcptest.Revision)
		if got := r.call("a.example"); strings.Contains(got, "blocked_by") {
			t.Errorf("it is not in force: %s", got)
		}
		for _, args := range [][]string{{"explain", "scan_domain"}, {"policy", "list"}, {"policy", "add", "--type", "deny", "--tools", "a", "--dry-run"}} {
			if _, errOut, _ := r.h.Run(t, args...); errOut != "" {
				t.Errorf("%v: %q", args, errOut)
			}
		}
		if _, errOut, _ := r.h.Run(t, "reload"); !strings.Contains(errOut, "no running haldir waits") {
			t.Errorf("reload: %q", errOut)
		}
		r.s.End()
	}
}

// A haldir that was started with a change takes the next one, and must not forget that another one
// waits for both.
func TestOneHaldirWaitsBesideAnother(t *testing.T) {
	t.Parallel()
	strict := "policies: [{type: deny, tools: [scan_domain]}]\n"
	r := serveConfig(t, strict)
	r.edit(r.config(""))
	r.until("it is said", func() bool { return strings.Contains(r.notice(), " reload`") })
	later := r.h.Serve(t)
	later.Initialize(mcptest.Revision)
	if _, errOut, _ := r.h.Run(t, "policy", "add", "--type", "deny", "--tools", "dns_lookup"); !strings.Contains(errOut, "waits until a person confirms") {
		t.Errorf("it is not said that the rule waits: %q", errOut)
	}
	r.until("the later one has taken it", func() bool { return strings.Contains(later.Stderr(), "the changed config is in force") })
	if out, errOut, _ := r.h.Run(t, "reload"); !strings.Contains(out, "deny rule policies[0] is gone") {
		t.Errorf("it cannot be confirmed: %s%s", out, errOut)
	}
	later.End()
}

func TestAutoTakesAllOfIt(t *testing.T) {
	t.Parallel()
	r := serveConfig(t, "reload: auto\npolicies: [{type: deny, tools: [scan_domain]}]\n")
	r.edit(r.config("reload: auto\n"))
	r.until("the call passes", func() bool { return !strings.Contains(r.call("a.example"), "blocked_by") })

	// But a file cannot say so of itself.
	r = serveConfig(t, "policies: [{type: deny, tools: [scan_domain]}]\n")
	r.edit(r.config("reload: auto\n"))
	r.until("it waits", func() bool { return strings.Contains(r.notice(), " reload`") })

	// Nor in two steps.
	strict := "policies: [{type: deny, tools: [scan_domain]}]\n"
	r = serveConfig(t, strict)
	r.edit(r.config(strict + "reload: auto\n"))
	r.until("the word alone waits", func() bool { return strings.Contains(r.notice(), "reload: auto") })
	r.edit(r.config("reload: auto\n"))
	r.until("and so does what follows", func() bool { return strings.Contains(r.notice(), "deny rule") })
	if got := r.call("a.example"); !strings.Contains(got, "deny list") {
		t.Error(got)
	}
}

func TestABrokenConfigChangesNothing(t *testing.T) {
	t.Parallel()
	r := serveConfig(t, "")
	r.edit(r.config("policies: [{type: dney, tools: [scan_domain]}]\n"))
	r.until("it is said", func() bool { return strings.Contains(r.notice(), "dney") })
	if !strings.Contains(r.s.Stderr(), "haldir.yaml:4:") || !strings.Contains(r.s.Stderr(), "dney") {
		t.Errorf("stderr: %s", r.s.Stderr())
	}
	if got := r.call("a.example"); strings.Contains(got, "blocked_by") {
		t.Error(got)
	}
	if err := os.Remove(r.h.Config); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	if got := r.call("a.example"); strings.Contains(got, "blocked_by") {
		t.Error(got)
	}
	r.edit(r.config("policies: [{type: deny, tools: [scan_domain]}]\n"))
	r.until("a good one is taken", func() bool { return strings.Contains(r.call("a.example"), "deny list") })
}

func TestUpstreamsComeAndGo(t *testing.T) {
	t.Parallel()
	r := serveConfig(t, "reload: auto\n")
	pid := r.s.Pid()
	other := httptest.NewServer(securitytools.Handler())
	t.Cleanup(other.Close)
	more := fmt.Sprintf("  - {name: more, url: %q}\n", other.URL+"/mcp")
	r.edit(r.config(more + "reload: auto\n"))
	r.until("the new one is listed", func() bool { return strings.Contains(r.tools(), "more__scan_domain") })
	if got := r.s.Ask("tools/call", `{"name":"more__scan_domain","arguments":{"domain":"a.example"}}`).Raw; !strings.Contains(got, "a.example") {
		t.Error(got)
	}
	r.edit(r.config("reload: auto\n"))
	r.until("it is gone", func() bool { return !strings.Contains(r.tools(), "more__scan_domain") })
	if got := r.call("a.example"); strings.Contains(got, "blocked_by") {
		t.Error(got)
	}
	if strings.Count(r.s.Stderr(), `"upstream":"sec","server"`) != 1 {
		t.Errorf("what did not change was started again: %s", r.s.Stderr())
	}
	if r.s.Pid() != pid {
		t.Error("it is another process")
	}
	if out, _ := filepath.Glob(r.h.Config + "*"); len(out) != 1 {
		t.Errorf("files are left: %v", out)
	}
}

// A link above the file may be the one that is changed, in a directory that nobody watches.
func TestAChangeBehindALinkIsTaken(t *testing.T) {
	t.Parallel()
	r := serveConfig(t, "")
	dir := t.TempDir()
	for name, extra := range map[string]string{"one": "", "two": "policies: [{type: deny, tools: [scan_domain]}]\n"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "haldir.yaml"), []byte(r.config(extra)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to string) {
		t.Helper()
		next := filepath.Join(dir, "next")
		if err := os.Symlink(to, next); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, filepath.Join(dir, "current")); err != nil {
			t.Fatal(err)
		}
	}
	link("one")
	r.h.Config = filepath.Join(dir, "current", "haldir.yaml")
	r.s = r.h.Serve(t)
	r.s.Initialize(mcptest.Revision)
	r.s.Notify("notifications/initialized")
	if got := r.call("a.example"); strings.Contains(got, "blocked_by") {
		t.Fatal(got)
	}
	link("two")
	if _, errOut, _ := r.h.Run(t, "policy", "list"); !strings.Contains(errOut, "not in force") && !strings.Contains(r.call("a.example"), "deny list") {
		t.Errorf("it is not said that it is not in force yet: %q", errOut)
	}
	r.until("the call is refused", func() bool { return strings.Contains(r.call("a.example"), "deny list") })
	// The file that is linked to now is in a directory that was not there when it began.
	if err := os.WriteFile(filepath.Join(dir, "two", "haldir.yaml"), []byte(r.config("policies: [{type: deny, tools: [scan_domain, dns_lookup]}]\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	r.until("the other tool is gone", func() bool { return !strings.Contains(r.tools(), "dns_lookup") })
	if _, errOut, code := r.h.Run(t, "policy", "list"); code != 0 || errOut != "" {
		t.Errorf("all of it is in force: %q", errOut)
	}
}

// Who confirms a change must see what it means for each haldir, as they may have begun with
// different ones.
func TestReloadShowsTheReasonsOfAllThatWait(t *testing.T) {
	t.Parallel()
	const deny = "policies: [{type: deny, tools: [scan_domain], id: no-scans}]\n"
	r := serveConfig(t, "")
	more := fmt.Sprintf("  - {name: more, url: %q}\n", r.url)
	r.edit(r.config(more + deny))
	r.until("the first one waits", func() bool { return strings.Contains(r.notice(), " reload`") })
	later := r.h.Serve(t)
	later.Initialize(mcptest.Revision)
	later.Ask("tools/list", "{}")
	r.edit(r.config(more))
	// Said at once, it waits until both have looked.
	if out, errOut, _ := r.h.Run(t, "reload"); !strings.Contains(out, "the deny rule no-scans is gone") || !strings.Contains(out, "upstream more ") {
		t.Errorf("it does not show why both wait: %s%s", out, errOut)
	}
	confirmAtTerminal(t, r.h)
	r.until("the first one has taken it", func() bool { return strings.Contains(r.tools(), "more__") })
	r.until("the later one has taken it", func() bool { return strings.Contains(later.Stderr(), "the changed config is in force") })
	later.End()
}

// A person who says so right after the change must not be told that there is nothing to confirm.
func TestReloadWaitsUntilAllHaveLooked(t *testing.T) {
	t.Parallel()
	r := serveConfig(t, "policies: [{type: deny, tools: [scan_domain], id: no-scans}]\n")
	r.h.Must(t, "policy", "remove", "no-scans")
	if out, errOut, _ := r.h.Run(t, "reload"); !strings.Contains(out, "the deny rule no-scans is gone") {
		t.Errorf("%s%s", out, errOut)
	}
}

// suspend stops a haldir while it does not have the ledger.
func suspend(t *testing.T, h *mcptest.Haldir, s *mcptest.Session) (resume func()) {
	t.Helper()
	resume = func() { _ = unix.Kill(s.Pid(), unix.SIGCONT) }
	for range 20 {
		if err := unix.Kill(s.Pid(), unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		if _, _, code := h.Run(t, "session", "create"); code == 0 {
			return resume
		}
		resume()
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("it always has the ledger")
	return nil
}

// What has just been saved is no reason to call a healthy haldir stuck.
func TestDoctorWaitsUntilAllHaveLooked(t *testing.T) {
	t.Parallel()
	r := serveConfig(t, "policies: [{type: deny, tools: [scan_domain], id: no-scans}]\n")
	resume := suspend(t, r.h, r.s)
	defer resume()
	r.edit(r.config(""))
	time.AfterFunc(time.Second, resume)
	if out, errOut, _ := r.h.Run(t, "doctor", "--json"); !strings.Contains(out, `"reload-pending"`) || strings.Contains(out, `"reload-unseen"`) {
		t.Errorf("%s%s", out, errOut)
	}
}

// Who confirms a change must know which haldirs go on without it.
func TestReloadNamesTheHaldirsThatDoNotTakeIt(t *testing.T) {
	t.Parallel()
	r := serveConfig(t, "policies: [{type: deny, tools: [scan_domain], id: no-scans}]\n")
	suspended := r.h.Serve(t)
	suspended.Initialize(mcptest.Revision)
	suspended.Ask("tools/list", "{}")
	defer suspend(t, r.h, suspended)()
	r.edit(r.config(""))
	out, errOut, _ := r.h.Run(t, "reload")
	if !strings.Contains(out, "the deny rule no-scans is gone") || !strings.Contains(errOut, "has not looked at") || !strings.Contains(errOut, "a reload of its own") {
		t.Errorf("%s%s", out, errOut)
	}
}

// What is edited at the same time is looked at together.
func TestEditsAtTheSameTimeAreInForce(t *testing.T) {
	t.Parallel()
	r := serveConfig(t, "")
	var wg sync.WaitGroup
	for _, tool := range []string{"scan_domain", "dns_lookup", "another"} {
		wg.Go(func() {
			if _, errOut, code := r.h.Run(t, "policy", "add", "--type", "deny", "--tools", tool); code != 0 || errOut != "" {
				t.Errorf("%s: exit status %d: %s", tool, code, errOut)
			}
		})
	}
	wg.Wait()
	if got := r.call("a.example"); !strings.Contains(got, "deny list") {
		t.Error(got)
	}
}

// A pipe whose writer says nothing must keep nobody waiting.
func TestAConfigThatHasBecomeAPipe(t *testing.T) {
	t.Parallel()
	r := serveConfig(t, "")
	if err := os.Remove(r.h.Config); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(r.h.Config, 0o600); err != nil {
		t.Fatal(err)
	}
	silent, err := os.OpenFile(r.h.Config, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	time.Sleep(1500 * time.Millisecond) // it has looked
	if got := r.call("a.example"); strings.Contains(got, "blocked_by") {
		t.Error(got)
	}
	r.s.End()
}

// One that has begun without a config goes on so, and an edit must not look as if it were in force.
func TestAnEditBesideAHaldirWithoutAConfig(t *testing.T) {
	t.Parallel()
	h := mcptest.NewHaldir(t, program(t), "")
	if err := os.Remove(h.Config); err != nil {
		t.Fatal(err)
	}
	h.Env = append(h.Env, "HOME="+h.Dir, "XDG_CONFIG_HOME="+h.Dir, "HALDIR_STATE_DIR="+h.State)
	run := func(args ...string) *exec.Cmd {
		cmd := exec.Command(h.Program, args...)
		cmd.Dir, cmd.Env = h.Dir, h.Env
		return cmd
	}
	s := mcptest.Start(t, run("serve"))
	s.Initialize(mcptest.Revision)
	s.Ask("tools/call", `{"name":"haldir_get_spend","arguments":{}}`)
	out, err := run("policy", "add", "--type", "deny", "--tools", "a").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "has begun without a config") {
		t.Errorf("%v: %s", err, out)
	}
	if out, _ := run("reload").CombinedOutput(); !strings.Contains(string(out), "has begun without a config") {
		t.Errorf("reload: %s", out)
	}
	if out, _ := run("doctor", "--json").CombinedOutput(); !strings.Contains(string(out), `"reload-without"`) {
		t.Errorf("doctor: %s", out)
	}
	s.End()
}
