package config

import (
	"reflect"
	"testing"
)

// What is no single value has an example for who writes one there, and the example can be read.
func TestEachListAndMappingHasAnExampleThatCanBeRead(t *testing.T) {
	var look func(at string, s reflect.Type)
	look = func(at string, s reflect.Type) {
		for f := range s.Fields() {
			key, inner := f.Tag.Get("yaml"), f.Type
			for inner.Kind() == reflect.Pointer || inner.Kind() == reflect.Slice {
				inner = inner.Elem()
			}
			example := f.Tag.Get("example")
			if example == "" && (inner.Kind() == reflect.Struct || f.Type.Kind() == reflect.Slice) {
				t.Errorf("%s%s has no example", at, key)
			}
			if example != "" {
				d := newDecoder("example")
				if d.parse([]byte(key+": "+example+"\n"), reflect.New(s).Interface()); len(d.problems) > 0 {
					t.Errorf("%s%s: %s: %v", at, key, example, d.problems)
				}
			}
			if inner.Kind() == reflect.Struct {
				look(at+key+".", inner)
			}
		}
	}
	look("", reflect.TypeFor[document]())
}
