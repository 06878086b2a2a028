package packaging

import (
	"encoding/json"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/goccy/go-yaml"
)

// catalogue is as much of Smithery as its program needs in order to publish a bundle.
type catalogue struct {
	mu     sync.Mutex
	paths  []string
	parts  map[string][]byte
	broken error
}

func (c *catalogue) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if strings.HasPrefix(r.URL.Path, "/a") && !strings.Contains(r.URL.Path, "servers") { // what is counted of its use
		_, _ = io.WriteString(w, "{}")
		return
	}
	c.paths = append(c.paths, r.Method+" "+r.URL.EscapedPath())
	if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/releases") {
		_, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if err != nil {
			c.broken = err
		}
		c.parts = map[string][]byte{}
		for form := multipart.NewReader(r.Body, params["boundary"]); ; {
			part, err := form.NextPart()
			if err != nil {
				break
			}
			c.parts[part.FormName()], c.broken = io.ReadAll(part)
		}
		_, _ = io.WriteString(w, `{"deploymentId":"d1","status":"SUCCESS","mcpUrl":"http://127.0.0.1/haldir","warnings":[]}`)
		return
	}
	_, _ = io.WriteString(w, `{"deploymentId":"d1","id":"d1","status":"SUCCESS","logs":[],"qualifiedName":"haldir-mcp/haldir","namespaces":[{"name":"haldir-mcp"}]}`)
}

// TestSmithery publishes the bundle with Smithery's own program, to a catalogue on this
// machine, and looks at what is made of it.
func TestSmithery(t *testing.T) {
	c := &catalogue{}
	srv := httptest.NewServer(c)
	defer srv.Close()
	var named struct{ Name string }
	raw, err := os.ReadFile("../smithery.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(raw, &named); err != nil || named.Name != "haldir" {
		t.Fatalf("smithery.yaml names %q: %v", named.Name, err)
	}
	env := append(clean(t), "SMITHERY_BASE_URL="+srv.URL, "SMITHERY_API_KEY=none", "ANALYTICS_ENDPOINT="+srv.URL+"/a", "CI=1")
	out := must(t, npm(t, env, smithery, "smithery", "mcp", "publish", file(t, "haldir-%s.mcpb"), "-n", "haldir-mcp/"+named.Name))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil || c.parts == nil {
		t.Fatalf("nothing was published by %v: %v\n%s", c.paths, c.broken, out)
	}
	bundle, err := os.ReadFile(file(t, "haldir-%s.mcpb"))
	if err != nil {
		t.Fatal(err)
	}
	if string(c.parts["bundle"]) != string(bundle) {
		t.Error("another bundle was published than was made")
	}
	payload := decode[struct {
		Type, Runtime string
		ServerCard    struct {
			ServerInfo struct{ Name, Version string }
			Tools      []struct{ Name string }
		}
		ConfigSchema struct {
			Type       string
			Properties map[string]json.RawMessage
			Required   []string
		}
	}](t, c.parts["payload"])
	if payload.Type != "stdio" || payload.Runtime != "node" || payload.ServerCard.ServerInfo.Name != "haldir" ||
		payload.ServerCard.ServerInfo.Version != version(t) || len(payload.ServerCard.Tools) != 3 {
		t.Errorf("%s", c.parts["payload"])
	}
	for _, key := range []string{"config_file", "state_directory", "upstream_url"} {
		if payload.ConfigSchema.Properties[key] == nil {
			t.Errorf("there is no %s in the schema of the config: %s", key, c.parts["payload"])
		}
	}
	if len(payload.ConfigSchema.Required) != 0 {
		t.Errorf("%v must be given", payload.ConfigSchema.Required)
	}
}
