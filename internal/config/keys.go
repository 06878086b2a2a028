package config

import (
	"reflect"
	"strings"
)

// Key is one of the keys that an entry of a list has.
type Key struct {
	Name string
	Form Form
	Doc  string
}

// Form is how a key's value is written.
type Form uint8

// The forms.
const (
	FormText   Form = iota
	FormNumber      // or a text that means one, such as 1h
	FormList        // of texts
	FormHours       // a mapping of start and end
)

// PolicyKeys are the keys of a policy, without old spellings, in the order of the
// reference.
func PolicyKeys() []Key {
	var out []Key
	for f := range reflect.TypeFor[policyDoc]().Fields() {
		if f.Tag.Get("alias") != "" {
			continue
		}
		t := f.Type
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		k := Key{Name: f.Tag.Get("yaml"), Doc: strings.TrimSuffix(f.Tag.Get("doc"), ".")}
		switch {
		case t.Kind() == reflect.Slice:
			k.Form = FormList
		case t == reflect.TypeFor[hoursDoc]():
			k.Form = FormHours
		case t.Kind() != reflect.String:
			k.Form = FormNumber
		}
		out = append(out, k)
	}
	return out
}
