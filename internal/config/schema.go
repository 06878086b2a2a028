package config

import _ "embed"

// schema is written by a test, from the same structs that read haldir.yaml.
//
//go:embed haldir.schema.json
var schema []byte

// Schema returns the JSON Schema of haldir.yaml for editors. It is not to be changed.
func Schema() []byte { return schema }
