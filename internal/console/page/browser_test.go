package page_test

import (
	"context"
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

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// patience bounds every wait. It only ends tests that hang.
const patience = 3 * time.Minute

// browser is one Chromium with one page.
type browser struct {
	t      *testing.T
	ctx    context.Context
	url    string
	errors []string // what it has logged; for its reader, then for the end of the test
}

// open starts a browser. What it logs as an error fails the test, but for messages with
// an expected part, which the test provokes.
func open(t *testing.T, url string, expected ...string) *browser {
	t.Helper()
	var program string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			program = found
			break
		}
	}
	if program == "" {
		mcptest.Unavailable(t, "there is no Chromium; Debian's package is chromium")
	}
	allocator, cancel := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("hide-scrollbars", true),
		chromedp.WindowSize(1280, 900))...)
	ctx, end := chromedp.NewContext(allocator)
	b := &browser{t: t, ctx: ctx, url: url}
	messages := chromedp.Console(ctx)
	var reader sync.WaitGroup
	reader.Go(func() {
		for m, err := range messages {
			if err != nil {
				return // the browser ends
			}
			if m.IsException() || m.Type == "error" || m.Type == "warning" || m.Source == "security" {
				b.errors = append(b.errors, m.String()+" "+m.URL)
			}
		}
	})
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // and wait for its end
		end()
		cancel()
		reader.Wait()
	messages:
		for _, e := range b.errors {
			for _, known := range expected {
				if strings.Contains(e, known) {
					continue messages
				}
			}
			t.Errorf("the browser says: %s", e)
		}
	})
	return b
}

// serve starts a server for a test.
func serve(t *testing.T, f *fake) string {
	t.Helper()
	s := httptest.NewUnstartedServer(f)
	s.Config.ErrorLog = nil
	s.Start()
	t.Cleanup(func() {
		f.leave() // ends the streams
		s.Close()
	})
	return s.URL
}

// do runs actions, which must succeed.
func (b *browser) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.shot("failed")
		b.t.Fatal(err)
	}
}

// start opens the page with a token, and waits until a view stands.
func (b *browser) start(hash string) {
	b.t.Helper()
	b.do(chromedp.Navigate(b.url + "/console/#token=one-time"))
	b.until(`document.querySelector("main h1") && document.querySelector(".dot.live")`)
	b.visit(hash)
}

// visit goes to a view and waits until its data are there.
func (b *browser) visit(hash string) {
	b.t.Helper()
	b.eval(fmt.Sprintf(`location.hash = %q`, "#/"+hash), nil)
	b.settled()
}

// settled waits until nothing on the page is loading.
func (b *browser) settled() {
	b.t.Helper()
	b.until(`document.querySelector("main h1") && !document.querySelector(".loading, [aria-busy]")`)
}

// eval evaluates an expression. A promise is waited for.
func (b *browser) eval(js string, into any) {
	b.t.Helper()
	var nothing any
	if into == nil {
		into = &nothing
		js = "void (" + js + ")"
	}
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	raw, err := chromedp.Run(ctx, chromedp.Evaluate[[]byte](js, chromedp.EvalAwaitPromise))
	if err == nil && len(raw) > 0 {
		err = json.Unmarshal(raw, into)
	}
	if err != nil {
		b.shot("failed")
		b.t.Fatalf("%s: %v", js, err)
	}
}

// replace evaluates an expression that replaces the page, and waits for the new one:
// what is asked next must not be answered by the old one.
func (b *browser) replace(js string) {
	b.t.Helper()
	b.eval(fmt.Sprintf(`(window.replaced = true, %s)`, js), nil)
	b.until(`!window.replaced && document.readyState === "complete"`)
}

// is reports whether an expression is true.
func (b *browser) is(js string) (yes bool) {
	b.t.Helper()
	b.eval("Boolean("+js+")", &yes)
	return yes
}

// until waits until an expression is true. A page that is just being replaced has no
// truth.
func (b *browser) until(js string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	for ctx.Err() == nil {
		if yes, err := chromedp.Run(ctx, chromedp.Evaluate[bool]("Boolean("+js+")")); err == nil && yes {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	b.shot("failed")
	var text string
	b.eval(`document.body.innerText`, &text)
	b.t.Fatalf("not true: %s\nThe page is:\n%.2000s", js, text)
}

// text returns what a person reads in an element.
func (b *browser) text(selector string) (text string) {
	b.t.Helper()
	b.until(fmt.Sprintf(`document.querySelector(%q)`, selector))
	b.eval(fmt.Sprintf(`document.querySelector(%q).innerText`, selector), &text)
	return text
}

// click clicks with the mouse, on what can be clicked.
func (b *browser) click(selector string) {
	b.t.Helper()
	b.until(fmt.Sprintf(`(e => e && !e.disabled && e.offsetParent)(document.querySelector(%q))`, selector))
	b.do(chromedp.Click(chromedp.CSS(selector)))
}

// keys types, each key as a keyboard does: one event with the text that it makes, which
// a listener can prevent.
func (b *browser) keys(keys ...string) {
	b.t.Helper()
	for _, r := range strings.Join(keys, "") {
		events := kb.Encode(r)
		if len(events) == 3 {
			events[0].Text, events[0].UnmodifiedText = events[1].Text, events[1].UnmodifiedText
			events = []*input.DispatchKeyEventParams{events[0], events[2]}
		}
		for _, e := range events {
			if _, err := chromedp.Call(b.ctx, input.DispatchKeyEvent, *e); err != nil {
				b.t.Fatal(err)
			}
		}
	}
}

// look sets the size of the window and the system's colours.
func (b *browser) look(width int64, scheme string) {
	b.t.Helper()
	height := int64(900)
	if width < 600 {
		height = 800
	}
	b.do(chromedp.EmulateViewport(width, height))
	features := []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}
	if _, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: features}); err != nil {
		b.t.Fatal(err)
	}
}

// artifacts is where pictures are kept.
func artifacts(t *testing.T) string {
	dir := os.Getenv("HALDIR_ARTIFACTS")
	if dir == "" {
		return t.ArtifactDir()
	}
	dir = filepath.Join(dir, "console")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// shot keeps a picture of the page, of a long one the first two screens.
func (b *browser) shot(name string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	size, err := chromedp.Run(ctx, chromedp.Evaluate[[]int64](`[innerWidth, innerHeight, document.documentElement.scrollHeight]`))
	if err != nil {
		b.t.Errorf("screenshot %s: %v", name, err)
		return
	}
	tall := chromedp.EmulateViewport(size[0], max(size[1], min(size[2], 2000)))
	if err := chromedp.Do(ctx, tall); err != nil {
		b.t.Errorf("screenshot %s: %v", name, err)
		return
	}
	picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err == nil {
		err = os.WriteFile(filepath.Join(artifacts(b.t), strings.ReplaceAll(b.t.Name(), "/", "-")+"-"+name+".png"), picture, 0o644)
	}
	if err == nil {
		err = chromedp.Do(ctx, chromedp.EmulateViewport(size[0], size[1]))
	}
	if err != nil {
		b.t.Errorf("screenshot %s: %v", name, err)
	}
}

// axe loads the checker into the page.
func (b *browser) axe() {
	b.t.Helper()
	source, err := os.ReadFile(filepath.Join(mcptest.NPMPackage(b.t, mcptest.Axe), "axe.min.js"))
	if err != nil {
		b.t.Fatal(err)
	}
	b.eval("(() => {"+string(source)+"\n})()", nil)
}

// accessible checks what is on the screen.
func (b *browser) accessible(where string) {
	b.t.Helper()
	if !b.is("window.axe") {
		b.axe()
	}
	var found []struct {
		ID, Impact, Help string
		Nodes            []struct {
			HTML           string
			FailureSummary string
		}
	}
	b.eval(`axe.run(document, {resultTypes: ["violations"]}).then(r => r.violations)`, &found)
	for _, v := range found {
		n := v.Nodes[0]
		b.t.Errorf("%s: %s (%s, %d times): %s\n%.300s\n%s", where, v.ID, v.Impact, len(v.Nodes), v.Help, n.HTML, n.FailureSummary)
	}
}
