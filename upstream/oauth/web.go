package oauth

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func loopback(host string) bool {
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return strings.EqualFold(host, "localhost") || err == nil && ip.Unmap().IsLoopback()
}

// NewWeb returns the client for the servers that an upstream names: the metadata of
// a public upstream must not lead haldir into the networks around this machine (MCP
// security best practices, SSRF). The address that is dialled is checked, whatever a
// name has been resolved to before. An upstream on this machine or in a private
// network may name others there. What goes through a proxy is the proxy's to check.
//
// base is the transport to the upstream, whose url is server. From then on it notes
// where that is.
func NewWeb(base *http.Transport, server string) *Web {
	w := &Web{}
	w.inside.Store(near(server))
	dial := base.DialContext
	if dial == nil {
		dial = (&net.Dialer{Timeout: patience, KeepAlive: keepAlive}).DialContext
	}
	own := addressOf(server)
	base.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err == nil && address == own { // not that of a proxy
			at, err := netip.ParseAddrPort(c.RemoteAddr().String())
			w.inside.Store(err == nil && inside(at.Addr()))
		}
		return c, err
	}
	t := base.Clone()
	if t.TLSClientConfig != nil {
		t.TLSClientConfig.Certificates = nil // haldir's own is for the upstream
	}
	var proxies sync.Map
	if choose := base.Proxy; choose != nil {
		t.Proxy = func(req *http.Request) (*url.URL, error) {
			u, err := choose(req)
			if err == nil && u != nil {
				proxies.Store(addressOf(u.String()), true)
			}
			return u, err
		}
	}
	free := &net.Dialer{Timeout: patience, KeepAlive: keepAlive}
	bound := &net.Dialer{Timeout: patience, KeepAlive: keepAlive, Control: onlyPublic}
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if _, proxy := proxies.Load(address); proxy || w.inside.Load() {
			return free.DialContext(ctx, network, address)
		}
		return bound.DialContext(ctx, network, address)
	}
	w.client = &http.Client{Transport: t, Timeout: patience, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		switch {
		case len(via) > 5:
			return errors.New("too many redirects")
		case via[0].Method != http.MethodGet:
			return http.ErrUseLastResponse // what was posted holds secrets
		case !safe(req.URL):
			return fmt.Errorf("redirected to %s, which is no https URL", req.URL.Redacted())
		}
		return nil
	}}
	return w
}

// Web reaches the servers that an upstream names. Make it with [NewWeb].
type Web struct {
	client *http.Client
	inside atomic.Bool // the upstream is on this machine or in a private network
}

// near reports whether a url names such an address outright.
func near(server string) bool {
	u, err := url.Parse(server)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return loopback(u.Hostname()) || err == nil && inside(ip)
}

// addressOf is what is dialled for a url: its host and port.
func addressOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// inside reports an address that is certainly on this machine or in a private network.
// What may stand for another, as a translated one does, is neither inside nor outside.
func inside(ip netip.Addr) bool {
	ip = ip.Unmap()
	return ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() || netip.MustParsePrefix("100.64.0.0/10").Contains(ip)
}

const keepAlive = 30 * time.Second

// onlyPublic refuses addresses that are not on the public internet.
func onlyPublic(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if !outside(at.Addr()) {
		return fmt.Errorf("%s is no address on the public internet, to which a public upstream may lead", at.Addr())
	}
	return nil
}

// reserved are networks that are global by their form alone (IANA special-purpose
// registries), and those that may stand for any other (RFC 6052, RFC 3056).
var reserved = []netip.Prefix{
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("::/96"), netip.MustParsePrefix("::ffff:0:0:0/96"), netip.MustParsePrefix("fec0::/10"),
	netip.MustParsePrefix("2001::/32"),
}

func outside(ip netip.Addr) bool {
	ip = ip.Unmap()
	if !ip.IsGlobalUnicast() || ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() {
		return false
	}
	for _, p := range reserved {
		if p.Contains(ip) {
			return false
		}
	}
	return true
}
