package config

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// keys calls f for every key of haldir.yaml, with its path.
func keys(t reflect.Type, path string, f func(path string, field reflect.StructField)) {
	for field := range t.Fields() {
		key := field.Tag.Get("yaml")
		at := strings.TrimPrefix(path+"."+key, ".")
		f(at, field)
		inner := field.Type
		for inner.Kind() == reflect.Pointer || inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			keys(inner, at, f)
		}
	}
}

func TestEveryKeyIsDescribedAndStandsInTheReference(t *testing.T) {
	reference, err := os.ReadFile("../../haldir.yaml")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	keys(reflect.TypeFor[document](), "", func(path string, f reflect.StructField) {
		n++
		key, doc, alias := f.Tag.Get("yaml"), f.Tag.Get("doc"), f.Tag.Get("alias")
		if key == "" || key != strings.ToLower(key) {
			t.Errorf("%s: %q is no key", path, key)
		}
		if alias != "" {
			if doc != "" {
				t.Errorf("%s is an old spelling with a text of its own", path)
			}
			return
		}
		if doc == "" || !strings.HasSuffix(doc, ".") {
			t.Errorf("%s has no sentence that describes it", path)
		}
		if !regexp.MustCompile(`(^|[^$\w{]|[^$]\{)` + key + `:`).Match(reference) { // ${file:PATH} is not the key file
			t.Errorf("%s does not stand in haldir.yaml", path)
		}
	})
	if n < 50 {
		t.Errorf("only %d keys were looked at", n)
	}
}

// The for tags name types that exist, and types have the keys they need.
func TestKeysOfPoliciesBelongToTypesThatExist(t *testing.T) {
	for f := range reflect.TypeFor[policyDoc]().Fields() {
		for name := range strings.SplitSeq(f.Tag.Get("for"), ",") {
			if name != "" && !slices.Contains(policyTypes, name) {
				t.Errorf("%s is for %q", f.Tag.Get("yaml"), name)
			}
		}
	}
	for old, now := range typeAliases {
		if !slices.Contains(policyTypes, now) || slices.Contains(policyTypes, old) {
			t.Errorf("%s is an alias of %s", old, now)
		}
	}
}

// Every setting of the file that viper layers is a key of it.
func TestSettingsAreKeys(t *testing.T) {
	var all []string
	keys(reflect.TypeFor[document](), "", func(path string, _ reflect.StructField) { all = append(all, path) })
	for _, s := range AllSettings() {
		if s.Key != "" && !slices.Contains(all, s.Key) {
			t.Errorf("%s is no key", s.Key)
		}
	}
}
