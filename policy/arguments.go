package policy

import (
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// arguments reads the arguments of a call no deeper than a rule looks, and
// nothing twice: a decision has microseconds, and most rules look at one field.
type arguments struct {
	bytes   json.RawMessage
	opened  bool
	parts   int // members and elements that were read
	members []member
	err     error              // why the whole cannot be read
	top     object             // the whole as a condition sees it
	few     [fewMembers]member // room for the first of them
	used    int                // of few
	// unreadable is why a value that a condition has looked at means different
	// things to different readers. cel-go compares and searches past errors in
	// nested values, so it is kept here and asked for after the evaluation.
	unreadable error
}

// maxParts bounds how many members and elements conditions look into: the
// decision is made while every other window waits for the ledger.
const maxParts = 200_000

// open returns the members of the arguments; no arguments have none.
func (a *arguments) open() ([]member, error) {
	if !a.opened {
		a.opened = true
		if len(a.bytes) > 0 {
			a.members, a.err = a.split(trim(raw(a.bytes)))
			if a.parts = len(a.members); a.parts > maxParts {
				a.err = errMany
			}
		}
	}
	return a.members, a.err
}

// split returns the members of r, in a.few if they all have room there.
func (a *arguments) split(r raw) ([]member, error) {
	room := a.few[a.used:a.used]
	members, err := r.members(room)
	if len(members) <= cap(room) {
		a.used += len(members)
	}
	return slices.Clip(members), err
}

// value returns what a condition sees as args.
func (a *arguments) value() ref.Val {
	members, err := a.open()
	if err != nil {
		return a.fail(err)
	}
	if a.top.of == nil {
		a.top = object{of: a, members: members}
	}
	return &a.top
}

// fail notes that a condition has looked at something unreadable. Of several
// reasons the first in alphabetical order is kept, since the order in which
// cel-go looks is not always the same.
func (a *arguments) fail(err error) ref.Val {
	if a.unreadable == nil || err.Error() < a.unreadable.Error() {
		a.unreadable = err
	}
	return types.WrapErr(err)
}

// noted notes an unreadable value again, for each condition that looks at it.
func (a *arguments) noted(v ref.Val) ref.Val {
	if err, ok := v.(*types.Err); ok {
		return a.fail(err.Unwrap())
	}
	return v
}

// amount returns the text of the number or decimal string at p.
func (a *arguments) amount(p pointer) (string, error) {
	members, err := a.open()
	if err != nil {
		return "", err
	}
	if len(p) == 0 {
		return raw("{").amountText()
	}
	return pick(members, p)
}

// read turns JSON into the value that a condition sees: integers exactly, as
// int or uint, other numbers as double. An object is read one level deep, a list
// as a whole, so an unreadable element makes all of its list unreadable.
func (a *arguments) read(r raw) ref.Val {
	switch r.first() {
	case '{':
		members, err := a.split(r)
		if a.parts += len(members); a.parts > maxParts {
			err = errMany
		}
		if err != nil {
			return a.fail(err)
		}
		return &object{of: a, members: members}
	case '[':
		elements, err := r.elements()
		if a.parts += len(elements); a.parts > maxParts {
			err = errMany
		}
		if err != nil {
			return a.fail(err)
		}
		list := make([]ref.Val, len(elements))
		for i, e := range elements {
			if list[i] = a.read(e); types.IsError(list[i]) {
				return list[i]
			}
		}
		return types.NewRefValList(types.DefaultTypeAdapter, list)
	case '"':
		s, err := r.string()
		if err != nil {
			return a.fail(err)
		}
		return types.String(s)
	}
	switch r {
	case "true":
		return types.True
	case "false":
		return types.False
	case "null":
		return types.NullValue
	}
	v, err := number(string(r))
	if err != nil {
		return a.fail(err)
	}
	return v
}

// number reads a JSON number: an integer exactly, or not at all.
func number(text string) (ref.Val, error) {
	if !jsonNumber(text) {
		return nil, errJSON
	}
	if !strings.ContainsAny(text, ".eE") {
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			return types.Int(n), nil
		}
		if n, err := strconv.ParseUint(text, 10, 64); err == nil {
			return types.Uint(n), nil
		}
		return nil, errors.New("a number in them is too large")
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsInf(f, 0) {
		return nil, errors.New("a number in them is too large")
	}
	return types.Double(f), nil
}
