package console_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

func idem(key string) header { return header{"Idempotency-Key", key} }

func TestACallIsMadeOnce(t *testing.T) {
	w := start(t, "  - {type: rate_limit, max_calls: 2, window: 1h, per: session}\n")
	key := w.key("all")
	s := w.session(key, `{"agent_id":"bot","scopes":["execute","spend"],"spend_limit":10,"ttl":0}`)
	body := `{"domain":"a","amount":6}`
	first := w.call(key, s, "buy_report", body, idem("one")).want(http.StatusOK)
	if first.header.Get("Idempotency-Replayed") != "" {
		t.Error("the first answer says that it was told before")
	}
	for range 3 { // although the limits would not let it be made again
		again := w.call(key, s, "buy_report", body, idem("one")).want(http.StatusOK)
		if string(again.body) != string(first.body) || again.header.Get("Idempotency-Replayed") != "true" || again.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %v", again.body, again.header)
		}
	}
	var spend struct {
		Total float64 `json:"total_usd"`
		Calls int     `json:"action_count"`
	}
	if w.do(key, "GET", "/v1/audit/spend?session_id="+s, "").into(&spend); spend.Total != 6 || spend.Calls != 1 {
		t.Errorf("%+v", spend)
	}
	w.call(key, s, "buy_report", `{"domain":"b","amount":6}`, idem("one")).problem(http.StatusUnprocessableEntity, "mismatch")
	w.do(key, "POST", "/v1/proxy/call", `{"tool":"buy_report","session_id":"`+s+`","arguments":`+body+`}`, idem("one")).problem(http.StatusUnprocessableEntity, "mismatch")

	// The same name is another one in another session, and of another key.
	other := w.session(key, everything)
	if a := w.call(key, other, "buy_report", body, idem("one")).want(http.StatusOK); a.header.Get("Idempotency-Replayed") != "" {
		t.Error("another session got the answer")
	}
	if a := w.call(w.key("all"), other, "buy_report", body, idem("one")).want(http.StatusOK); a.header.Get("Idempotency-Replayed") != "" {
		t.Error("another key got the answer")
	}
	// After a day it is forgotten.
	w.clock.add(24 * time.Hour)
	w.call(key, s, "buy_report", body, idem("one")).problem(http.StatusForbidden, "refused") // by the session's limit: it is a new call
}

func TestAStoredAnswerIsNotToldWhereTheCallIsForbiddenBySince(t *testing.T) {
	w := start(t, "")
	key := w.key("all")
	s := w.session(key, everything)
	w.call(key, s, "scan_domain", `{"domain":"a"}`, idem("x")).want(http.StatusOK)
	w.do(key, "POST", "/v1/proxy/policies", `{"type":"deny","tools":["scan_domain"],"id":"no-scans"}`).want(http.StatusCreated)
	a := w.call(key, s, "scan_domain", `{"domain":"a"}`, idem("x"))
	if got := a.problem(http.StatusForbidden, "refused"); strings.Contains(string(a.body), "80/tcp") || !strings.Contains(got, "deny list") {
		t.Errorf("%s", a.body)
	}
	w.do(key, "DELETE", "/v1/proxy/policies/no-scans", "").want(http.StatusOK)
	w.call(key, s, "scan_domain", `{"domain":"a"}`, idem("x")).want(http.StatusOK)
	w.do(key, "DELETE", "/v1/sessions/"+s, "").want(http.StatusOK)
	if got := w.call(key, s, "scan_domain", `{"domain":"a"}`, idem("x")).problem(http.StatusForbidden, "refused"); !strings.Contains(got, "revoked") {
		t.Errorf("%s", got)
	}
	var list struct {
		Entries []struct{ Status, Policy string }
	}
	w.do(key, "GET", "/v1/audit?tool=scan_domain&status=denied", "").into(&list)
	if len(list.Entries) != 2 {
		t.Errorf("what was not told is not on record: %+v", list)
	}
}

func TestARefusedCallCanBeMadeAgain(t *testing.T) {
	w := start(t, "  - {type: rate_limit, max_calls: 1, window: 1h, per: session}\n")
	key := w.key("all")
	s := w.session(key, `{"agent_id":"bot","scopes":["execute"],"ttl":0}`)
	w.call(key, s, "dns_lookup", `{"domain":"a"}`).want(http.StatusOK)
	w.call(key, s, "dns_lookup", `{"domain":"b"}`, idem("later")).problem(http.StatusForbidden, "refused")
	w.clock.add(time.Hour)
	a := w.call(key, s, "dns_lookup", `{"domain":"b"}`, idem("later")).want(http.StatusOK)
	if a.header.Get("Idempotency-Replayed") != "" {
		t.Error("nothing was done before")
	}
	// What an upstream could not do was done all the same.
	w.clock.add(time.Hour)
	first := w.call(key, s, "break", `{}`, idem("broken"))
	first.problem(http.StatusBadGateway, "upstream")
	again := w.call(key, s, "break", `{}`, idem("broken"))
	if again.problem(http.StatusBadGateway, "upstream"); again.header.Get("Idempotency-Replayed") != "true" || string(again.body) != string(first.body) {
		t.Errorf("%s", again.body)
	}
}

// charger is a modern upstream that does the work at once and gives the answer in a round of
// its own (MCP 2026-07-28: input_required without inputRequests).
type charger struct {
	proxy.Upstream

	charged int
	between func() // before that round
}

func (*charger) Name() string { return "pay" }
func (*charger) Catalogue() upstream.Catalogue {
	c := upstream.ReadCatalogue([]json.RawMessage{json.RawMessage(`{"name":"charge","inputSchema":{"type":"object"}}`)})
	c.Modern, c.Server = true, json.RawMessage(`{"supportedVersions":["2026-07-28"],"capabilities":{"tools":{}}}`)
	return c
}

func (c *charger) Call(_ context.Context, call upstream.Call) (wire.Message, error) {
	result := `{"resultType":"complete","content":[{"type":"text","text":"charged"}]}`
	if _, goesOn := wire.At(call.Params, "requestState"); !goesOn {
		c.charged++
		result = `{"resultType":"input_required","requestState":"s"}`
		c.between()
	}
	return wire.ParseLenient(wire.Result(json.RawMessage("1"), json.RawMessage(result)))
}

// A call that was sent and then not let go on may have done its work: the same key does not
// make it again.
func TestACallThatIsRefusedBetweenRoundsWasMade(t *testing.T) {
	w := start(t, "")
	key := w.key("all")
	s := w.session(key, everything)
	r := w.rules()
	up := &charger{Upstream: r.Upstreams[0], between: func() {
		if _, err := w.led.Stop(t.Context(), "enough"); err != nil {
			t.Error(err)
		}
	}}
	r.Upstreams = []proxy.Upstream{up}
	w.srv.Adopt(r)
	first := w.call(key, s, "pay/charge", `{}`, idem("order"))
	first.problem(http.StatusForbidden, "refused")
	if _, err := w.led.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := w.call(key, s, "pay/charge", `{}`, idem("order"))
	if again.problem(http.StatusForbidden, "refused"); again.header.Get("Idempotency-Replayed") != "true" || string(again.body) != string(first.body) {
		t.Errorf("%s", again.body)
	}
	if up.charged != 1 {
		t.Errorf("one key has charged %d times", up.charged)
	}
}

func TestTwoAtOnceAreOne(t *testing.T) {
	w := start(t, "")
	key := w.key("all")
	s := w.session(key, everything)
	var wg sync.WaitGroup
	wg.Go(func() { w.call(key, s, "wait", `{}`, idem("x")).want(http.StatusOK) })
	<-w.slow.began
	a := w.call(key, s, "wait", `{}`, idem("x"))
	if a.problem(http.StatusConflict, "in-progress"); a.header.Get("Retry-After") == "" {
		t.Errorf("%v", a.header)
	}
	close(w.slow.end)
	wg.Wait()
	w.call(key, s, "wait", `{}`, idem("x")).want(http.StatusOK)
	if n := w.slow.calls.Load(); n != 1 {
		t.Errorf("the tool was called %d times", n)
	}
}

func TestWhoLosesTheConnectionGetsTheAnswerLater(t *testing.T) {
	w := start(t, "")
	key := w.key("all")
	s := w.session(key, everything)
	ctx, cancel := context.WithCancel(context.Background())
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url+"/v1/proxy/call", strings.NewReader(`{"session_id":"`+s+`","tool":"wait","arguments":{}}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+key)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Idempotency-Key", "x")
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if res, err := client.Do(r); err == nil {
			_ = res.Body.Close()
		}
	}()
	<-w.slow.began
	cancel()
	<-gone
	close(w.slow.end)
	for deadline := time.Now().Add(hang); ; time.Sleep(5 * time.Millisecond) {
		a := w.call(key, s, "wait", `{}`, idem("x"))
		if a.status == http.StatusOK {
			break
		}
		a.problem(http.StatusConflict, "in-progress")
		if time.Now().After(deadline) {
			t.Fatal("the answer does not come")
		}
	}
	if n := w.slow.calls.Load(); n != 1 {
		t.Errorf("the tool was called %d times", n)
	}
}

func TestAnAnswerThatIsTooLargeIsNotKept(t *testing.T) {
	w := start(t, "")
	key := w.key("all")
	s := w.session(key, everything)
	if a := w.call(key, s, "large", `{}`, idem("x")).want(http.StatusOK); len(a.body) < ledger.MaxOnce {
		t.Fatalf("%d bytes", len(a.body))
	}
	w.call(key, s, "large", `{}`, idem("x")).problem(http.StatusConflict, "answer-not-stored")
	if n := w.slow.calls.Load(); n != 1 {
		t.Errorf("the tool was called %d times", n)
	}
}

func TestWhatIsCreatedIsCreatedOnce(t *testing.T) {
	w := start(t, "")
	key := w.key("all")
	first := w.do(key, "POST", "/v1/sessions", everything, idem("s")).want(http.StatusCreated)
	again := w.do(key, "POST", "/v1/sessions", everything, idem("s")).want(http.StatusCreated)
	if first.field("session_id") != again.field("session_id") || again.header.Get("Location") != first.header.Get("Location") {
		t.Errorf("%s %s", first.body, again.body)
	}
	w.do(key, "POST", "/v1/sessions", `{"agent_id":"other"}`, idem("s")).problem(http.StatusUnprocessableEntity, "mismatch")
	w.do(key, "POST", "/v1/sessions", `{"agent_id":""}`, idem("t")).problem(http.StatusBadRequest, "malformed")
	w.do(key, "POST", "/v1/sessions", everything, idem("t")).want(http.StatusCreated) // nothing was made before
	deny := `{"type":"deny","tools":["x"]}`
	for range 2 {
		w.do(key, "POST", "/v1/proxy/policies", deny, idem("s")).want(http.StatusCreated)
	}
	var list struct{ Count int }
	if w.do(key, "GET", "/v1/proxy/policies", "").into(&list); list.Count != 1 {
		t.Errorf("%d policies", list.Count)
	}
	for _, bad := range []string{"a b", strings.Repeat("a", 256), "ä"} {
		w.do(key, "POST", "/v1/sessions", everything, idem(bad)).problem(http.StatusBadRequest, "malformed")
	}
	w.do(key, "POST", "/v1/sessions", everything, idem("a"), idem("b")).problem(http.StatusBadRequest, "malformed")
}
