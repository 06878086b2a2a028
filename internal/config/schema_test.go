package config_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/haldir-mcp/haldir/internal/config"
)

// schema compiles what haldir schema prints with another's validator.
func schema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(config.Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("haldir.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("haldir.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func valid(t *testing.T, s *jsonschema.Schema, text string) error {
	t.Helper()
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	j, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(j))
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(doc)
}

func TestTheSchemaTakesWhatLoads(t *testing.T) {
	s := schema(t)
	for _, file := range []string{"../../haldir.yaml", "../../cmd/haldir/demo.yaml"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := valid(t, s, string(text)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	for name, text := range map[string]string{
		"the least":           "version: 1\n",
		"empty lists":         "version: 1\nupstreams: []\npolicies: []\ncosts: []\nscopes: []\nsession: {}\nlog: {}\naudit: {}\n",
		"money":               "version: 1\nsession: {spend_limit: 0}\ncosts: [{tools: [a], usd: 0.004}]\npolicies: [{type: spend_limit, max_usd: \"25.00\"}, {type: spend_limit, max_usd: 5, id: b}]\n",
		"durations":           "version: 1\nsession: {ttl: 28800}\nlist_wait: 250ms\npolicies: [{type: rate_limit, max_calls: 1, window: 1h30m}, {type: rate_limit, max_calls: 1, window: 7d, id: b}, {type: rate_limit, max_calls: 1, window_seconds: 60, id: c}]\n",
		"times":               "version: 1\npolicies: [{type: time_window, allowed_hours: {start: \"9:00\", end: \"24:00\"}}, {type: time_window, allowed_hours: {start: 9, end: 17}}]\n",
		"days":                "version: 1\npolicies: [{type: time_window, days: [mon, sun]}]\n",
		"old keys":            "version: 1\npolicies: [{type: deny, tool: a}, {type: rate_limit, max_per_minute: 5}, {type: spend_limit, max: 5}, {type: time_window, start_hour: 9, end_hour: 17}]\n",
		"the original bodies": `{"version":1,"policies":[{"type":"deny","tools":["a"]},{"type":"spend_limit","max_usd":50.00,"per":"session"},{"type":"rate_limit","max_calls":100,"window_seconds":3600},{"type":"time_window","allowed_hours":{"start":"09:00","end":"17:00"},"timezone":"America/New_York"},{"type":"allow","tools":["a"]}]}`,
	} {
		if _, err := config.Parse([]byte(text), name); err != nil {
			t.Errorf("the test's own text: %v", err)
		}
		if err := valid(t, s, text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, file := range golden(t) {
		if c, err := config.Parse(file.config, file.name); err == nil && len(c.Warnings) == 0 {
			if err := valid(t, s, string(file.config)); err != nil {
				t.Errorf("%s: %v", file.name, err)
			}
		}
	}
}

func TestTheSchemaRefusesWhatDoesNotLoad(t *testing.T) {
	s := schema(t)
	bad := map[string]string{
		"no version":              "session: {}",
		"version 2":               "version: 2",
		"an unknown key":          "version: 1\npolices: []",
		"an unknown key, session": "version: 1\nsession: {agent: x}",
		"an unknown key, policy":  "version: 1\npolicies: [{type: spend_limit, maxx_usd: 5}]",
		"an unknown key, log":     "version: 1\nlog: {levl: info}",
		"an unknown key, hours":   "version: 1\npolicies: [{type: time_window, allowed_hours: {start: 9, end: 17, zone: x}}]",
		"a policy without a type": "version: 1\npolicies: [{tools: [a]}]",
		"an unknown type":         "version: 1\npolicies: [{type: denny, tools: [a]}]",
		"a tool that is no list":  "version: 1\npolicies: [{type: deny, tools: a}]",
		"no mapping":              "[]",
		"null":                    "version: 1\nsession: ~",
		"policies by name":        "version: 1\npolicies: {a: {type: deny}}",
		"a negative amount":       "version: 1\nsession: {spend_limit: -1}",
		"an amount in words":      "version: 1\nsession: {spend_limit: much}",
		"a list of amounts":       "version: 1\nsession: {spend_limit: [1]}",
		"calls with a point":      "version: 1\npolicies: [{type: rate_limit, max_calls: 1.5, window: 1h}]",
		"a duration in words":     "version: 1\nlist_wait: soon",
		"a negative duration":     "version: 1\nlist_wait: -5",
		"a time of 25 hours":      "version: 1\npolicies: [{type: time_window, allowed_hours: {start: \"25:00\", end: \"26:00\"}}]",
		"a time without its end":  "version: 1\npolicies: [{type: time_window, allowed_hours: {start: \"09:00\"}}]",
		"no day":                  "version: 1\npolicies: [{type: time_window, days: [someday]}]",
		"a mode":                  "version: 1\npolicies: [{type: deny, tools: [a], mode: dry}]",
		"an upstream's name":      "version: 1\nupstreams: [{name: A_B, command: x}]",
		"no upstream's name":      "version: 1\nupstreams: [{command: x}]",
		"expose":                  "version: 1\nupstreams: [{name: a, command: x, expose: naked}]",
		"a way to sign in":        "version: 1\nupstreams: [{name: a, url: \"https://x.example\", auth: {type: saml}}]",
		"a boolean in words":      "version: 1\nupstreams: [{name: a, command: x, trust_annotations: \"true\"}]",
		"a cost without tools":    "version: 1\ncosts: [{usd: 1}]",
		"a scope without scopes":  "version: 1\nscopes: [{tools: [a]}]",
		"denied_tools":            "version: 1\ndenied_tools: maybe",
		"tool_name_limit":         "version: 1\ntool_name_limit: \"64\"",
		"audit":                   "version: 1\naudit: {arguments: some}",
		"a level":                 "version: 1\nlog: {level: trace}",
	}
	for _, name := range slices.Sorted(maps.Keys(bad)) {
		if _, err := config.Parse([]byte(bad[name]), name); err == nil {
			t.Errorf("%s: the test's own text loads", name)
		}
		if valid(t, s, bad[name]) == nil {
			t.Errorf("%s: the schema takes\n%s", name, bad[name])
		}
	}
}

// An editor shows the description of each key.
func TestTheSchemaDescribesEveryKey(t *testing.T) {
	type node struct {
		Schema      string          `json:"$schema"`
		Title       string          `json:"title"`
		Description string          `json:"description"`
		Deprecated  bool            `json:"deprecated"`
		Additional  *bool           `json:"additionalProperties"`
		Properties  map[string]node `json:"properties"`
		Defs        map[string]node `json:"$defs"`
	}
	var top node
	if err := json.Unmarshal(config.Schema(), &top); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(top.Schema, "2020-12") || top.Title != "haldir.yaml" {
		t.Errorf("%s, %s", top.Schema, top.Title)
	}
	all := maps.Clone(top.Defs)
	all["(top)"] = top
	n := 0
	for name, def := range all {
		if len(def.Properties) > 0 && (def.Additional == nil || *def.Additional) {
			t.Errorf("%s takes unknown keys", name)
		}
		for key, p := range def.Properties {
			n++
			if p.Description == "" {
				t.Errorf("%s.%s has no description", name, key)
			}
			if p.Deprecated != slices.Contains([]string{"tool", "max", "max_per_minute", "start_hour", "end_hour"}, key) {
				t.Errorf("%s.%s: deprecated is %v", name, key, p.Deprecated)
			}
		}
	}
	if n < 50 {
		t.Errorf("only %d keys", n)
	}
}
