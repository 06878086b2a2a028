package policy

import "fmt"

// ready is what is known of a call before its state is: the price, and the
// conditions that have been evaluated. A decision is made while every other
// window waits for the ledger; reading the arguments needs not be.
type ready struct {
	engine         *Engine
	session, agent string
	args           arguments
	activation     activation
	concern        *concern
	amount         Micros
	unpriced       error    // why the amount is not known
	answers        []answer // a rule each; nil unless prepared
	sum            string   // see digest; "" before anybody has asked
}

type answer struct {
	known, value bool
	err          error
}

// Prepare evaluates of c what needs no state, so that [Engine.Decide], which a
// ledger calls inside its transaction, takes microseconds whatever the arguments
// are. The decision is the same without. c.Session and c.Agent should be what
// they will be then; c.Arguments must not change any more. A prepared call is
// not safe for concurrent use.
func (e *Engine) Prepare(c *Call) {
	k := e.read(c)
	k.answers = make([]answer, len(e.rules))
	act := &k.activation
	*act = activation{call: *c, args: &k.args, cost: k.amount}
	for _, i := range k.concern.rules {
		if r := &e.rules[i]; r.asks(c) && !r.when.now {
			value, err := r.when.eval(act)
			k.answers[i] = answer{true, value, err}
		}
	}
	act.close()
	if len(k.concern.loops) > 0 {
		k.digest()
	}
	c.ready = k
}

// known returns what Prepare has found out about c, or reads it now.
func (e *Engine) known(c *Call) *ready {
	if c.ready != nil && c.ready.engine == e {
		return c.ready
	}
	return e.read(c)
}

func (e *Engine) read(c *Call) *ready {
	k := &ready{engine: e, session: c.Session, agent: c.Agent, args: arguments{bytes: c.Arguments}, concern: e.concern(c)}
	k.amount, k.unpriced = k.concern.price.of(&k.args)
	return k
}

// answer returns the value of the condition of rule i.
func (k *ready) answer(i int, when *condition, act *activation) (bool, error) {
	if k.answers != nil && k.answers[i].known && (!when.who || k.session == act.call.Session && k.agent == act.call.Agent) {
		return k.answers[i].value, k.answers[i].err
	}
	return when.eval(act)
}

// unit is what the amount in the arguments is counted in.
func (p *cost) unit() string {
	if p.Cents {
		return "cents"
	}
	return "dollars"
}

// of returns what a call with these arguments costs, 0 without a cost rule.
func (p *cost) of(args *arguments) (Micros, error) {
	switch {
	case p == nil:
		return 0, nil
	case !p.HasFromArgument:
		return p.USD, nil
	}
	text, err := args.amount(p.fromArgument)
	if err != nil {
		return 0, fmt.Errorf("argument %s: %w", p.FromArgument, err)
	}
	m, err := ParseUSD(text)
	if err != nil { // its words quote the value, which the audit may have to keep out
		return 0, fmt.Errorf("argument %s: must be a decimal number of %s from 0 to a billion", p.FromArgument, p.unit())
	}
	if p.Cents {
		m = m/100 + min(m%100, 1) // rounded up, as all amounts are
	}
	return m, nil
}
