package upstream_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/upstream"
)

func TestADefinitionUnderAnotherName(t *testing.T) {
	for _, tt := range []struct{ def, want string }{
		{`{"name":"a","inputSchema":{"type":"object"}}`, `{"name":"NEW","inputSchema":{"type":"object"}}`},
		{`{"inputSchema":{"type":"object","properties":{"name":{}}},"name" : "a" }`, `{"inputSchema":{"type":"object","properties":{"name":{}}},"name" : "NEW" }`},
		{`{"_meta":{"name":"a"},"n\u0061me":"\u0061","inputSchema":{"type":"object"},"x":[1.0,1e3]}`, `{"_meta":{"name":"a"},"n\u0061me":"NEW","inputSchema":{"type":"object"},"x":[1.0,1e3]}`},
	} {
		c := upstream.ReadCatalogue([]json.RawMessage{json.RawMessage(tt.def)})
		if len(c.Tools) != 1 {
			t.Errorf("%s is withheld: %+v", tt.def, c.Withheld)
			continue
		}
		tool := c.Tools[0]
		if got := string(tool.As("NEW")); got != tt.want || tool.Name != "a" || string(tool.Raw) != tt.def {
			t.Errorf("got %s, want %s", got, tt.want)
		}
		if got := string(tool.As("q\"\n\x00")); !json.Valid([]byte(got)) {
			t.Errorf("a name that needs escaping: %s", got)
		}
	}
}

func TestReadOnlyIsWhatTheAnnotationSays(t *testing.T) {
	for annotations, want := range map[string]bool{
		``: false, `,"annotations":{}`: false, `,"annotations":{"readOnlyHint":true}`: true, `,"annotations":{"readOnlyHint":false}`: false,
		`,"annotations":{"readonlyhint":true}`: false, `,"readOnlyHint":true`: false,
	} {
		c := upstream.ReadCatalogue([]json.RawMessage{json.RawMessage(`{"name":"a","inputSchema":{"type":"object"}` + annotations + `}`)})
		if len(c.Tools) != 1 || c.Tools[0].ReadOnly != want {
			t.Errorf("%q: %+v", annotations, c)
		}
	}
	// Said twice, which one counts is beyond telling: it must not be believed.
	c := upstream.ReadCatalogue([]json.RawMessage{json.RawMessage(`{"name":"a","inputSchema":{"type":"object"},"annotations":{"readOnlyHint":true,"readOnlyHint":false}}`)})
	if len(c.Tools) == 1 && c.Tools[0].ReadOnly {
		t.Errorf("%+v", c)
	}
}

func TestTheFirstOfTwoToolsOfOneNameCounts(t *testing.T) {
	first := `{"name":"a","description":"first","inputSchema":{"type":"object"}}`
	c := upstream.ReadCatalogue([]json.RawMessage{
		json.RawMessage(first), json.RawMessage(`{"name":"\u0061","description":"second","inputSchema":{"type":"object"}}`), mcptest.Tool("A"), mcptest.Tool("b"),
	})
	if !slices.Equal(names(c), []string{"a", "A", "b"}) || string(c.Tools[0].Raw) != first || len(c.Withheld) != 1 || c.Withheld[0].Name != "a" {
		t.Errorf("%+v", c)
	}
	// One that is withheld takes no other's place.
	c = upstream.ReadCatalogue([]json.RawMessage{json.RawMessage(`{"name":"a"}`), json.RawMessage(first)})
	if !slices.Equal(names(c), []string{"a"}) || string(c.Tools[0].Raw) != first {
		t.Errorf("%+v", c)
	}
}

func TestWithheldToolsAreNamedWithTheReason(t *testing.T) {
	c := upstream.ReadCatalogue([]json.RawMessage{json.RawMessage(`{"name":"a","inputSchema":{"type":["object"]}}`), json.RawMessage(`{"description":"x"}`), json.RawMessage(`[`)})
	if len(c.Tools) != 0 || len(c.Withheld) != 3 || c.Withheld[0].Name != "a" || !strings.Contains(c.Withheld[0].Reason, "inputSchema") {
		t.Errorf("%+v", c)
	}
	for _, w := range c.Withheld {
		if w.Reason == "" {
			t.Errorf("%+v", w)
		}
	}
}

// What one server may list is bounded, by number and by bytes; what is beyond is
// reported by names that are fit to be shown, and so many at most.
func TestACatalogueIsBounded(t *testing.T) {
	def := func(name string, size int) json.RawMessage {
		return json.RawMessage(`{"name":"` + name + `","description":"` + strings.Repeat("x", size) + `","inputSchema":{"type":"object"}}`)
	}
	var many, big []json.RawMessage
	for i := range 10_200 {
		many = append(many, def(fmt.Sprintf("t%d", i), 0))
	}
	for i := range 12 {
		big = append(big, def(fmt.Sprintf("t%d", i), 1<<20))
	}
	for name, c := range map[string]struct {
		list  []json.RawMessage
		tools int
		names []string // of the first withheld
	}{
		"more than 10,000":              {many, 10_000, []string{"t10000", "t10001"}},
		"more than 8 MiB":               {big, 7, []string{"t7", "t8"}},
		"one that is larger":            {[]json.RawMessage{def("huge", 9<<20), def("b", 1)}, 1, []string{"huge"}},
		"a name without end":            {[]json.RawMessage{def(strings.Repeat("n", 9<<20), 1), def("b", 1)}, 1, []string{strings.Repeat("n", 200) + "…"}},
		"a name that plays with colour": {[]json.RawMessage{json.RawMessage(`{"name":"\u001b[31mred\u202e"}`)}, 0, []string{"\ufffd[31mred\ufffd"}},
	} {
		got := upstream.ReadCatalogue(c.list)
		if len(got.Tools) != c.tools {
			t.Errorf("%s: %d tools", name, len(got.Tools))
		}
		for i, want := range c.names {
			if len(got.Withheld) <= i || got.Withheld[i].Name != want || got.Withheld[i].Reason == "" {
				t.Errorf("%s: withheld: %d, want the name %s", name, len(got.Withheld), want)
			}
		}
		if n := len(got.Withheld); n > 101 || n == 101 && !strings.Contains(got.Withheld[100].Reason, "100 more") {
			t.Errorf("%s: %d withheld by name: %+v", name, n, got.Withheld[n-1])
		}
	}
}

// A server whose pages never end must not fill memory: neither with tools, nor
// with what is beside them, nor with cursors.
func TestPagesThatNeverEndAreNotFollowedForEver(t *testing.T) {
	pad := strings.Repeat("x", 1<<20)
	for name, page := range map[string]string{
		"of tools":   `"tools":[{"name":"t%d","description":"` + pad + `","inputSchema":{"type":"object"}}],"nextCursor":"%d"`,
		"of padding": `"tools":[{"name":"t%d","inputSchema":{"type":"object"}}],"_meta":{"pad":"` + pad + `"},"nextCursor":"%d"`,
		"of cursors": `"tools":[{"name":"t%d","inputSchema":{"type":"object"}}],"nextCursor":"` + pad + `%d"`,
	} {
		t.Run(name, func(t *testing.T) {
			srv := mcptest.Script{}.NewHTTP(t)
			var pages atomic.Int64
			srv.Before = func(w http.ResponseWriter, _ *http.Request, body []byte) bool {
				var m struct {
					ID     json.RawMessage
					Method string
				}
				if json.Unmarshal(body, &m) != nil || m.Method != "tools/list" {
					return false
				}
				n := pages.Add(1)
				w.Header().Set("Content-Type", "application/json")
				fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":{`+page+`}}`, m.ID, n, n)
				return true
			}
			r := ready(t, srv.Upstream("up"))
			if n := pages.Load(); n < 8 || n > 10 {
				t.Errorf("%d pages of 1 MiB were asked for", n)
			}
			if !strings.Contains(r.log.String(), "left out") {
				t.Errorf("the log does not tell: %s", clip(r.log.String()))
			}
			if r.must("echo", `{"text":"x"}`) != "x" {
				t.Error("it does not work any more")
			}
		})
	}
}

func FuzzReadCatalogue(f *testing.F) {
	f.Add([]byte(`{"name":"a","inputSchema":{"type":"object"}}`))
	f.Add([]byte(`{"n\u0061me":"a","inputSchema":{"type":"object","required":["x"]},"annotations":{"readOnlyHint":true}}`))
	f.Add([]byte("{\"name\":\"\xff\",\"inputSchema\":{}}"))
	f.Fuzz(func(t *testing.T, def []byte) {
		c := upstream.ReadCatalogue([]json.RawMessage{def})
		if len(c.Tools)+len(c.Withheld) != 1 {
			t.Fatalf("%+v", c)
		}
		for _, tool := range c.Tools {
			var before, after map[string]json.RawMessage
			renamed := tool.As("new name")
			if json.Unmarshal(def, &before) != nil || json.Unmarshal(renamed, &after) != nil {
				t.Fatalf("not JSON: %q became %q", def, renamed)
			}
			if string(after["name"]) != `"new name"` {
				t.Fatalf("the name of %q is not replaced: %q", def, renamed)
			}
			delete(before, "name")
			delete(after, "name")
			if d := cmp.Diff(before, after); d != "" {
				t.Fatalf("more than the name changed: %s", d)
			}
		}
	})
}

// sleepy is a server that a test can make hang.
func sleepy(t *testing.T, defs ...json.RawMessage) (srv *mcptest.HTTP, hang *atomic.Bool) {
	t.Helper()
	hang = &atomic.Bool{}
	srv = mcptest.Script{Tools: mcptest.Tools(defs...)}.NewHTTP(t)
	srv.Before = func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		if hang.Load() {
			<-r.Context().Done()
		}
		return hang.Load()
	}
	return srv, hang
}

func TestACatalogueIsKeptForTheNextRun(t *testing.T) {
	odd := json.RawMessage(`{ "name" : "b", "inputSchema":{"type":"object"}, "x":1.0 }`)
	srv, hang := sleepy(t, mcptest.Tool("a"), odd, json.RawMessage(`{"name":"bad"}`))
	first := ready(t, srv.Upstream("up"))
	if first.changed() != 1 || first.cache.saves != 1 {
		t.Errorf("%d changes, %d saves", first.changed(), first.cache.saves)
	}
	withCache := func(o *upstream.Options) { o.Cache = first.cache }

	// The server hangs, and its tools are there all the same.
	hang.Store(true)
	second := open(t, srv.Upstream("up"), withCache)
	if c := second.Catalogue(); c.Known {
		t.Errorf("before Start: %+v", c)
	}
	second.Start(upstream.Host{})
	within(t, 2*time.Second, "Settled", func() { second.Settled(context.Background()) })
	if c := second.Catalogue(); !c.Known || !slices.Equal(names(c), []string{"a", "b"}) || len(c.Withheld) != 1 || string(c.Tools[1].Raw) != string(odd) {
		t.Errorf("restored: %+v", c)
	}
	if s := second.Status(); s.State == upstream.StateReady {
		t.Errorf("the upstream is %s", s.State)
	}

	// When it answers, the same list is no news.
	hang.Store(false)
	third := ready(t, srv.Upstream("up"), withCache)
	if first.cache.saves != 1 || third.changed() != 0 {
		t.Errorf("the same list was saved %d times and told %d times", first.cache.saves, third.changed())
	}

	// Another config is another server: nothing is taken over.
	hang.Store(true)
	cfg := srv.Upstream("up")
	cfg.Headers = []config.Header{{Name: "X-Tenant", Value: "other"}}
	cfg.Connect = 200 * time.Millisecond
	if c := start(t, cfg, withCache).Catalogue(); c.Known {
		t.Errorf("another config: %+v", c)
	}
}

func TestACacheThatFailsOrIsDamagedChangesNothing(t *testing.T) {
	srv, hang := sleepy(t, mcptest.Tool("a"))
	good := ready(t, srv.Upstream("up"))
	hang.Store(true)
	for _, damage := range []string{``, `{`, `[]`, `null`, `{"tools":7}`, `{"tool":[]}`, "\xff"} {
		for k := range good.cache.kept {
			good.cache.kept[k] = []byte(damage)
		}
		r := open(t, srv.Upstream("up"), func(o *upstream.Options) { o.Cache = good.cache })
		r.Start(upstream.Host{})
		eventually(t, "the log tells of it", func() bool { return strings.Contains(r.log.String(), "last run") })
		if c := r.Catalogue(); c.Known {
			t.Errorf("%q was restored: %+v", damage, c)
		}
	}
	hang.Store(false)
	broken := ready(t, srv.Upstream("up"), func(o *upstream.Options) { o.Cache = &memory{err: errors.New("disk full")} })
	if !slices.Equal(names(broken.Catalogue()), []string{"a"}) || !strings.Contains(broken.log.String(), "disk full") {
		t.Errorf("%+v; the log: %s", broken.Catalogue(), broken.log)
	}
}

func TestTheRevisionGrowsWithEachChange(t *testing.T) {
	r := ready(t, mcptest.Script{}.Child(t, "up"))
	before := r.Catalogue().Revision
	for i := range 3 {
		r.must("retool", fmt.Sprintf(`{"n":1,"tools":[{"name":"retool","inputSchema":{"type":"object"}},{"name":"t%d","inputSchema":{"type":"object"}}]}`, i))
		eventually(t, "the tools change", func() bool { return slices.Contains(names(r.Catalogue()), fmt.Sprint("t", i)) })
		if now := r.Catalogue().Revision; now <= before {
			t.Errorf("revision %d after %d", now, before)
		} else {
			before = now
		}
	}
	if n := r.changed(); n != 4 {
		t.Errorf("told %d times", n)
	}
	// The same list said anew is no change, though whoever listens is told what the
	// server says.
	r.must("retool", `{"n":20,"tools":[{"name":"retool","inputSchema":{"type":"object"}},{"name":"t2","inputSchema":{"type":"object"}}]}`)
	r.must("retool", `{"n":20,"tools":[{"name":"retool","inputSchema":{"type":"object"}},{"name":"t2","inputSchema":{"type":"object"}}]}`)
	if now := r.Catalogue().Revision; now != before {
		t.Errorf("revision %d, was %d", now, before)
	}
}

// With other credentials a server may offer other things: what it offered before is
// not for them.
func TestACatalogueBelongsToItsCredentials(t *testing.T) {
	srv := mcptest.Script{}.NewHTTP(t)
	cfg := srv.Upstream("up")
	cfg.Bearer = "${env:HALDIR_TEST_TOKEN}"
	keep := &memory{}
	for _, token := range []string{"one", "one", "another"} {
		t.Setenv("HALDIR_TEST_TOKEN", token)
		within(t, patience, "Close", ready(t, cfg, func(o *upstream.Options) { o.Cache = keep }).Close)
	}
	if len(keep.kept) != 2 {
		t.Errorf("%d catalogues are kept for two tokens", len(keep.kept))
	}
}

// What HTTP says of a failure comes with what can be done about it.
func TestAStatusComesWithAdvice(t *testing.T) {
	for status, want := range map[int]string{401: "credentials", 403: "may not", 404: "url", 429: "later", 503: "later", 302: "moved"} {
		srv := mcptest.Script{}.NewHTTP(t)
		srv.Before = func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
			http.Error(w, "no", status)
			return true
		}
		r := start(t, srv.Upstream("up"))
		eventually(t, "the attempt is over", func() bool { return r.Status().Err != nil })
		if err := r.Status().Err.Error(); !strings.Contains(err, want) || !strings.Contains(err, fmt.Sprint("HTTP ", status)) {
			t.Errorf("%d: %s", status, err)
		}
	}
}
