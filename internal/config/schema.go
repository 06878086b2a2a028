package config

import (
	"encoding/json"
	"reflect"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
	"github.com/invopop/jsonschema"
)

func newDecoder(file string) *decoder {
	return &decoder{file: file, places: map[string]*token.Position{}, texts: map[string]*token.Token{}, anchors: map[string]ast.Node{}}
}

// Schema returns the JSON Schema of haldir.yaml for editors, made from the same
// structs that read it.
func Schema() ([]byte, error) {
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
