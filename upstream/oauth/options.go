package oauth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/wire"
)

// Options say for which upstream, and how.
type Options struct {
	Upstream string // its name
	Server   string // its url, resolved
	Config   config.OAuth
	// Resolve replaces the references in the client's secret.
	Resolve func(string) (string, error)
	Store   Store
	Dir     string              // where the locks are; of all processes that share the store
	Client  *http.Client        // reaches the upstream
	Web     *Web                // reaches the servers that it names
	Secret  func(string) string // notes what must not be shown
	Program string              // how a person runs haldir, as far as to the verb
	Now     func() time.Time
}

func (o *Options) secret(v string) {
	if o.Secret != nil {
		o.Secret(v)
	}
}

// command is what a person runs to sign in.
func (o *Options) command() string { return o.Program + " upstream login " + o.Upstream }

// SignInError says that nobody is signed in to an upstream, or not for what was asked
// for. It wraps [wire.ErrNotSent] if the request was not sent, and
// [wire.ErrOutcomeUnknown] if the server has refused it: that is what it says.
type SignInError struct {
	Why     string
	Command string // what a person runs
	Sent    bool
}

func (e *SignInError) Error() string {
	return fmt.Sprintf("it %s; sign in with: %s", e.Why, e.Command)
}

// Unwrap returns what is known of the request.
func (e *SignInError) Unwrap() error {
	if e.Sent {
		return wire.ErrOutcomeUnknown
	}
	return wire.ErrNotSent
}

// sent says of an error that the request it is about has reached the server.
func sent(err error) error {
	if e, ok := errors.AsType[*SignInError](err); ok {
		e.Sent = true
	}
	return err
}

func (o *Options) needs(why string) error {
	return &SignInError{Why: why, Command: o.command()}
}

// IsSignIn reports whether an error asks a person to sign in.
func IsSignIn(err error) bool {
	_, ok := errors.AsType[*SignInError](err)
	return ok
}

// patience bounds one exchange with an authorization server.
const patience = 30 * time.Second

func (o *Options) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, patience, fmt.Errorf("the authorization server has not answered within %v", patience))
}
