package upstream_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/upstream"
)

// References in a url are resolved where it is used.
func TestAURLMayReferToTheEnvironment(t *testing.T) {
	srv := mcptest.Script{}.NewHTTP(t)
	cfg := srv.Upstream("up")
	t.Setenv("HALDIR_TEST_ADDRESS", strings.TrimPrefix(cfg.URL, "http://"))
	cfg.URL = "http://${env:HALDIR_TEST_ADDRESS}"
	if r := start(t, cfg); r.Status().State != upstream.StateReady {
		t.Errorf("%+v", r.Status())
	}
}

// What goes wrong with a url is told without the url: its query may be a key.
func TestNoErrorShowsAURL(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	t.Setenv("HALDIR_TEST_KEY", "KEY-OF-THE-ENVIRONMENT")
	r := start(t, config.Upstream{Name: "up", URL: "http://" + addr + "/mcp/literal-key?k=${env:HALDIR_TEST_KEY}", Connect: time.Second})
	_, err = r.call(soon(t), "echo", "{}")
	for _, text := range []string{r.Status().Err.Error(), err.Error()} {
		if !strings.Contains(text, addr) || strings.Contains(text, "KEY-OF") || strings.Contains(text, "literal-key") {
			t.Errorf("it says: %s", text)
		}
	}
}
