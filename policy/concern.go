package policy

import (
	"slices"
	"sync"
)

// concern is what of an engine can concern the calls of one tool in one session,
// conditions aside.
type concern struct {
	price    *cost        // nil: such calls are free
	rules    []int        // places in the engine's rules, in order
	counters []CounterKey // that a decision may read
	loops    []int        // the rules among them that look at arguments to find a loop
	spend    CounterKey   // what the session has spent on the tool
}

type subject struct {
	kind                           Kind
	session, agent, upstream, tool string
}

// concerns remembers for an engine what it has found out about the tools that are
// called, since matching every pattern takes longer than all the rest of a simple
// decision.
type concerns struct {
	mu sync.RWMutex
	of map[subject]*concern
}

// maxConcerns bounds them: a host can make up names.
const maxConcerns = 1024

func (e *Engine) concern(c *Call) *concern {
	if c.Kind == KindResource {
		return e.concerning(c) // there are URIs without end
	}
	key := subject{c.Kind, c.Session, c.Agent, c.Upstream, c.Tool}
	e.concerns.mu.RLock()
	found := e.concerns.of[key]
	e.concerns.mu.RUnlock()
	if found != nil {
		return found
	}
	found = e.concerning(c)
	e.concerns.mu.Lock()
	defer e.concerns.mu.Unlock()
	if e.concerns.of == nil || len(e.concerns.of) >= maxConcerns {
		e.concerns.of = map[subject]*concern{}
	}
	e.concerns.of[key] = found
	return found
}

func (e *Engine) concerning(c *Call) *concern {
	found := &concern{
		price: e.costOf(c), counters: []CounterKey{{CounterSessionSpend, c.Session}},
		spend: CounterKey{CounterToolSpend, ToolSpendOf(c.Session, c.ID())},
	}
	for i := range e.rules {
		r := &e.rules[i]
		if !r.narrowed(c) {
			continue
		}
		found.rules = append(found.rules, i)
		switch {
		case r.kind == TypeLoop:
			if !r.shared {
				found.loops = append(found.loops, i)
			}
		case r.counter != "" && !r.shared:
			found.counters = append(found.counters, r.key(c))
		}
	}
	found.counters = slices.Clip(found.counters)
	return found
}
