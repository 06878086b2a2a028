package policy

import (
	"fmt"
	"reflect"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// object is a JSON object as conditions see it: a map whose order is that of
// the text, so that the same arguments give the same answer. It implements
// [traits.Mapper].
type object struct {
	of      *arguments
	members []member
	// index finds the members of an object of many by key and by folded key;
	// nil before the first search.
	index, folded map[string]int
}

// find returns the place of a key as the function find does.
func (o *object) find(key string) (int, error) {
	if len(o.members) <= fewMembers {
		return find(o.members, key)
	}
	if o.index == nil {
		o.index, o.folded = make(map[string]int, len(o.members)), make(map[string]int, len(o.members))
		for i, m := range o.members {
			o.index[m.key], o.folded[fold(m.key)] = i, i
		}
	}
	if i, ok := o.index[key]; ok {
		return i, nil
	}
	if _, ok := o.folded[fold(key)]; ok {
		return -1, errCase
	}
	return -1, nil
}

func (o *object) at(i int) ref.Val {
	m := &o.members[i]
	if m.seen == nil {
		m.seen = o.of.read(m.value)
	}
	return o.of.noted(m.seen)
}

// size returns how many bytes the members take.
func (o *object) size() int {
	n := 0
	for _, m := range o.members {
		n += len(m.value)
	}
	return n
}

// Find implements [traits.Mapper].
func (o *object) Find(key ref.Val) (ref.Val, bool) {
	name, ok := key.(types.String)
	if !ok {
		return nil, false
	}
	i, err := o.find(string(name))
	if err != nil {
		return o.of.fail(err), false
	}
	if i < 0 {
		return nil, false
	}
	return o.at(i), true
}

// FindStringKey is the short way that cel-go takes to a member by a fixed name. What
// is not found goes the long way, by Find.
func (o *object) FindStringKey(name string) (any, bool) {
	i, err := o.find(name)
	if err != nil || i < 0 {
		return nil, false
	}
	v := o.at(i)
	return v, !types.IsError(v)
}

// Get implements [traits.Indexer].
func (o *object) Get(key ref.Val) ref.Val {
	v, ok := o.Find(key)
	if !ok && v == nil {
		return types.ValOrErr(key, "no such key: %v", key)
	}
	return v
}

// Contains implements [traits.Container].
func (o *object) Contains(key ref.Val) ref.Val {
	_, ok := o.Find(key)
	return types.Bool(ok)
}

// Size implements [traits.Sizer].
func (o *object) Size() ref.Val { return types.Int(len(o.members)) }

// Iterator implements [traits.Iterable].
func (o *object) Iterator() traits.Iterator {
	keys := make([]string, len(o.members))
	for i, m := range o.members {
		keys[i] = m.key
	}
	return types.NewStringList(types.DefaultTypeAdapter, keys).Iterator()
}

// Equal implements [ref.Val].
func (o *object) Equal(other ref.Val) ref.Val {
	m, ok := other.(traits.Mapper)
	if !ok {
		return types.False
	}
	size := m.Size()
	if types.IsUnknownOrError(size) {
		return size
	}
	if size.Equal(types.Int(len(o.members))) != types.True {
		return types.False
	}
	for i, own := range o.members {
		v, found := m.Find(types.String(own.key))
		if !found {
			return o.of.doubt(own.key, m)
		}
		if eq := types.Equal(o.at(i), v); eq != types.True {
			return eq
		}
	}
	return types.True
}

// doubt returns what a comparison with m comes to, which lacks a key: false, and
// undecided if m has it in another case, as it is from the other side.
func (a *arguments) doubt(key string, m traits.Mapper) ref.Val {
	for it := m.Iterator(); it.HasNext() == types.True; {
		if other, ok := it.Next().(types.String); ok && fold(string(other)) == fold(key) {
			return a.fail(errCase)
		}
	}
	return types.False
}

// Type implements [ref.Val].
func (*object) Type() ref.Type { return types.MapType }

// ConvertToType implements [ref.Val].
func (o *object) ConvertToType(t ref.Type) ref.Val {
	switch t {
	case types.MapType:
		return o
	case types.TypeType:
		return types.MapType
	}
	return types.NewErr("type conversion error from map to %s", t)
}

// ConvertToNative implements [ref.Val]; no condition needs it.
func (*object) ConvertToNative(t reflect.Type) (any, error) {
	return nil, fmt.Errorf("no conversion of a JSON object to %v", t)
}

// Value implements [ref.Val].
func (o *object) Value() any { return o }
