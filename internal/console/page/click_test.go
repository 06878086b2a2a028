package page_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"
)

const (
	first  = `article[data-key="apr_9121"]`
	second = `article[data-key="apr_9127"]`
)

func TestSigningIn(t *testing.T) {
	t.Parallel()
	f := newFake(50)
	b := open(t, serve(t, f), "401")
	b.look(1280, "light")
	b.replace(fmt.Sprintf("location.href = %q", b.url+"/console/"))
	b.until(`document.querySelector(".signed-out code")?.textContent === "haldir console"`)
	b.shot("signed-out")
	b.accessible("signed out")

	b.replace(fmt.Sprintf("(location.href = %q, location.reload())", b.url+"/console/#token=old"))
	b.until(`document.querySelector(".signed-out .why")?.textContent.includes("used already")`)

	b.replace(fmt.Sprintf("(location.href = %q, location.reload())", b.url+"/console/#token=one-time"))
	b.until(`document.querySelector("main h1")?.textContent === "Overview"`)
	if b.is(`location.href.includes("one-time") || document.cookie !== ""`) {
		t.Error("the token is still in the address, or a script can read the cookie")
	}
	b.replace(`location.reload()`)
	b.until(`document.querySelector(".dot.live")`) // by the cookie, and what the page has kept

	// The session ends while the page is open.
	f.mu.Lock()
	f.out = true
	f.mu.Unlock()
	b.eval(`location.hash = "#/sessions"`, nil)
	b.until(`document.querySelector(".signed-out") && document.querySelector(".side").hidden`)
	f.mu.Lock()
	f.out = false
	f.mu.Unlock()

	// A person ends it.
	b.replace(`location.reload()`)
	b.until(`document.querySelector(".dot.live")`)
	b.click("#sign-out")
	b.until(`document.querySelector(".signed-out .why")?.textContent === "You are signed out."`)
	b.replace(`location.reload()`)
	b.until(`document.querySelector(".signed-out")`)
}

func TestApprovals(t *testing.T) {
	t.Parallel()
	f := newFake(300).furnish()
	b := open(t, serve(t, f), "409")
	b.look(1280, "light")
	b.start("approvals")
	b.until(`document.title.startsWith("(2) Approvals")`)
	b.shot("two")

	b.click(first + ` input`)
	b.keys("seat 14, as agreed")
	b.watch("approved for this session")
	b.click(first + ` [data-do=session]`)
	f.within(t, `POST /v1/approvals/apr_9121/approve {"for_session":true,"note":"seat 14, as agreed"}`)
	// What was answered keeps its place for a while, and cannot be answered again.
	b.until(`watched`)
	b.until(fmt.Sprintf(`!document.querySelector('%s')`, first))

	b.click(second + ` [data-do=deny]`)
	f.within(t, `POST /v1/approvals/apr_9127/deny {"note":""}`)
	b.until(`document.querySelector(".empty")?.offsetParent && document.querySelector(".empty").innerText.includes("require_approval")`)
	b.shot("none")

	// New ones come by themselves and are told of.
	f.ask(approval("apr_1", "mail", "send", object{"to": "all@example.com"}))
	b.until(`document.querySelector("#polite").textContent === "billing-agent asks to call mail/send"`)
	// The list must not be moved under somebody's hands.
	b.click(`article[data-key="apr_1"] input`)
	b.keys("half a no")
	f.ask(approval("apr_2", "mail", "delete", object{}))
	b.until(`document.querySelectorAll("article").length === 2`)
	if !b.is(`document.activeElement.value === "half a no" && document.activeElement.closest("article").dataset.key === "apr_1"`) {
		t.Error("what was typed is gone, or the focus")
	}
	// Another channel answers first.
	f.mu.Lock()
	f.approvals = f.approvals[1:]
	f.mu.Unlock()
	b.until(`!document.querySelector("article[data-key=apr_1] [data-do=approve]").disabled`)
	b.watch("The call was answered already")
	b.click(`article[data-key="apr_1"] [data-do=approve]`)
	b.until(`watched`)
}

// watch notes whether a card ever stands there answered, with these words, since it goes
// a moment later.
func (b *browser) watch(words string) {
	b.t.Helper()
	b.eval(fmt.Sprintf(`(window.watched = false, new MutationObserver(() => {
		for (const c of document.querySelectorAll(".approval.answered")) watched ||= c.querySelector(".clock").textContent === %q && [...c.querySelectorAll("button, input")].every(x => x.disabled);
	}).observe(document.querySelector(".cards"), {subtree: true, childList: true, characterData: true, attributes: true}))`, words), nil)
}

// TestKeys approves with the keyboard alone, from another view.
func TestKeys(t *testing.T) {
	t.Parallel()
	f := newFake(300).furnish()
	b := open(t, serve(t, f))
	b.look(1280, "dark")
	b.start("")
	b.keys("g", "a")
	b.until(fmt.Sprintf(`document.querySelector('%s [data-do=approve]:enabled')`, first))
	b.keys("a", "d", "s", kb.Enter, " ", "y") // at nothing
	b.keys("j")
	b.until(fmt.Sprintf(`document.activeElement.matches('%s')`, first))
	b.keys("j", "j", "k")
	b.until(fmt.Sprintf(`document.activeElement.matches('%s')`, first))
	b.keys(kb.Enter, " ")
	b.shot("focus")
	b.keys("d")
	b.until(`document.activeElement.dataset.do === "deny"`)
	b.keys("a")
	b.until(`document.activeElement.dataset.do === "approve"`)
	if did := f.did(); len(did) > 0 {
		t.Fatalf("a single key did %q", did)
	}
	b.keys(kb.Enter)
	f.within(t, `POST /v1/approvals/apr_9121/approve {"for_session":false,"note":""}`)

	// By Tab too: the visible order is the order of the focus.
	b.until(fmt.Sprintf(`!document.querySelector('%s')`, first))
	b.eval(`document.querySelector("main h1").focus()`, nil)
	for range 12 {
		b.keys(kb.Tab)
		if b.is(`document.activeElement.dataset.do === "deny"`) {
			break
		}
	}
	b.keys(" ")
	f.within(t, `POST /v1/approvals/apr_9127/deny {"note":""}`)

	// The help, which can turn them off.
	b.keys("?")
	b.until(`document.querySelector("dialog[open] h2")?.textContent === "Keyboard shortcuts"`)
	b.shot("help")
	b.accessible("help")
	b.keys("g", "c") // not while it is open
	b.click("#keys-on")
	b.keys(kb.Escape)
	b.until(`!document.querySelector("dialog")`)
	b.keys("g", "c")
	if !b.is(`location.hash === "#/approvals"`) {
		t.Error("keys work although they are turned off, or behind a dialog")
	}
	b.click("#help")
	b.click("#keys-on")
	b.keys(kb.Escape)
	b.until(`!document.querySelector("dialog") && document.activeElement.id === "help"`)
	b.keys("/")
	b.until(`location.hash === "#/calls"`)
	b.settled()
	b.keys("/")
	b.until(`document.activeElement.name === "tool"`)
	b.keys("j")
	var typed string
	b.eval(`document.activeElement.value ?? document.activeElement.outerHTML`, &typed)
	if typed != "j" {
		t.Errorf("a letter in a field is typed as %q", typed)
	}
	b.keys(kb.Backspace, kb.Escape, "j")
	b.until(`document.activeElement.matches(".row-link")`)
	b.keys(kb.Enter)
	b.until(`document.querySelector("dialog[open] h2")?.textContent === "Record 300"`)
	b.shot("record")
	b.accessible("record")
}

func TestSessions(t *testing.T) {
	t.Parallel()
	f := newFake(10).furnish()
	b := open(t, serve(t, f))
	b.look(1280, "light")
	b.start("sessions")
	if n := strings.Count(b.text("table"), "ses_"); n != 5 {
		t.Errorf("%d active sessions", n)
	}
	b.click(`button[aria-label^="Revoke ses_01k9v3q8r5m2x7t42"]`)
	b.until(`document.querySelector("dialog[open]")`)
	b.shot("revoke")
	b.accessible("revoke")
	b.keys(kb.Escape)
	b.until(`!document.querySelector("dialog")`)
	b.click(`button[aria-label^="Revoke ses_01k9v3q8r5m2x7t42"]`)
	b.click(`dialog input[name=cancel]`)
	b.click(`dialog button[type=submit]`)
	f.within(t, `DELETE /v1/sessions/ses_01k9v3q8r5m2x7t42?cancel=true`)
	b.until(`!document.querySelector("table").innerText.includes("7t42")`)
	b.eval(`(s => { s.value = "all"; s.dispatchEvent(new Event("change")) })(document.querySelector("main select"))`, nil)
	b.until(`[...document.querySelectorAll("tr")].some(r => r.innerText.includes("7t42") && r.innerText.includes("revoked"))`)
	b.shot("all")
	if did := f.did(); len(did) != 1 {
		t.Errorf("it did %q", did)
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	f := newFake(10).furnish()
	b := open(t, serve(t, f))
	b.look(1280, "light")
	b.start("")
	b.click("#stop")
	b.until(`document.querySelector("dialog[open]")`)
	b.shot("dialog")
	b.accessible("stop")
	b.click(`dialog button.quiet`)
	b.until(`!document.querySelector("dialog")`)
	b.click("#stop")
	b.click(`dialog input`)
	b.keys("looks odd")
	b.click(`dialog button.danger`)
	f.within(t, `POST /v1/stop {"reason":"looks odd"}`)
	b.until(`document.querySelector(".banner.stopped")?.innerText.includes("looks odd")`)
	b.shot("stopped")
	b.accessible("stopped")
	b.click(".banner.stopped button")
	b.click(`dialog button.primary`)
	f.within(t, `DELETE /v1/stop`)
	b.until(`!document.querySelector(".banner")`)
	// Somebody else stops everything.
	f.mu.Lock()
	f.stopped = object{"at": f.now, "reason": ""}
	f.tell("state", f.state(), 0)
	f.mu.Unlock()
	b.until(`document.querySelector(".banner.stopped")`)
}

func TestRecord(t *testing.T) {
	t.Parallel()
	f := newFake(100_000)
	b := open(t, serve(t, f))
	b.look(1280, "light")
	b.start("calls")
	b.eval(`(s => { s.value = "200"; s.dispatchEvent(new Event("change")) })(document.querySelector(".pager select"))`, nil)
	b.until(`document.querySelectorAll("tbody tr").length === 200`)

	// All of it, page by page, with a bounded document. It looks at what is in the
	// document, so that it need not wait for 500 pages to be painted.
	b.eval(`document.styleSheets[0].insertRule(".results { display: none }")`, nil)
	var walk struct {
		Pages, Rows, MostNodes, Last int
		InOrder, End                 bool
		Milliseconds                 float64
	}
	b.eval(`window.walk = {Pages: 0, Rows: 0, MostNodes: 0, InOrder: true, Last: 1e9, End: false, Milliseconds: 0}`, nil)
	for !walk.End && walk.Pages < 1000 {
		b.eval(`(async () => {
			const results = document.querySelector(".results");
			const older = document.querySelector("[data-page=older]");
			const began = performance.now();
			for (let i = 0; i < 25 && !walk.End; i++) {
				walk.Pages++;
				const rows = document.querySelectorAll("tbody tr");
				walk.Rows += rows.length;
				walk.MostNodes = Math.max(walk.MostNodes, document.querySelectorAll("*").length);
				for (const r of rows) {
					walk.InOrder &&= Number(r.dataset.seq) < walk.Last;
					walk.Last = Number(r.dataset.seq);
				}
				if ((walk.End = older.disabled)) break;
				const turned = new Promise(done => new MutationObserver((_, o) => { o.disconnect(); done(); }).observe(results, {attributeFilter: ["data-page"]}));
				older.click();
				await turned;
			}
			walk.Milliseconds += performance.now() - began;
			return walk;
		})()`, &walk)
	}
	t.Logf("%+v, %.1f ms a page", walk, walk.Milliseconds/float64(walk.Pages))
	if walk.Pages != 500 || walk.Rows != 100_000 || walk.Last != 1 || !walk.InOrder {
		t.Errorf("not every record came once, in order: %+v", walk)
	}
	if walk.MostNodes > 6000 {
		t.Errorf("%d elements for a page of 200 records", walk.MostNodes)
	}
	b.eval(`document.styleSheets[0].deleteRule(0)`, nil)
	b.click("[data-page=newer]")
	b.until(`document.querySelector(".where").textContent.startsWith("Page 499")`)
	b.keys("n")
	b.until(`document.querySelector(".where").textContent.startsWith("Page 500")`)
	b.click("[data-page=newest]")
	b.until(`document.querySelector("tbody tr")?.dataset.seq === "100000"`)

	// What comes meanwhile does not move what is read.
	f.call(3)
	b.until(`document.querySelector(".news")?.textContent === "3 new · show"`)
	if !b.is(`document.querySelector("tbody tr").dataset.seq === "100000"`) {
		t.Error("the list moved")
	}
	b.click(".news")
	b.until(`document.querySelector("tbody tr").dataset.seq === "100003"`)

	// Filters, alone and together; they are part of the address.
	b.eval(`(s => { s.value = "denied"; s.dispatchEvent(new Event("change", {bubbles: true})) })(document.querySelector("select[name=status]"))`, nil)
	b.until(`document.querySelector(".where") && [...document.querySelectorAll("tbody .status")].every(s => s.innerText.includes("denied")) && document.querySelectorAll("tbody tr").length === 200`)
	b.click(`input[name=tool]`)
	b.keys("db/delete_database", kb.Enter)
	b.until(`location.hash.includes("tool=db%2Fdelete_database")`)
	b.until(`document.querySelectorAll("tbody tr").length === 200 && [...document.querySelectorAll("tbody .c-tool .tool")].every(s => s.title === "db/delete_database")`)
	b.click(`input[name=agent_id]`)
	b.keys("nobody", kb.Enter)
	b.until(`document.querySelector(".empty-title")?.textContent === "Nothing like that is on record"`)
	b.shot("nothing")
	b.click(`#clear-filters`)
	b.until(`location.hash === "#/calls" && document.querySelectorAll("tbody tr").length === 200`)
	b.click(`input[name=flagged]`)
	b.until(`location.hash.includes("flagged=true") && document.querySelectorAll("tbody tr").length === 200 && [...document.querySelectorAll("tbody .status")].every(s => /denied|error/.test(s.innerText))`)
	var hrefs []string
	b.eval(`[...document.querySelectorAll(".exports a")].map(a => a.getAttribute("href"))`, &hrefs)
	if fmt.Sprint(hrefs) != "[/v1/audit/export?format=jsonl&flagged=true /v1/audit/export?format=csv&flagged=true]" {
		t.Errorf("exports are %q", hrefs)
	}

	b.click("#verify")
	b.until(`document.querySelector(".verdict.ok")?.innerText.includes("100,003 records")`)
	b.shot("verified")
	f.mu.Lock()
	f.damage = object{"kind": "edit", "seq": 4711, "detail": "its hash is not that of its bytes"}
	f.mu.Unlock()
	b.click("#verify")
	b.until(`document.querySelector(".verdict.no")?.innerText.includes("4711")`)
	b.accessible("damaged")
	b.shot("damaged")
}

func TestFeed(t *testing.T) {
	t.Parallel()
	f := newFake(500)
	b := open(t, serve(t, f))
	b.look(1280, "light")
	b.start("")
	f.call(4000)
	b.until(`document.querySelector(".feed li")?.dataset.key === "4500"`)
	if n := b.is(`document.querySelectorAll(".feed li").length === 18`); !n {
		t.Error("the feed is not bounded")
	}
	b.click(`section[aria-labelledby] .panel-head button`)
	f.call(5)
	b.visit("calls")
	b.until(`document.querySelector("tbody tr").dataset.seq === "4505"`)
}

func TestPins(t *testing.T) {
	t.Parallel()
	f := newFake(10).furnish()
	b := open(t, serve(t, f))
	b.look(1280, "light")
	b.start("pins")
	diff := b.text(".change .diff")
	for _, part := range []string{"description", "~/.ssh/config", "inputSchema.properties.context", "inputSchema.required"} {
		if !strings.Contains(diff, part) {
			t.Errorf("the difference does not show %s:\n%s", part, diff)
		}
	}
	if strings.Contains(diff, "issue\n") {
		t.Errorf("it shows what has not changed:\n%s", diff)
	}
	b.click(`[data-do=accept]`)
	b.until(`document.querySelector("dialog[open]")`)
	b.shot("accept")
	b.accessible("accept")
	b.click(`dialog button.primary`)
	f.within(t, `POST /v1/pins/github/accept {"digests":["d1","d2"]}`)
	b.until(`document.querySelector(".empty-title")?.textContent === "Everything is as it is pinned"`)
}

// TestWhatIsNotShownIsNotAccepted: a change with more in it than the page shows.
func TestWhatIsNotShownIsNotAccepted(t *testing.T) {
	t.Parallel()
	was, is := object{"description": "old words"}, object{"description": "new words"}
	for i := range 250 {
		was[fmt.Sprintf("a%03d", i)], is[fmt.Sprintf("a%03d", i)] = i, i+1
	}
	f := newFake(5)
	f.pins = []object{{"upstream": "padded", "mode": "hold", "since": f.now, "changes": []object{{"kind": "tool", "name": "t", "digest": "d", "old": was, "new": is}}}}
	b := open(t, serve(t, f))
	b.start("pins")
	text := b.text("section.panel")
	if !strings.Contains(text, "and 51 more; see haldir pins diff padded") || !b.is(`document.querySelector("[data-do=accept]").disabled`) {
		t.Errorf("the cut is not said, or can be accepted: %.300s", text)
	}
	if first := b.text(".diff dt"); first != "description" {
		t.Errorf("first comes %s", first)
	}
}

func TestServerGone(t *testing.T) {
	t.Parallel()
	f := newFake(100).furnish()
	b := open(t, serve(t, f), "ERR_", "net::")
	b.look(1280, "light")
	b.start("approvals")
	f.leave()
	b.until(`document.querySelector(".banner.lost")`)
	b.shot("gone")
	b.accessible("gone")
	if !b.is(`document.querySelectorAll("article").length === 2`) {
		t.Error("what was there is gone too")
	}
	f.mu.Lock()
	f.approvals = f.approvals[:1]
	f.mu.Unlock()
	f.come()
	b.until(`!document.querySelector(".banner.lost") && document.querySelector(".dot.live")`)
	b.until(`document.querySelectorAll("article").length === 1`)
}

// TestHidden has a tab that nobody looks at leave its connection to others.
func TestHidden(t *testing.T) {
	t.Parallel()
	f := newFake(100)
	b := open(t, serve(t, f))
	b.look(1280, "light")
	b.start("")
	streams := func(n int) {
		t.Helper()
		for range 600 {
			f.mu.Lock()
			now := len(f.streams)
			f.mu.Unlock()
			if now == n {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Fatalf("there are not %d streams", n)
	}
	streams(1)
	show := `(Object.defineProperty(document, "hidden", {configurable: true, get: () => %v}), document.dispatchEvent(new Event("visibilitychange")))`
	b.eval(fmt.Sprintf(show, true), nil)
	streams(0)
	f.call(2)
	f.mu.Lock()
	f.approvals = []object{approval("apr_1", "mail", "send", object{})}
	f.mu.Unlock()
	b.eval(fmt.Sprintf(show, false), nil)
	streams(1)
	b.until(`document.querySelector(".feed li")?.dataset.key === "102" && document.title.startsWith("(1)")`)
}

// TestMany has as many calls wait as are likely ever to, one of them with all the
// arguments that are kept.
func TestMany(t *testing.T) {
	t.Parallel()
	f := newFake(10)
	for i := range 200 {
		f.approvals = append(f.approvals, approval(fmt.Sprintf("apr_%d", i), "files", "write_file", object{"path": fmt.Sprint(i), "content": strings.Repeat("line of text\n", 300)}))
	}
	f.approvals[0]["arguments"], f.approvals[0]["arguments_size"] = strings.Repeat("x", 256<<10), 1<<20
	b := open(t, serve(t, f))
	b.look(1280, "light")
	b.start("approvals")
	b.until(`document.querySelectorAll("article").length === 200`)
	if n := b.text(`article[data-key="apr_0"] .args-foot`); !strings.Contains(n, "Only the beginning was kept, of 1.0 MiB") || !strings.Contains(n, "Not all of it is shown") {
		t.Errorf("arguments that were cut short say %q", n)
	}
	b.click(`article[data-key="apr_0"] .args-foot button`)
	b.until(`document.querySelector("article .args").textContent.length > 256 * 1024`)
	b.click(`article[data-key="apr_150"] [data-do=approve]`)
	f.within(t, `POST /v1/approvals/apr_150/approve {"for_session":false,"note":""}`)
	b.until(`document.querySelectorAll("article").length === 199 && document.title.startsWith("(199)")`)
}

func TestTheme(t *testing.T) {
	t.Parallel()
	b := open(t, serve(t, newFake(10)))
	ground := func() (s string) {
		b.eval(`getComputedStyle(document.body).backgroundColor`, &s)
		return s
	}
	b.look(1280, "light")
	b.start("")
	light := ground()
	b.look(1280, "dark")
	dark := ground()
	if light == dark {
		t.Errorf("%s in both", light)
	}
	b.click("#theme") // light
	if got := ground(); got != light {
		t.Errorf("light is %s, not %s", got, light)
	}
	b.click("#theme") // dark
	b.look(1280, "light")
	b.replace(`location.reload()`)
	b.until(`document.querySelector("#theme")?.textContent === "Dark"`)
	if got := ground(); got != dark {
		t.Errorf("dark is %s after a reload, not %s", got, dark)
	}
}

// hostile are texts that want to be something else.
var hostile = []string{
	`<img src=x onerror="window.pwned=1">`, `<script>window.pwned=1</script>`, `"><svg onload=window.pwned=1>`, `javascript:window.pwned=1`,
	"pay\u202egnp.exe", "a\u2066b\u2069", "\x1b[2Jcleared\x1b]0;t\x07", "tag\U000e0041\U000e0042", "zero\u200bwidth", "lone\x00nul", strings.Repeat("long ", 2000), strings.Repeat("x", 9000),
	"line\nfeed\ttab", "{{7*7}}${7*7}", "שלום \u05d0\u05d1", strings.Repeat("z\u0310\u0311\u0312", 300), "__proto__", "constructor",
}

func TestHostileTexts(t *testing.T) {
	t.Parallel()
	f := newFake(400).furnish()
	f.approvals, f.sessions = nil, nil
	for i, text := range hostile {
		a := approval(fmt.Sprintf("apr_%d", i), text, text, object{text: text, "list": []any{text, nil, true}, "deep": object{"n": json.Number("12345678901234567890.10")}})
		a["reason"], a["agent_id"], a["client"], a["session_id"], a["rules"] = text, text, text, text, []string{text}
		f.approvals = append(f.approvals, a)
		f.sessions = append(f.sessions, object{"session_id": text, "agent_id": text, "scopes": []string{text}, "status": "active", "created_at": f.now, "spent": i})
		f.upstreams = append(f.upstreams, object{"name": text, "state": text, "server": text, "era": text, "error": text, "url": text, "auth": object{"ended": text}})
		f.policies = append(f.policies, object{"id": text, "type": text, "rule": text, "tools": []string{text}, "when": text, "denied": i})
		f.limits = append(f.limits, object{"rule": text, "type": text, "per": text, "of": text, "used": i, "limit": 10})
		f.pins = append(f.pins, object{"upstream": text, "mode": text, "since": f.now, "changes": []object{{"kind": text, "name": text, "old": object{text: text}, "new": object{text: text + "!"}, "blocks": text}}})
	}
	f.entry = func(seq uint64) object {
		e, text := f.plainEntry(seq), hostile[seq%uint64(len(hostile))]
		for _, k := range []string{"upstream", "tool", "agent_id", "session_id", "client", "flag_reason", "policy", "rule", "call_id"} {
			e[k] = text
		}
		e["arguments"], e["flagged"] = object{text: text}, true
		return e
	}
	f.stopped = object{"at": f.now, "reason": hostile[0] + hostile[4]}
	b := open(t, serve(t, f))
	b.look(1280, "light")
	b.start("")
	for _, v := range views {
		for _, width := range []int64{1280, 380} {
			b.look(width, "light")
			b.visit(v)
			b.shot(v + fmt.Sprint("-", width))
			if b.is(`window.pwned || document.querySelector("main script, main img, main svg[onload], [onerror]")`) {
				t.Fatalf("%q: a text has become an element", v)
			}
			if b.is(`document.documentElement.scrollWidth > document.documentElement.clientWidth`) {
				t.Errorf("%q scrolls sideways at %d", v, width)
			}
			// No character that hides or turns others is in a text node that is shown.
			var raw string
			b.eval(`(() => { const w = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); const bad = [];
				while (w.nextNode()) if (/[\u202a-\u202e\u2066-\u2069\u200b-\u200f\u0000-\u0008\u000b-\u001f\u007f-\u009f]|[\u{e0000}-\u{e007f}]/u.test(w.currentNode.data)) bad.push(w.currentNode.parentElement.outerHTML.slice(0, 300));
				return bad.join("\n"); })()`, &raw)
			if raw != "" {
				t.Errorf("%q shows what nobody sees:\n%q", v, raw)
			}
		}
	}
	b.look(1280, "light")
	b.visit("approvals")
	args := b.text(`article[data-key="apr_4"] .args`)
	for _, part := range []string{"pay⟨U+202E⟩gnp.exe", "12345678901234567890.10", "null"} {
		if !strings.Contains(args, part) {
			t.Errorf("the arguments do not show %s:\n%s", part, args)
		}
	}
	if args := b.text(`article[data-key="apr_6"] .args`); !strings.Contains(args, `\u001b[2Jcleared\u001b]0;t\u0007`) {
		t.Errorf("the arguments do not show escapes:\n%s", args)
	}
	// Of long arguments the beginning, and all on demand.
	b.click(`article[data-key="apr_11"] .args-foot button`)
	if n := strings.Count(b.text(`article[data-key="apr_11"] .args`), "x"); n < 3*9000 {
		t.Errorf("%d of 27000 characters are shown", n)
	}
	// An answer goes to the right call, whatever its name is.
	b.click(`article[data-key="apr_1"] [data-do=deny]`)
	f.within(t, `POST /v1/approvals/apr_1/deny {"note":""}`)
}

type look struct {
	width  int64
	scheme string
}

// TestAccessible checks every view, full and empty, in both colours and on a telephone.
func TestAccessible(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]*fake{"full": newFake(2000).furnish(), "empty": newFake(0)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			looks := []look{{1280, "light"}, {1280, "dark"}, {768, "light"}, {768, "dark"}, {380, "light"}, {380, "dark"}}
			if name == "empty" {
				looks = []look{{1280, "dark"}, {380, "light"}}
			}
			b := open(t, serve(t, f))
			b.look(1280, "light")
			b.start("")
			b.eval(`localStorage.setItem("haldir-page-size", "50")`, nil)
			for _, v := range views {
				where := v
				if v == "" {
					where = "overview"
				}
				for _, l := range looks {
					b.look(l.width, l.scheme)
					b.visit(v)
					b.until(`!document.querySelector("article button[data-do]:disabled")`)
					b.shot(fmt.Sprintf("%s-%d-%s", where, l.width, l.scheme))
					if l.width != 768 { // has nothing that the others have not
						b.accessible(fmt.Sprintf("%s at %d, %s", where, l.width, l.scheme))
					}
					if b.is(`document.documentElement.scrollWidth > document.documentElement.clientWidth`) {
						t.Errorf("%s scrolls sideways at %d", where, l.width)
					}
				}
			}
			b.look(380, "light")
			b.click("#menu")
			b.until(`document.querySelector("nav a").offsetParent`)
			b.shot("menu")
			b.accessible("menu")
			b.click(`nav a[data-view="policies"]`)
			b.until(`document.querySelector("main h1").textContent === "Policies" && !document.querySelector("nav a").offsetParent`)
		})
	}
}
