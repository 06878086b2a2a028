package proxy

import (
	"errors"
	"io"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// Refuse serves a host when haldir cannot start, such as for a config that does
// not load: it answers every request, initialize first of all, with reason.
// Hosts show that message; what a server writes to stderr before it exits they
// hide. It returns when in ends.
func Refuse(in io.Reader, out io.Writer, reason error) error {
	lines, w := wire.NewLineReader(in, 0), wire.NewLineWriter(out)
	for {
		line, err := lines.Next()
		if _, large := errors.AsType[*wire.TooLargeError](err); large {
			continue
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		m, err := wire.ParseStrict(line)
		answer := wire.Failure(&wire.Error{Code: wire.CodeInternal, Message: "haldir cannot start: " + reason.Error(), ID: m.ID})
		var bad *wire.Error
		switch {
		case errors.As(err, &bad):
			answer = wire.Failure(bad)
		case !m.IsRequest():
			continue
		case m.Method == "server/discover": // go on to initialize, whose error is shown
			answer = wire.Failure(&wire.Error{Code: wire.CodeMethodNotFound, Message: "Method not found: " + m.Method, ID: m.ID})
		}
		if err := w.Write(answer); err != nil {
			return err
		}
	}
}
