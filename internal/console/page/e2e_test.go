package page_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/haldir-mcp/haldir/examples/securitytools"
	"github.com/haldir-mcp/haldir/internal/mcptest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	mcptest.CleanUp()
	os.Exit(code)
}

const realConfig = `version: 1
session: {agent_id: research-bot, spend_limit: 5.00}
upstreams:
  - {name: sec, url: "%s/mcp"}
costs:
  - {tools: [scan_domain], usd: 0.25}
policies:
  - {id: look-first, type: require_approval, tools: [scan_domain], remember: [call, session]}
  - {id: no-deletes, type: deny, tools: [delete_database]}
  - {id: daily, type: spend_limit, max_usd: 10.00, per: day}
`

// console starts haldir console and returns the link that it prints.
func console(t *testing.T, h *mcptest.Haldir) (link string) {
	t.Helper()
	cmd := h.Command("console", "--port", "0")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var words strings.Builder
	cmd.Stderr = &words
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after the browser has ended, which asks it now and then
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			t.Errorf("haldir console: %v\n%s", err, words.String())
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("haldir console printed no link: %v\n%s", err, words.String())
	}
	go func() { _, _ = io.Copy(io.Discard, out) }() // ends with the process
	return strings.TrimSpace(line)
}

// TestRealConsole has a real haldir serve hold calls, and answers them in the page of a
// real haldir console.
func TestRealConsole(t *testing.T) {
	t.Parallel()
	tools := httptest.NewServer(securitytools.Handler())
	t.Cleanup(tools.Close)
	h := mcptest.NewHaldir(t, mcptest.Build(t), fmt.Sprintf(realConfig, tools.URL))
	link := console(t, h)
	at, token, _ := strings.Cut(link, "/console/")
	b := open(t, at, "401")
	b.look(1280, "light")
	b.do(chromedp.Navigate(at + "/console/" + token))
	b.until(`document.querySelector("main h1")?.textContent === "Overview" && document.querySelector(".dot.live")`)

	agent := h.Serve(t)
	agent.Initialize(mcptest.Revision)
	agent.Ask("tools/list", "")
	call := func(tool, arguments string) string {
		return agent.Post("tools/call", mcptest.CallParams("sec__"+tool, arguments, ""))
	}
	outcome := func(id string) string { return agent.Wait(id).Outcome() }
	passed := func(got string) bool { return strings.HasPrefix(got, "result: ") && !strings.Contains(got, "isError") }
	refused := func(got, why string) bool {
		return strings.Contains(got, `"isError":true`) && strings.Contains(got, why)
	}

	// One that serve is holding is approved, with the mouse, from the overview on.
	held := call("scan_domain", `{"domain":"example.com"}`)
	b.until(`document.querySelector(".urgent")?.innerText.includes("scan_domain")`)
	b.shot("waiting")
	b.click(".urgent a.button")
	b.until(`document.querySelector("article")?.innerText.includes('"example.com"') && document.querySelector("article .cost").innerText === "$0.25"`)
	b.shot("held")
	b.accessible("held")
	b.click(`article input`)
	b.keys("for the report")
	b.click(`article [data-do=approve]`)
	if got := outcome(held); !passed(got) {
		t.Fatalf("the approved call: %s", got)
	}
	// Once is once.
	held = call("scan_domain", `{"domain":"example.com"}`)
	b.click(`article:not(.answered) [data-do=deny]`)
	if got := outcome(held); !refused(got, "denied") {
		t.Fatalf("the denied call: %s", got)
	}
	// For the session, by the keyboard.
	held = call("scan_domain", `{"domain":"example.org"}`)
	b.until(`document.querySelector("article:not(.answered) [data-do=session]:enabled")`)
	b.eval(`document.querySelector("article:not(.answered)").focus()`, nil)
	b.keys("s", "\r")
	if got := outcome(held); !passed(got) {
		t.Fatalf("the call approved for the session: %s", got)
	}
	if got := outcome(call("scan_domain", `{"domain":"example.org"}`)); !passed(got) {
		t.Fatalf("the same call again: %s", got)
	}
	if got := outcome(call("delete_database", `{}`)); !refused(got, "deny list") {
		t.Fatalf("a denied tool: %s", got)
	}
	if got := outcome(call("dns_lookup", `{"domain":"example.com"}`)); !passed(got) {
		t.Fatalf("a free tool: %s", got)
	}

	// The record has all of it.
	b.visit("calls?status=denied")
	b.until(`document.querySelectorAll("tbody tr").length === 2 && [...document.querySelectorAll("tbody .status")].every(s => s.innerText.includes("denied"))`)
	b.visit("calls")
	b.click(`input[name=tool]`)
	b.keys("sec/delete_database", "\r")
	b.until(`document.querySelectorAll("tbody tr").length === 1 && document.querySelector("tbody").innerText.includes("deny list")`)
	b.shot("filtered")
	b.click("tbody .row-link")
	b.until(`document.querySelector("dialog[open]")?.innerText.includes("no-deletes")`)
	b.keys("\x1b")
	b.visit("calls")
	b.click("#verify")
	b.until(`document.querySelector(".verdict.ok")`)
	var lines int
	b.eval(`fetch(document.querySelector(".exports a").href).then(r => r.text()).then(t => t.trim().split("\n").map(JSON.parse).length)`, &lines)
	if lines < 8 {
		t.Errorf("the export has %d records", lines)
	}

	// Figures.
	b.visit("spend")
	b.until(`document.querySelector(".limits").innerText.includes("$0.75 of $5.00") && document.querySelector(".limits").innerText.includes("$0.75 of $10.00")`)
	b.until(`document.querySelector(".spend .big").innerText.startsWith("$0.75 ")`)
	b.visit("policies")
	b.until(`[...document.querySelectorAll("tbody tr")].find(r => r.innerText.includes("no-deletes"))?.querySelector(".refused").innerText.trim() === "1"`)
	b.visit("upstreams")
	b.until(`document.querySelector(".upstream")?.innerText.includes("ready")`)
	b.visit("pins")
	b.until(`document.querySelector(".empty-title")?.textContent === "Everything is as it is pinned"`)

	// Stop everything, and go on.
	b.click("#stop")
	b.click(`dialog input`)
	b.keys("an exercise")
	b.click(`dialog button.danger`)
	b.until(`document.querySelector(".banner.stopped")?.innerText.includes("an exercise")`)
	if got := outcome(call("dns_lookup", `{"domain":"example.com"}`)); !refused(got, "an exercise") {
		t.Errorf("a call while all is stopped: %s", got)
	}
	b.click(".banner.stopped button")
	b.click(`dialog button.primary`)
	b.until(`!document.querySelector(".banner.stopped")`)
	if got := outcome(call("dns_lookup", `{"domain":"example.com"}`)); !passed(got) {
		t.Errorf("a call after the stop: %s", got)
	}

	// The session ends.
	b.visit("sessions")
	b.click(`tbody button[aria-label^="Revoke ses_"][aria-label$="research-bot"]`)
	b.click(`dialog button[type=submit]`)
	b.until(`document.querySelector(".empty-title")?.textContent === "No session is active"`)
	if got := outcome(call("dns_lookup", `{"domain":"example.com"}`)); !refused(got, "revoked") {
		t.Errorf("a call in a revoked session: %s", got)
	}

	for _, v := range views {
		for _, l := range []look{{1280, "dark"}, {380, "light"}} {
			b.look(l.width, l.scheme)
			b.visit(v)
			name := v
			if v == "" {
				name = "overview"
			}
			b.shot(fmt.Sprintf("%s-%d-%s", name, l.width, l.scheme))
			b.accessible(name)
		}
	}
	agent.End()

	// A signed out browser gets nothing, and the page does not stay.
	b.look(1280, "light")
	b.click("#sign-out")
	b.until(`document.querySelector(".signed-out") && !document.querySelector("table, article")`)
	var status int
	b.eval(`fetch("/v1/audit").then(r => r.status)`, &status)
	if status != 401 {
		t.Errorf("after the sign-out the record answers %d", status)
	}
}

// TestTheOpenedFileLeadsIn: what a program is started with to show the console does not
// sign anybody in, since everybody can read it.
func TestTheOpenedFileLeadsIn(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere the browser is opened by another program")
	}
	tools := httptest.NewServer(securitytools.Handler())
	t.Cleanup(tools.Close)
	h := mcptest.NewHaldir(t, mcptest.Build(t), fmt.Sprintf(realConfig, tools.URL))
	dir := t.TempDir()
	told := filepath.Join(dir, "told")
	script := "#!/bin/sh\nprintf %s \"$*\" > '" + told + ".new' && mv '" + told + ".new' '" + told + "'\n"
	if err := os.WriteFile(filepath.Join(dir, "xdg-open"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := h.Command("console", "--port", "0", "--open")
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, "PATH="+dir+":"+os.Getenv("PATH"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var opened []byte
	for deadline := time.Now().Add(patience); len(opened) == 0; time.Sleep(20 * time.Millisecond) {
		if opened, _ = os.ReadFile(told); time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			t.Fatal("nothing was opened")
		}
	}
	path := strings.TrimPrefix(string(opened), "file://")
	info, err := os.Stat(path)
	if err != nil || strings.Contains(string(opened), "token") || info.Mode().Perm() != 0o600 {
		t.Errorf("opened: %s, %v, %v", opened, info, err)
	}
	b := open(t, "")
	b.do(chromedp.Navigate("file://" + path))
	b.until(`document.querySelector("main h1")?.textContent === "Overview" && document.querySelector(".dot.live")`)
	_ = cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
}
