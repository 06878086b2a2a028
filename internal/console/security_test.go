package console_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/console"
	"github.com/haldir-mcp/haldir/internal/console/api"
	"github.com/haldir-mcp/haldir/internal/ledger"
)

// marks are what a page of another origin must not be given: with any of them it could
// read an answer.
func notReadable(t *testing.T, a answer) {
	t.Helper()
	for name := range a.header {
		if strings.HasPrefix(name, "Access-Control-") {
			t.Errorf("%s: %s: %s", a.what, name, a.header.Get(name))
		}
	}
	for name, want := range map[string]string{
		"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin", "X-Frame-Options": "DENY",
		"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
	} {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s: %s: %q, want %q", a.what, name, got, want)
		}
	}
}

func TestOtherOriginsAndHostsAreRefused(t *testing.T) {
	w := start(t, "")
	key := w.key("all")
	_, cookie := w.browser()
	port := strings.TrimPrefix(w.url, "http://127.0.0.1:")
	paths := []string{"/v1/sessions", "/v1/openapi.json", "/v1/events", "/console/", "/console/app.js", "/", "/v1/nothing"}
	foreign := [][]header{
		{{"Origin", "https://evil.example"}},
		{{"Origin", "null"}},
		{{"Origin", "http://127.0.0.1:1"}},
		{{"Origin", "http://localhost:" + port}}, // it is not the Host of this request
		{{"Origin", "https://127.0.0.1:" + port}},
		{{"Origin", "http://127.0.0.1:" + port}, {"Origin", "https://evil.example"}},
		{{"Sec-Fetch-Site", "cross-site"}},
		{{"Sec-Fetch-Site", "same-site"}},
		{{"Host", "evil.example"}},
		{{"Host", "evil.example:" + port}}, // which leads to 127.0.0.1: rebinding
		{{"Host", "127.0.0.1"}},
		{{"Host", "127.0.0.1:1"}},
		{{"Host", "localhost.evil.example:" + port}},
		{{"Host", "127.0.0.1.nip.io:" + port}},
		{{"Host", "0.0.0.0:" + port}},
	}
	for _, path := range paths {
		for _, from := range foreign {
			for _, who := range []string{key, ""} {
				headers := from
				if who == "" {
					headers = append(slices.Clone(from), cookie)
				}
				a := w.do(who, "GET", path, "", headers...)
				a.problem(http.StatusForbidden, "misdirected")
				notReadable(t, a)
			}
		}
	}
	// A request that asks whether it may be made is told that it may not.
	a := w.do("", "OPTIONS", "/v1/proxy/call", "", header{"Origin", "https://evil.example"}, header{"Access-Control-Request-Method", "POST"})
	a.problem(http.StatusForbidden, "misdirected")
	notReadable(t, a)
	// Our own names are not foreign.
	for _, host := range []string{"127.0.0.1:" + port, "localhost:" + port, "[::1]:" + port, "LOCALHOST:" + port} {
		a := w.do(key, "GET", "/v1/stop", "", header{"Host", host}, header{"Origin", "http://" + host}).want(http.StatusOK)
		notReadable(t, a)
		if a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("an answer may be kept: %v", a.header)
		}
	}
	if a := w.do(key, "GET", "/", "").want(http.StatusSeeOther); a.header.Get("Location") != "/console/" {
		t.Errorf("%v", a.header)
	}
}

func TestWithoutAGoodKeyNothingIsTold(t *testing.T) {
	w := start(t, "")
	good := w.key("all")
	w.session(good, `{"agent_id":"secret-bot"}`)
	ended := w.keyOf(ledger.KeyTerms{Scopes: []string{"all"}, ExpiresAt: noon.Add(time.Minute)})
	w.do(ended, "GET", "/v1/stop", "").want(http.StatusOK)
	w.clock.add(2 * time.Minute)
	revoked := w.key("all")
	list, err := w.led.Keys(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.led.RevokeKey(context.Background(), list[0].ID); err != nil {
		t.Fatal(err)
	}
	for name, headers := range map[string][]header{
		"none":         {},
		"empty":        {{"Authorization", "Bearer "}},
		"no scheme":    {{"Authorization", good}},
		"basic":        {{"Authorization", "Basic " + good}},
		"wrong":        {{"Authorization", "Bearer hld_" + strings.Repeat("0", 43)}},
		"short":        {{"Authorization", "Bearer " + good[:46]}},
		"longer":       {{"Authorization", "Bearer " + good + "0"}},
		"two":          {{"Authorization", "Bearer " + good}, {"Authorization", "Bearer " + ended}},
		"two ways":     {{"Authorization", "Bearer " + good}, {"X-API-Key", ended}},
		"expired":      {{"Authorization", "Bearer " + ended}},
		"revoked":      {{"X-API-Key", revoked}},
		"wrong cookie": {{"Cookie", w.cookieName() + "=" + strings.Repeat("A", 43)}},
		"empty cookie": {{"Cookie", w.cookieName() + "="}},
		"two cookies":  {{"Cookie", w.cookieName() + "=a; " + w.cookieName() + "=b"}},
	} {
		a := w.do("", "GET", "/v1/sessions", "", headers...)
		a.problem(http.StatusUnauthorized, "unauthorized")
		if strings.Contains(string(a.body), "secret-bot") || a.header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: %s %v", name, a.body, a.header)
		}
		notReadable(t, a)
	}
	// A key in the query, where logs and histories keep it, is none.
	w.do("", "GET", "/v1/sessions?api_key="+good, "").problem(http.StatusUnauthorized, "unauthorized")
	w.do("", "GET", "/v1/sessions", "", header{"X-API-Key", good}).want(http.StatusOK)
	w.do("", "GET", "/v1/sessions", "", header{"Authorization", "bearer " + good}).want(http.StatusOK)
	w.do("", "GET", "/v1/sessions", "", header{"Authorization", "Bearer " + good}, header{"X-API-Key", good}).want(http.StatusOK)
	// What there is not is told to nobody either.
	w.do("", "GET", "/v1/nothing", "").problem(http.StatusUnauthorized, "unauthorized")
	w.do(good, "GET", "/v1/nothing", "").problem(http.StatusNotFound, "not-found")
}

func TestEveryRouteAsksForItsScope(t *testing.T) {
	w := start(t, "")
	_, cookie := w.browser()
	routes := w.api.Routes()
	if len(routes) < 30 {
		t.Fatalf("%d routes", len(routes))
	}
	keys := map[api.Scope]string{} // with every scope but one
	for _, s := range api.Scopes {
		var others []string
		for _, o := range api.Scopes {
			if o != s {
				others = append(others, string(o))
			}
		}
		keys[s] = w.key(others...)
	}
	asked := map[api.Scope]bool{}
	byPath := map[string][]string{}
	fill := strings.NewReplacer("{id}", "x", "{name}", "x", "{upstream}", "x")
	for _, r := range routes {
		path := fill.Replace(r.Path)
		byPath[path] = append(byPath[path], r.Method)
		asked[r.Scope] = true
		if r.Scope != "" {
			got := w.do(keys[r.Scope], r.Method, path, "").problem(http.StatusForbidden, "forbidden")
			if !strings.Contains(got, string(r.Scope)) {
				t.Errorf("%s %s: %s", r.Method, r.Path, got)
			}
		}
		// By cookie, what changes something must say that the page wants it.
		if r.Method != http.MethodGet {
			w.do("", r.Method, path, "", cookie).problem(http.StatusForbidden, "misdirected")
			w.do("", r.Method, path, "", cookie, header{"Origin", w.origin}, header{"Sec-Fetch-Site", "none"}).problem(http.StatusForbidden, "misdirected")
		}
	}
	for _, s := range api.Scopes {
		if !asked[s] {
			t.Errorf("no route asks for %s", s)
		}
	}
	all := w.key("all")
	for path, methods := range byPath {
		for _, m := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"} {
			if slices.Contains(methods, m) {
				continue
			}
			a := w.do(all, m, path, "")
			a.problem(http.StatusMethodNotAllowed, "method")
			for _, allowed := range methods {
				if !strings.Contains(a.header.Get("Allow"), allowed) {
					t.Errorf("%s %s: Allow: %s", m, path, a.header.Get("Allow"))
				}
			}
		}
		// Another way to say the method is none.
		if !slices.Contains(methods, "DELETE") && slices.Contains(methods, "GET") && path != "/v1/events" && path != "/v1/audit/export" {
			a := w.do(all, "GET", path, "", header{"X-HTTP-Method-Override", "DELETE"})
			if a.status == http.StatusMethodNotAllowed {
				t.Errorf("%s: a header changes the method", path)
			}
		}
	}
}

func TestPathsAreReadInOneWay(t *testing.T) {
	w := start(t, "")
	key := w.key("proxy:read")
	host := strings.TrimPrefix(w.url, "http://")
	for _, path := range []string{
		"//v1/sessions", "/v1//sessions", "/v1/./sessions", "/v1/proxy/../sessions", "/v1/%2e%2e/v1/sessions", "/v1%2fsessions", "/v1/%2E/sessions",
		"/console/../v1/sessions", "/console/%2e%2e/v1/sessions", "/console/..%2fv1/sessions", "/v1\\sessions", "/v1/sessions%00", "/v1/sessions;x=1",
		"/v1/sessions/%2e%2e", "/v1/proxy/policies/%2e%2e%2fupstreams", "/v1/%25%32%66", "/v1/sessions/..", "/v1/sessions/.", "/%2e/v1/sessions",
		"http://" + host + "//v1/sessions", "*",
	} {
		answer := w.raw("GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\nAuthorization: Bearer " + key + "\r\nConnection: close\r\n\r\n")
		if line, _, _ := strings.Cut(answer, "\r\n"); !strings.Contains(line, " 400 ") {
			t.Errorf("%s: %s", path, line)
		}
	}
	for _, path := range []string{"/V1/sessions", "/v1/sessions/", "/v1/Sessions"} {
		if a := w.do(key, "GET", path, ""); a.status != http.StatusNotFound && a.status != http.StatusForbidden {
			t.Errorf("%s: %d", path, a.status)
		}
	}
	for _, path := range []string{"/console/nothing.js", "/console/page.go", "/console/index.html/x", "/console/.git"} {
		w.do("", "GET", path, "").problem(http.StatusNotFound, "not-found")
	}
	// An absolute URL is another way to name the host.
	answer := w.raw("GET http://evil.example/v1/sessions HTTP/1.1\r\nHost: " + host + "\r\nAuthorization: Bearer " + key + "\r\nConnection: close\r\n\r\n")
	if !strings.HasPrefix(answer, "HTTP/1.1 403 ") {
		t.Errorf("an absolute URL of another host: %.100s", answer)
	}
}

func TestOldAndOddRequests(t *testing.T) {
	w := start(t, "")
	key := w.key("all")
	host := strings.TrimPrefix(w.url, "http://")
	auth := "Authorization: Bearer " + key + "\r\n"
	for name, text := range map[string]string{
		"HTTP/1.0 without Host":    "GET /v1/sessions HTTP/1.0\r\n" + auth + "\r\n",
		"HTTP/1.1 without Host":    "GET /v1/sessions HTTP/1.1\r\n" + auth + "\r\n",
		"two Hosts":                "GET /v1/sessions HTTP/1.1\r\nHost: " + host + "\r\nHost: evil.example\r\n" + auth + "\r\n",
		"an empty Host":            "GET /v1/sessions HTTP/1.1\r\nHost: \r\n" + auth + "Connection: close\r\n\r\n",
		"no request":               "hello\r\n\r\n",
		"HTTP/2 preface":           "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"two lengths":              "POST /v1/sessions HTTP/1.1\r\nHost: " + host + "\r\n" + auth + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
		"length and chunks":        "POST /v1/sessions HTTP/1.1\r\nHost: " + host + "\r\n" + auth + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n",
		"a proxy's CONNECT":        "CONNECT evil.example:80 HTTP/1.1\r\nHost: evil.example:80\r\n" + auth + "Connection: close\r\n\r\n",
		"a header with a line end": "GET /v1/sessions HTTP/1.1\r\nHost: " + host + "\r\nX: a\rb\r\n" + auth + "Connection: close\r\n\r\n",
		"a large header":           "GET /v1/sessions HTTP/1.1\r\nHost: " + host + "\r\nX: " + strings.Repeat("a", 100_000) + "\r\n\r\n",
	} {
		if answer := w.raw(text); strings.Contains(answer, "200 OK") || strings.Contains(answer, `"sessions"`) {
			t.Errorf("%s: %.200s", name, answer)
		}
	}
}

func TestLargeBodiesAreRefused(t *testing.T) {
	w := start(t, "")
	key := w.key("all")
	s := w.session(key, everything)
	fits := `{"session_id":"` + s + `","tool":"scan_domain","arguments":{"domain":"` + strings.Repeat("a", 1<<20-200) + `"}}`
	w.do(key, "POST", "/v1/proxy/call", fits).want(http.StatusOK)
	large := `{"session_id":"` + s + `","tool":"scan_domain","arguments":{"domain":"` + strings.Repeat("a", 1<<20) + `"}}`
	w.do(key, "POST", "/v1/proxy/call", large).problem(http.StatusRequestEntityTooLarge, "too-large")
	w.do("", "POST", "/console/login", `{"token":"`+strings.Repeat("a", 2000)+`"}`, header{"Origin", w.origin}).problem(http.StatusRequestEntityTooLarge, "too-large")
	// Without a length as well, and without waiting for its end.
	host := strings.TrimPrefix(w.url, "http://")
	c, err := net.Dial("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(hang))
	_, _ = io.WriteString(c, "POST /v1/sessions HTTP/1.1\r\nHost: "+host+"\r\nAuthorization: Bearer "+key+"\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
	chunk := fmt.Sprintf("%x\r\n%s\r\n", 1<<16, strings.Repeat(" ", 1<<16))
	for range 17 {
		if _, err := io.WriteString(c, chunk); err != nil {
			break
		}
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || !strings.Contains(line, " 413 ") {
		t.Errorf("%q, %v", line, err)
	}
}

func TestASlowRequestIsNotWaitedForForEver(t *testing.T) {
	w := start(t, "", func(o *console.Options) { o.Patience = 300 * time.Millisecond })
	host := strings.TrimPrefix(w.url, "http://")
	key := w.key("all")
	for name, text := range map[string]string{
		"half a header": "GET /v1/sessions HTTP/1.1\r\nHost: " + host + "\r\n",
		"half a body":   "POST /v1/sessions HTTP/1.1\r\nHost: " + host + "\r\nAuthorization: Bearer " + key + "\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
	} {
		if answer := w.raw(text); strings.Contains(answer, "200 OK") || strings.Contains(answer, "201") {
			t.Errorf("%s: %q", name, answer)
		}
	}
	// What is under way is not a slow request: a call may take long.
	s := w.session(key, everything)
	go func() {
		<-w.slow.began
		time.Sleep(time.Second) // more than the patience
		close(w.slow.end)
	}()
	w.call(key, s, "wait", `{}`).want(http.StatusOK)
}

func TestALinkSignsInOnceAndSoon(t *testing.T) {
	w := start(t, "")
	token := func() string {
		_, token, ok := strings.Cut(w.page.Link(), "/console/#token=")
		if !ok || len(token) < 22 { // 128 bits
			t.Fatalf("the token %q", token)
		}
		return token
	}
	own := header{"Origin", w.origin}
	login := func(token string, headers ...header) answer {
		return w.do("", "POST", "/console/login", `{"token":`+quote(token)+`}`, headers...)
	}
	first := token()
	login(first).problem(http.StatusForbidden, "misdirected") // without an Origin, and the token still holds
	login(first, header{"Origin", "https://evil.example"}).problem(http.StatusForbidden, "misdirected")
	a := login(first, own).want(http.StatusOK)
	set := a.header.Get("Set-Cookie")
	value, attributes, _ := strings.Cut(strings.TrimPrefix(set, w.cookieName()+"="), ";")
	page := a.field("page")
	if len(page) < 43 || page == value {
		t.Errorf("the page gets %q", page)
	}
	for _, want := range []string{"HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"} {
		if !strings.Contains(attributes, want) {
			t.Errorf("the cookie lacks %s: %s", want, set)
		}
	}
	if len(value) < 43 || strings.Contains(attributes, "Domain") { // 256 bits
		t.Errorf("the cookie %s", set)
	}
	login(first, own).problem(http.StatusUnauthorized, "unauthorized") // used
	old := token()
	w.clock.add(2 * time.Minute)
	login(old, own).problem(http.StatusUnauthorized, "unauthorized") // too old
	for _, wrong := range []string{"", "x", first + "x", strings.Repeat("A", 22)} {
		login(wrong, own).problem(http.StatusUnauthorized, "unauthorized")
	}
	w.do("", "GET", "/console/login", "").problem(http.StatusMethodNotAllowed, "method")
	w.do("", "POST", "/console/login", `{"token":"a","more":1}`, own).problem(http.StatusBadRequest, "malformed")

	cookie := header{"Cookie", w.cookieName() + "=" + value}
	w.pages = map[string]string{cookie.value: page}
	w.do("", "GET", "/v1/sessions", "", cookie).want(http.StatusOK)
	w.do("", "POST", "/v1/sessions", everything, cookie, own, header{"Sec-Fetch-Site", "same-origin"}).want(http.StatusCreated)
	w.do("", "POST", "/v1/sessions", everything, cookie, own).want(http.StatusCreated) // old browsers do not say the site
	w.clock.add(12*time.Hour - 2*time.Minute - time.Second)
	w.do("", "GET", "/v1/sessions", "", cookie).want(http.StatusOK)
	w.clock.add(time.Second)
	w.do("", "GET", "/v1/sessions", "", cookie).problem(http.StatusUnauthorized, "unauthorized")

	_, cookie = w.browser()
	_, other := w.browser()
	w.do("", "POST", "/console/logout", "", cookie).problem(http.StatusForbidden, "misdirected")
	w.do("", "POST", "/console/logout", "", cookie, own).want(http.StatusNoContent)
	w.do("", "GET", "/v1/sessions", "", cookie).problem(http.StatusUnauthorized, "unauthorized")
	w.do("", "GET", "/v1/sessions", "", other).want(http.StatusOK)
	if strings.Contains(w.log.String(), value) || strings.Contains(w.log.String(), page) || strings.Contains(w.log.String(), first) {
		t.Error("the log has a token")
	}
}

// A browser sends a cookie to every server of a name, whatever its port: one that gets it
// so, and is no browser, can forge every header that it knows.
func TestTheCookieAloneChangesNothing(t *testing.T) {
	w := start(t, "")
	_, cookie := w.browser()
	_, other := w.browser()
	forged := []header{cookie, {"Origin", w.origin}, {"Sec-Fetch-Site", "same-origin"}}
	all := `{"name":"mine","scopes":["approvals:write"]}`
	for name, page := range map[string][]header{
		"none":              {{"Haldir-Page", ""}},
		"wrong":             {{"Haldir-Page", ""}, {"Haldir-Page", strings.Repeat("A", 43)}},
		"of the cookie":     {{"Haldir-Page", ""}, {"Haldir-Page", cookie.value}},
		"of another person": {{"Haldir-Page", ""}, {"Haldir-Page", w.pages[other.value]}},
		"two":               {{"Haldir-Page", "x"}},
	} {
		headers := append(slices.Clone(forged), page...)
		if detail := w.do("", "POST", "/v1/keys", all, headers...).problem(http.StatusForbidden, "misdirected"); !strings.Contains(detail, "Haldir-Page") {
			t.Errorf("%s: %s", name, detail)
		}
		w.do("", "POST", "/v1/stop", `{}`, headers...).problem(http.StatusForbidden, "misdirected")
		w.do("", "POST", "/console/logout", "", headers...).problem(http.StatusForbidden, "misdirected")
	}
	w.do("", "POST", "/v1/keys", all, forged...).want(http.StatusCreated) // the page itself
	if _, port, _ := strings.Cut(w.url, "127.0.0.1:"); !strings.HasPrefix(cookie.value, "haldir_console_"+port+"=") {
		t.Errorf("another console's cookie has the same name: %s", cookie.value)
	}
}

// cookieName is what the cookie of this console is called.
func (w *world) cookieName() string {
	_, port, _ := strings.Cut(w.url, "127.0.0.1:")
	return "haldir_console_" + port
}

func TestWhoGuessesIsSlowedDownAndWhoKnowsIsNot(t *testing.T) {
	w := start(t, "")
	key := w.key("all")
	limited := 0
	for i := range 60 {
		a := w.do("hld_"+strings.Repeat(fmt.Sprint(i%10), 43), "GET", "/v1/sessions", "")
		if a.status == http.StatusTooManyRequests {
			limited++
			if a.header.Get("Retry-After") == "" {
				t.Errorf("%v", a.header)
			}
		} else {
			a.problem(http.StatusUnauthorized, "unauthorized")
		}
	}
	if limited == 0 {
		t.Error("60 wrong keys at once were all looked at")
	}
	w.do(key, "GET", "/v1/sessions", "").want(http.StatusOK)
}

func TestAKeyHasAPace(t *testing.T) {
	w := start(t, "")
	key, other := w.key("all"), w.key("all")
	for i := range 300 {
		if a := w.quick(key, "/v1/openapi.json"); a.status != http.StatusOK {
			t.Fatalf("request %d: %d", i, a.status)
		}
	}
	a := w.do(key, "GET", "/v1/openapi.json", "")
	a.problem(http.StatusTooManyRequests, "rate")
	if a.header.Get("Retry-After") != "1" {
		t.Errorf("%v", a.header)
	}
	w.do(other, "GET", "/v1/stop", "").want(http.StatusOK)
	w.clock.add(time.Second)
	w.do(key, "GET", "/v1/stop", "").want(http.StatusOK)
}

func TestThePageIsServed(t *testing.T) {
	w := start(t, "")
	a := w.do("", "GET", "/console/", "").want(http.StatusOK)
	notReadable(t, a)
	if a.header.Get("Content-Type") != "text/html; charset=utf-8" || !strings.Contains(string(a.body), "<title>haldir") {
		t.Errorf("%v %s", a.header, a.body)
	}
	js := w.do("", "GET", "/console/app.js", "").want(http.StatusOK)
	if js.header.Get("Content-Type") != "text/javascript; charset=utf-8" {
		t.Errorf("%v", js.header)
	}
	w.do("", "GET", "/console/app.js", "", header{"If-None-Match", js.header.Get("ETag")}).want(http.StatusNotModified)
	w.do("", "HEAD", "/console/app.js", "").want(http.StatusOK)
	w.do("", "POST", "/console/app.js", "{}").problem(http.StatusMethodNotAllowed, "method")
}

func TestTheListenerIsOnThisMachineOnly(t *testing.T) {
	w := start(t, "")
	port := strings.TrimPrefix(w.url, "http://127.0.0.1:")
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		ip, ok := a.(*net.IPNet)
		if !ok || ip.IP.IsLoopback() || ip.IP.IsLinkLocalUnicast() {
			continue
		}
		if c, err := net.DialTimeout("tcp", net.JoinHostPort(ip.IP.String(), port), time.Second); err == nil {
			_ = c.Close()
			t.Errorf("it listens on %s", ip.IP)
		}
	}
}
