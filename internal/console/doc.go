// Package console is haldir's listener: the page for people and the REST API, on
// loopback only. It decides who may ask: a program with a key, or a person whose browser
// has opened the one-time link that `haldir console` prints.
//
// # What keeps others out
//
// Any page that a browser shows can send requests to loopback, and so can any program of
// any user of the machine. So every request must name this listener as its Host (a name
// that is made to lead to loopback does not), an Origin must be this one, and what the
// browser says of where a request comes from must be here. There is no CORS: no other
// origin reads anything. A cookie alone does nothing: what changes something by it must
// bring the Origin.
package console
