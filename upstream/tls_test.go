package upstream_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/upstream"
)

// authority issues certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	a.cert, a.key, a.pem = a.issue(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a *authority) issue(c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey, []byte) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, c.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: "test"}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func (a *authority) file(name string, raw []byte) string {
	a.t.Helper()
	path := filepath.Join(a.t.TempDir(), name)
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

func keyPEM(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func TestCertificates(t *testing.T) {
	a := newAuthority(t)
	serverCert, serverKey, _ := a.issue(&x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	_, clientKey, clientPEM := a.issue(&x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)

	plain := mcptest.Script{Tools: mcptest.Tools(mcptest.Tool("echo"))}.NewHTTP(t)
	behind, err := url.Parse(plain.URL)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(httputil.NewSingleHostReverseProxy(behind))
	srv.TLS = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{serverCert.Raw}, PrivateKey: serverKey}}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
	}
	srv.StartTLS()
	defer srv.Close()
	ca, cert, key := a.file("ca.pem", a.pem), a.file("me.pem", clientPEM), a.file("me.key", keyPEM(t, clientKey))
	for name, tt := range map[string]struct {
		ca, cert, key string
		fails         string
	}{
		"all of it":              {ca, cert, key, ""},
		"an unknown authority":   {"", cert, key, "unknown authority"},
		"no certificate of ours": {ca, "", "", "certificate required"},
		"no such file":           {"/does/not/exist", "", "", "tls.ca_file"},
		"no certificate in it":   {key, "", "", "holds no certificate"},
		"the wrong key":          {ca, cert, ca, "tls.cert_file"},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, config.Upstream{Name: "up", URL: srv.URL + "/mcp", Connect: patience, CAFile: tt.ca, CertFile: tt.cert, KeyFile: tt.key})
			s := r.Status()
			switch {
			case tt.fails == "" && s.State != upstream.StateReady:
				t.Errorf("%+v", s)
			case tt.fails != "" && (s.Err == nil || !strings.Contains(s.Err.Error(), tt.fails)):
				t.Errorf("%+v, want an error that says %q", s, tt.fails)
			}
		})
	}
}
