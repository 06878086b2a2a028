package config

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"testing"

	"github.com/invopop/jsonschema"
)

// What haldir schema prints is made here and kept as a file, so that what makes it need
// not be part of every haldir.
func TestTheSchemaIsThatOfTheStructs(t *testing.T) {
	want, err := made()
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if f := flag.Lookup("update"); f != nil && f.Value.String() == "true" { // of golden_test.go
		if err := os.WriteFile("haldir.schema.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(Schema(), want) {
		t.Error("haldir.schema.json is not what the structs say: go test ./internal/config -update")
	}
}

// made is the JSON Schema of haldir.yaml by the structs that read it.
func made() ([]byte, error) {
	r := &jsonschema.Reflector{FieldNameTag: "yaml", DoNotReference: false, ExpandedStruct: true, RequiredFromJSONSchemaTags: true}
	s := r.Reflect(&document{})
	s.ID = "https://github.com/haldir-mcp/haldir/haldir.schema.json"
	s.Title = "haldir.yaml"
	describe(s, reflect.TypeFor[document]())
	for name, t := range map[string]reflect.Type{
		"sessionDoc": reflect.TypeFor[sessionDoc](), "upstreamDoc": reflect.TypeFor[upstreamDoc](), "authDoc": reflect.TypeFor[authDoc](),
		"timeoutsDoc": reflect.TypeFor[timeoutsDoc](), "costDoc": reflect.TypeFor[costDoc](), "scopeDoc": reflect.TypeFor[scopeDoc](),
		"policyDoc": reflect.TypeFor[policyDoc](), "hoursDoc": reflect.TypeFor[hoursDoc](), "auditDoc": reflect.TypeFor[auditDoc](),
		"logDoc": reflect.TypeFor[logDoc](), "tlsDoc": reflect.TypeFor[tlsDoc](),
	} {
		if def := s.Definitions[name]; def != nil {
			describe(def, t)
		}
	}
	return json.MarshalIndent(s, "", "  ")
}

// describe adds the doc tags to the properties of t's schema.
func describe(s *jsonschema.Schema, t reflect.Type) {
	for f := range t.Fields() {
		p, ok := s.Properties.Get(f.Tag.Get("yaml"))
		if !ok {
			continue
		}
		p.Description = f.Tag.Get("doc")
		if alias := f.Tag.Get("alias"); alias != "" {
			p.Description, p.Deprecated = "Old form of "+alias+".", true
		}
	}
}

// JSONSchema implements the schema of an amount.
func (usd) JSONSchema() *jsonschema.Schema {
	return &jsonschema.Schema{OneOf: []*jsonschema.Schema{{Type: "number", Minimum: "0"}, {Type: "string", Pattern: `^[0-9]+(\.[0-9]+)?$`}}}
}

// JSONSchema implements the schema of a duration.
func (duration) JSONSchema() *jsonschema.Schema {
	return &jsonschema.Schema{OneOf: []*jsonschema.Schema{
		{Type: "integer", Minimum: "0"},
		{Type: "string", Pattern: `^([0-9]+d|([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+|[0-9]+)$`},
	}}
}

// JSONSchema implements the schema of a time of day.
func (clock) JSONSchema() *jsonschema.Schema {
	return &jsonschema.Schema{OneOf: []*jsonschema.Schema{
		{Type: "string", Pattern: `^([01]?[0-9]|2[0-4]):[0-5][0-9]$`}, {Type: "integer", Minimum: "0", Maximum: "24"},
	}}
}

// JSONSchema implements the schema of a day.
func (day) JSONSchema() *jsonschema.Schema {
	s := &jsonschema.Schema{Type: "string"}
	for _, n := range dayNames {
		s.Enum = append(s.Enum, n)
	}
	return s
}
