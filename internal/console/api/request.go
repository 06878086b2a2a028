package api

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// request is one request of a caller who may make it.
type request struct {
	*http.Request
	w      http.ResponseWriter
	caller *Caller
	query  url.Values
	raw    []byte // the body
}

// reply is a good answer. Its zero value of status means 200.
type reply struct {
	status   int
	body     any
	location string
}

// MaxBody is how large a body may be, in bytes.
const MaxBody = 1 << 20

// read reads the whole body. Without one it is empty.
func (r *request) read() error {
	if kind := r.Header.Get("Content-Type"); kind != "" && r.ContentLength != 0 {
		// curl says of any body that it is a form, unless it is told; a browser can send
		// that to anybody without being asked whether it may.
		if media, _, _ := strings.Cut(kind, ";"); !strings.EqualFold(strings.TrimSpace(media), "application/json") {
			return NewProblem(http.StatusUnsupportedMediaType, "malformed", "the body must be application/json, not %s", wire.Printable(kind, 100))
		}
	}
	raw, err := io.ReadAll(http.MaxBytesReader(r.w, r.Body, MaxBody))
	if err != nil {
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			return err
		}
		return malformed("the body could not be read: %v", err)
	}
	r.raw = raw
	return nil
}

// object is the body as it came, which must be a JSON object.
func (r *request) object() (json.RawMessage, error) {
	if len(r.raw) == 0 {
		return nil, malformed("the request needs a body, a JSON object")
	}
	if err := wire.Strict(r.raw); err != nil {
		return nil, malformed("the body: %v", err)
	}
	if kind := wire.KindOf(r.raw); kind != "an object" {
		return nil, malformed("the body must be a JSON object, not %s", kind)
	}
	return r.raw, nil
}

// into reads the body. What is in it and not in v is an error.
func (r *request) into(v any) error {
	raw, err := r.object()
	if err != nil {
		return err
	}
	if err := jsonv2.Unmarshal(raw, v, jsonv2.RejectUnknownMembers(true)); err != nil {
		return malformed("the body: %s", readable(err))
	}
	return nil
}

// maybe is into for a body that may be missing.
func (r *request) maybe(v any) error {
	if len(r.raw) == 0 {
		return nil
	}
	return r.into(v)
}

// readable says what a reader of JSON has against a text, without its own words.
func readable(err error) string {
	var s *jsonv2.SemanticError
	if !errors.As(err, &s) {
		return wire.Printable(err.Error(), 300)
	}
	where := string(s.JSONPointer)
	switch {
	case errors.Is(s.Err, jsonv2.ErrUnknownName):
		parent, name := "", where
		if i := strings.LastIndex(where, "/"); i >= 0 {
			parent, name = where[:i], where[i+1:]
		}
		text := "unknown member " + strconv.Quote(wire.Printable(name, 100))
		if parent != "" {
			text += " in " + wire.Printable(parent, 100)
		}
		return text
	case where == "":
		where = "it"
	}
	if s.Err != nil {
		return wire.Printable(where+": "+s.Err.Error(), 300)
	}
	return wire.Printable(where+" must not be a "+kindNames[s.JSONKind], 300)
}

// kindNames are what people call the kinds of JSON values.
var kindNames = map[jsontext.Kind]string{
	jsontext.KindString: "string", jsontext.KindNumber: "number such as this", jsontext.KindBeginObject: "object",
	jsontext.KindBeginArray: "array", jsontext.KindNull: "null", jsontext.KindTrue: "boolean", jsontext.KindFalse: "boolean",
}

// takes refuses parameters that are not known, or are given twice.
func (r *request) takes(names ...string) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return malformed("the query cannot be read: %v", err)
	}
	for name, values := range query {
		if !slices.Contains(names, name) {
			if len(names) == 0 {
				return malformed("unknown parameter %q; there are none here", wire.Printable(name, 100))
			}
			return malformed("unknown parameter %q; they are %s", wire.Printable(name, 100), strings.Join(names, ", "))
		}
		if len(values) > 1 {
			return malformed("the parameter %s is given %d times", name, len(values))
		}
	}
	r.query = query
	return nil
}

func (r *request) flag(name string) (bool, error) {
	switch v := r.query.Get(name); v {
	case "":
		return false, nil
	case "true", "1":
		return true, nil
	case "false", "0":
		return false, nil
	default:
		return false, malformed("the parameter %s must be true or false, not %q", name, wire.Printable(v, 50))
	}
}

// number reads a parameter between bounds.
func (r *request) number(name string, otherwise, low, high int) (int, error) {
	v := r.query.Get(name)
	if v == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		return 0, malformed("the parameter %s must be a number from %d to %d, not %q", name, low, high, wire.Printable(v, 50))
	}
	return n, nil
}

// moment reads a time, or an age.
func (r *request) moment(name string, now time.Time) (time.Time, error) {
	v := r.query.Get(name)
	if v == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, v); err == nil {
		return t, nil
	}
	age := v
	if days, ok := strings.CutSuffix(v, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n >= 0 && n < 100_000 {
			age = strconv.Itoa(n*24) + "h"
		}
	}
	d, err := time.ParseDuration(age)
	if err != nil || d < 0 {
		return time.Time{}, malformed("the parameter %s is neither a time such as 2006-01-02T15:04:05Z nor an age such as 7d or 2h: %q", name, wire.Printable(v, 50))
	}
	return now.Add(-d), nil
}
