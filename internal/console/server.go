package console

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/haldir-mcp/haldir/internal/console/api"
	"github.com/haldir-mcp/haldir/internal/ledger"
)

// Keys tells who has which key.
type Keys interface {
	Authenticate(ctx context.Context, secret string) (ledger.Key, error)
}

// Options configure [New].
type Options struct {
	API   *api.API
	Keys  Keys
	Page  fs.FS // what the page is made of
	Clock func() time.Time
	Log   zerolog.Logger
	// Patience is how long a client may take to send a request; 0 means 15 s.
	Patience time.Duration
}

// Server is the listener. Make it with [New]; its methods are safe for concurrent use,
// but Serve is called once.
type Server struct {
	o      Options
	lines  []net.Listener
	port   string
	people people
	paces  paces
	fails  *rate.Limiter // of requests without a good key or link
	files  map[string]file
}

// Times and sizes of the listener. A body has a limit of its own, [api.MaxBody].
const (
	bodyTime   = 15 * time.Second // with the header
	idleTime   = 2 * time.Minute
	headerSize = 32 << 10
	endGrace   = 3 * time.Second
)

// New makes a server. It does not listen yet.
func New(o Options) (*Server, error) {
	files, err := readFiles(o.Page)
	if err != nil {
		return nil, err
	}
	return &Server{o: o, files: files, people: people{clock: o.Clock}, fails: rate.NewLimiter(failEach, failBurst)}, nil
}

// Listen takes a port on 127.0.0.1, and on ::1 where the machine has that; 0 takes any.
func (s *Server) Listen(ctx context.Context, port int) error {
	var c net.ListenConfig
	first, err := c.Listen(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return fmt.Errorf("listen: %w; another port is taken by --port", err)
	}
	_, s.port, err = net.SplitHostPort(first.Addr().String())
	if err != nil {
		return errors.Join(err, first.Close())
	}
	s.lines = []net.Listener{first}
	if second, err := c.Listen(ctx, "tcp6", net.JoinHostPort("::1", s.port)); err == nil {
		s.lines = append(s.lines, second)
	} else {
		s.o.Log.Debug().Err(err).Msg("the page is on 127.0.0.1 only")
	}
	return nil
}

// URL is where the server is, without a slash at its end.
func (s *Server) URL() string { return "http://127.0.0.1:" + s.port }

// Link makes a link that signs a browser in, once and soon.
func (s *Server) Link() string { return s.URL() + "/console/#token=" + s.people.invite() }

// Serve answers requests until ctx ends. Those under way have a moment to finish.
func (s *Server) Serve(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	patience := cmp.Or(s.o.Patience, bodyTime)
	server := &http.Server{
		Handler: s.Handler(), ReadHeaderTimeout: patience / 3, ReadTimeout: patience, IdleTimeout: idleTime, MaxHeaderBytes: headerSize,
		BaseContext:                  func(net.Listener) context.Context { return api.WithLife(work) },
		ErrorLog:                     nil,
		DisableGeneralOptionsHandler: true,
	}
	server.ErrorLog = quiet(s.o.Log)
	ends := make(chan error, len(s.lines))
	for _, l := range s.lines {
		go func() { ends <- server.Serve(l) }()
	}
	var err error
	left := len(s.lines)
	select {
	case <-ctx.Done():
	case err = <-ends:
		left--
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), endGrace)
	defer cancel()
	soon := time.AfterFunc(endGrace/3, stop) // streams and calls do not end by themselves
	defer soon.Stop()
	if late := server.Shutdown(end); late != nil {
		stop()
		_ = server.Close() // what is left has had its time
	}
	for range left {
		if late := <-ends; !errors.Is(late, http.ErrServerClosed) {
			s.o.Log.Warn().Err(late).Msg("the end of a listener")
		}
	}
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}
