package console_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

func TestTheDocumentHasEveryRouteAndNoOther(t *testing.T) {
	text, err := os.ReadFile("api/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		OpenAPI string
		Paths   map[string]map[string]struct {
			Scope       string `json:"x-haldir-scope"`
			OperationID string `json:"operationId"`
			Parameters  []struct {
				Name, In string
				Schema   struct{ Type string }
			}
		}
	}
	if err := json.Unmarshal(text, &doc); err != nil || doc.OpenAPI != "3.1.0" {
		t.Fatalf("%s, %v", doc.OpenAPI, err)
	}
	w := start(t, "")
	described := map[string]string{}
	ids := map[string]bool{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			described[strings.ToUpper(method)+" "+path] = op.Scope
			if ids[op.OperationID] {
				t.Errorf("the operation %s is there twice", op.OperationID)
			}
			ids[op.OperationID] = true
		}
	}
	for _, r := range w.api.Routes() {
		name := r.Method + " " + r.Path
		scope, ok := described[name]
		if !ok || scope != string(r.Scope) {
			t.Errorf("%s asks for %q, and the document says %q (%v)", name, r.Scope, scope, ok)
		}
		delete(described, name)
	}
	for name := range described {
		t.Errorf("%s is described and is not there", name)
	}
	// Every parameter that is described is taken, and one that is not is none.
	key := w.key("all")
	tried := 0
	for path, methods := range doc.Paths {
		op, ok := methods["get"]
		if !ok || strings.Contains(path, "{") || path == "/v1/events" || path == "/v1/audit/export" {
			continue
		}
		for _, p := range op.Parameters {
			if p.In != "query" {
				continue
			}
			value := map[string]string{"integer": "1", "boolean": "true"}[p.Schema.Type]
			a := w.do(key, "GET", path+"?"+p.Name+"="+value, "")
			if strings.Contains(string(a.body), "unknown parameter") {
				t.Errorf("%s does not take %s", path, p.Name)
			}
			tried++
		}
	}
	if tried < 15 {
		t.Errorf("only %d parameters", tried)
	}
	a := w.do(key, "GET", "/v1/openapi.json", "").want(http.StatusOK)
	if !bytes.Equal(a.body, text) {
		t.Error("what is served is not the document")
	}
}

// The comparison that all tests rest on finds what is not as it is described.
func TestTheComparisonFindsMistakes(t *testing.T) {
	v, err := document()
	if err != nil {
		t.Fatal(err)
	}
	check := func(method, path, request string, status int, kind, body string) (ok bool) {
		r := httptest.NewRequest(method, "http://127.0.0.1"+path, strings.NewReader(request))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("X-API-Key", "hld_x")
		if request != "" {
			if ok, _ := v.ValidateHttpRequestSync(r); !ok {
				return false
			}
		}
		res := &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {kind}}, Body: io.NopCloser(strings.NewReader(body)), Request: r}
		ok, _ = v.ValidateHttpResponse(r, res)
		return ok
	}
	const yes, no = `{"stopped":null}`, `{"stopped":"yes"}`
	for _, c := range []struct {
		method, path, request string
		status                int
		kind, body            string
		want                  bool
	}{
		{"GET", "/v1/stop", "", 200, "application/json", yes, true},
		{"GET", "/v1/stop", "", 200, "application/json", no, false},
		{"GET", "/v1/stop", "", 200, "application/json", `{"stopped":null,"more":1}`, false},
		{"GET", "/v1/stop", "", 200, "text/html", yes, false},
		{"GET", "/v1/nothing", "", 200, "application/json", yes, false},
		{"GET", "/v1/stop", "", 403, "application/problem+json", `{"type":"a","title":"b","status":403,"detail":"c","error":"c"}`, true},
		{"GET", "/v1/stop", "", 403, "application/problem+json", `{"title":"b"}`, false},
		{"POST", "/v1/stop", `{"reason":"x"}`, 200, "application/json", yes, true},
		{"POST", "/v1/stop", `{"why":"x"}`, 200, "application/json", yes, false},
	} {
		if got := check(c.method, c.path, c.request, c.status, c.kind, c.body); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
