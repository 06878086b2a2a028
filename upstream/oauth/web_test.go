package oauth

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/secret"
)

func TestWhatIsOnThePublicInternet(t *testing.T) {
	for text, want := range map[string]bool{
		"93.184.216.34": true, "2606:2800:220:1:248:1893:25c8:1946": true, "8.8.8.8": true,
		"127.0.0.1": false, "127.9.9.9": false, "::1": false, "10.1.2.3": false, "172.16.0.1": false, "192.168.1.1": false, "169.254.169.254": false,
		"fe80::1": false, "fd00:ec2::254": false, "::ffff:10.0.0.1": false, "::ffff:127.0.0.1": false, "::ffff:169.254.169.254": false, "0.0.0.0": false, "::": false,
		"0.1.2.3": false, "100.64.0.1": false, "198.18.0.1": false, "240.0.0.1": false, "255.255.255.255": false, "224.0.0.1": false, "ff02::1": false,
		"64:ff9b::a00:1": false, "64:ff9b::7f00:1": false, "2002:7f00:1::": false, "192.0.0.8": false,
	} {
		if got := outside(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

// elsewhere is a connection whose other end claims to be on the public internet.
type elsewhere struct{ net.Conn }

func (elsewhere) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort("93.184.216.34:443"))
}

// TestAPublicUpstreamLeadsNowhereInside has a public server name metadata on this
// machine, directly and by redirects; nobody there may be asked.
func TestAPublicUpstreamLeadsNowhereInside(t *testing.T) {
	var asked atomic.Int32
	inside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusNotFound)
	}))
	defer inside.Close()
	for name, metadata := range map[string]string{
		"directly": inside.URL + "/metadata", "by name": strings.Replace(inside.URL, "127.0.0.1", "localhost", 1) + "/metadata",
	} {
		t.Run(name, func(t *testing.T) {
			public := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if strings.HasPrefix(req.URL.Path, "/.well-known/") {
					http.Redirect(w, req, inside.URL+"/redirected", http.StatusFound)
					return
				}
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer resource_metadata=%q`, metadata))
				w.WriteHeader(http.StatusUnauthorized)
			}))
			defer public.Close()
			at := public.Listener.Addr().String()
			base := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				c, err := (&net.Dialer{}).DialContext(ctx, network, at)
				return elsewhere{c}, err
			}}
			server := "http://public.example/mcp"
			dir := t.TempDir()
			s := NewSource(Options{
				Upstream: "up", Server: server, Config: config.OAuth{}, Resolve: func(v string) (string, error) { return v, nil }, Store: secret.New(dir, nil), Dir: dir,
				Client: NewClient(base), Web: NewWeb(base, server), Now: time.Now,
			})
			defer s.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			l, err := s.Begin(ctx, true)
			if err == nil {
				l.Close()
				t.Error("a sign-in has begun")
			}
			if n := asked.Load(); n != 0 {
				t.Errorf("a server inside was asked %d times", n)
			}
		})
	}
}

// TestWhatIsPostedIsNotRedirected: it holds secrets.
func TestWhatIsPostedIsNotRedirected(t *testing.T) {
	var asked atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer other.Close()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		status, err := strconv.Atoi(strings.TrimPrefix(req.URL.Path, "/"))
		if err != nil {
			status = http.StatusTemporaryRedirect
		}
		http.Redirect(w, req, other.URL, status)
	}))
	defer srv.Close()
	base := &http.Transport{DisableKeepAlives: true}
	w := NewWeb(base, srv.URL)
	var resp *http.Response
	for _, status := range []string{"/301", "/302", "/303", "/307", "/308"} {
		var err error
		resp, err = w.client.Post(srv.URL+status, "application/x-www-form-urlencoded", strings.NewReader("refresh_token=secret"))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if asked.Load() != 0 {
			t.Errorf("%s was followed", status)
		}
	}
	// And a redirect of the upstream stays where it is.
	c := NewClient(base)
	req, _ := http.NewRequest(http.MethodPost, srv.URL, strings.NewReader("{}"))
	req.Header.Set("Authorization", "Bearer secret")
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if asked.Load() != 0 || resp.StatusCode != http.StatusTemporaryRedirect {
		t.Error("the upstream's redirect was followed")
	}
}

// TestAProxyDoesNotOpenWhatIsInside has a public upstream be reached through a proxy on
// this machine, whose address says nothing of where the upstream is.
func TestAProxyDoesNotOpenWhatIsInside(t *testing.T) {
	var asked atomic.Int32
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer inside.Close()
	var proxied atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		proxied.Add(1)
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer resource_metadata=%q`, inside.URL+"/metadata"))
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer proxy.Close()
	at, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	base := &http.Transport{DisableKeepAlives: true, Proxy: func(req *http.Request) (*url.URL, error) {
		if loopback(req.URL.Hostname()) { // as that of the environment
			return nil, nil
		}
		return at, nil
	}}
	server, dir := "http://public.example/mcp", t.TempDir()
	s := NewSource(Options{
		Upstream: "up", Server: server, Resolve: func(v string) (string, error) { return v, nil }, Store: secret.New(dir, nil), Dir: dir,
		Client: NewClient(base), Web: NewWeb(base, server), Now: time.Now,
	})
	defer s.Close()
	if l, err := s.Begin(t.Context(), true); err == nil {
		l.Close()
		t.Error("a sign-in has begun")
	}
	if asked.Load() != 0 || proxied.Load() < 1 {
		t.Errorf("inside was asked %d times, by the proxy %d times", asked.Load(), proxied.Load())
	}
}

func TestATranslatedAddressOpensNothing(t *testing.T) {
	for text, want := range map[string]bool{
		"10.0.0.1": true, "127.0.0.1": true, "::ffff:10.0.0.1": true, "fd00::1": true, "100.64.0.1": true, "169.254.1.1": true,
		"64:ff9b::808:808": false, "2002:808:808::": false, "8.8.8.8": false, "2001:0:808:808::": false,
	} {
		if got := inside(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestWhoseMetadataTheyAre(t *testing.T) {
	for resource, want := range map[string]bool{
		"https://a.example/x/mcp": true, "https://a.example/x/mcp/": true, "https://a.example/x": true, "https://a.example": true, "https://a.example/": true,
		"https://A.example/x/mcp": true, "https://a.example:443/x/mcp": true,
		"http://a.example/x/mcp": false, "https://a.example:444/x/mcp": false, "https://b.example/x/mcp": false, "https://a.example.evil.example/x/mcp": false,
		"https://a.example/x/mc": false, "https://a.example/x/mcp/more": false, "https://a.example/y": false, "https://a.example/x/mcp#f": false,
		"https://a.example/x/mcp?q": false, "": false, "mcp": false, "https://a.example@evil.example/x/mcp": false, "https://evil.example/https://a.example/x/mcp": false,
		"https://a.example/x/%2e%2e/": false,
	} {
		u, err := url.Parse("https://a.example/x/mcp")
		if err != nil {
			t.Fatal(err)
		}
		if got := covers(resource, u); got != want {
			t.Errorf("%q: %v", resource, got)
		}
	}
}
