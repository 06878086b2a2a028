//go:build soak

package page_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/rs/zerolog"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	rules "github.com/haldir-mcp/haldir/policy"
)

// fill makes a ledger of 100,000 calls, which are nearly 200,000 records.
func fill(t *testing.T, dir string) {
	t.Helper()
	engine, err := rules.Compile(rules.Ruleset{Policies: []rules.Rule{{ID: "no-deletes", Type: rules.TypeDeny, Tools: []string{"delete_*"}}}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(ledger.Options{Dir: dir, Clock: time.Now, Logger: zerolog.Nop(), NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	use := ledger.Use{ID: "ses_many", Terms: &ledger.Terms{Agent: "research-bot", AllScopes: true}}
	for i := range 100_000 {
		tool := "scan_domain"
		if i%10 == 9 {
			tool = "delete_database"
		}
		ticket, d, err := l.Reserve(context.Background(), ledger.Attempt{
			Use: use, Call: rules.Call{Upstream: "sec", Tool: tool, Arguments: fmt.Appendf(nil, `{"domain":"host-%d.example.com"}`, i)},
		}, engine)
		if err != nil {
			t.Fatal(err)
		}
		if d.Verdict == rules.Allow {
			l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
		}
	}
	if err := l.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// TestRealLargeRecord turns through a real ledger of 100,000 calls, and reports how long
// a page takes from the click until it is painted.
func TestRealLargeRecord(t *testing.T) {
	h := mcptest.NewHaldir(t, mcptest.Build(t), "version: 1\n")
	fill(t, h.State)
	link := console(t, h)
	b := open(t, link)
	b.look(1280, "light")
	b.do(chromedp.Navigate(link))
	b.until(`document.querySelector("main h1")?.textContent === "Overview" && document.querySelector(".dot.live")`)
	b.visit("calls")
	for _, size := range []int{50, 200} {
		b.eval(fmt.Sprintf(`(s => { s.value = "%d"; s.dispatchEvent(new Event("change")) })(document.querySelector(".pager select"))`, size), nil)
		b.until(fmt.Sprintf(`document.querySelectorAll("tbody tr").length === %d`, size))
		b.settled()
		var walk struct {
			Rows, Calls, Last int
			InOrder, End      bool
			Answers, Painted  []float64 // milliseconds
		}
		b.eval(`window.walk = {Rows: 0, Calls: 0, InOrder: true, Last: 1e9, End: false, Answers: [], Painted: []}`, nil)
		b.eval(`(() => { const real = window.fetch; window.fetch = async (...a) => { const t = performance.now(); const r = await real(...a); if (String(a[0]).includes("/v1/audit?")) walk.Answers.push(performance.now() - t); return r; } })()`, nil)
		for !walk.End && walk.Rows < 120_000 {
			b.eval(`(async () => {
				const results = document.querySelector(".results");
				const older = document.querySelector("[data-page=older]");
				for (let i = 0; i < 25 && !walk.End; i++) {
					const rows = document.querySelectorAll("tbody tr");
					walk.Rows += rows.length;
					walk.Calls += results.querySelectorAll("tbody .c-tool .tool").length;
					for (const r of rows) {
						walk.InOrder &&= Number(r.dataset.seq) < walk.Last;
						walk.Last = Number(r.dataset.seq);
					}
					if ((walk.End = older.disabled)) break;
					const began = performance.now();
					const turned = new Promise(done => new MutationObserver((_, o) => { o.disconnect(); done(); }).observe(results, {attributeFilter: ["data-page"]}));
					older.click();
					await turned;
					await new Promise(done => requestAnimationFrame(() => { const c = new MessageChannel(); c.port1.onmessage = done; c.port2.postMessage(0); }));
					walk.Painted.push(performance.now() - began);
				}
				return walk;
			})()`, &walk)
		}
		if walk.Calls != 100_000 || !walk.InOrder {
			t.Errorf("not every call came once, in order: %d of 100000 in %d records, in order %t", walk.Calls, walk.Rows, walk.InOrder)
		}
		t.Logf("%d calls a page: answered in %s, painted in %s", size, quantiles(walk.Answers), quantiles(walk.Painted))
	}
}

// quantiles tells the median and the 95th and 99th percentile of times in milliseconds.
func quantiles(ms []float64) string {
	slices.Sort(ms)
	at := func(p int) float64 { return ms[min(len(ms)-1, len(ms)*p/100)] }
	return fmt.Sprintf("%.1f / %.1f / %.1f ms (p50/p95/p99 of %d)", at(50), at(95), at(99), len(ms))
}
