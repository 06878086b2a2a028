package oauth

import (
	"errors"
	"io"
	"net/http"
)

// Transport sends requests with the access token of a [Source] (RFC 6750). To a 401
// it answers once with another token, if there is one; what only a person can help
// with is a [*SignInError].
type Transport struct {
	Base   http.RoundTripper
	Source *Source
}

// RoundTrip implements [http.RoundTripper].
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	stale := ""
	for again := true; ; again = false {
		token, err := t.Source.Token(req.Context(), stale)
		if err != nil {
			if req.Body != nil {
				_ = req.Body.Close() // as a RoundTripper must
			}
			if stale != "" {
				err = sent(err)
			}
			return nil, err
		}
		resp, err := t.send(req, token, !again)
		if err != nil {
			return nil, err
		}
		switch {
		case resp.StatusCode == http.StatusUnauthorized && token == "":
			drop(resp)
			return nil, sent(t.Source.o.needs("asks haldir to sign in"))
		case resp.StatusCode == http.StatusUnauthorized && again && (req.Body == nil || req.GetBody != nil):
			drop(resp)
			stale = token
		case resp.StatusCode == http.StatusUnauthorized:
			drop(resp)
			return nil, sent(t.Source.o.needs("refuses the token that haldir was granted"))
		case resp.StatusCode == http.StatusForbidden && readChallenge(resp.Header).code == "insufficient_scope":
			c := readChallenge(resp.Header)
			drop(resp)
			return nil, sent(t.Source.want(c.scopes))
		default:
			return resp, nil
		}
	}
}

func (t *Transport) send(req *http.Request, token string, again bool) (*http.Response, error) {
	out := req.Clone(req.Context())
	if again && req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			return nil, errors.Join(err, req.Body.Close())
		}
		out.Body = body
	}
	if token != "" {
		out.Header.Set("Authorization", "Bearer "+token)
	}
	return t.Base.RoundTrip(out)
}

// CloseIdleConnections does so for the transport below.
func (t *Transport) CloseIdleConnections() {
	if c, ok := t.Base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// drop reads a short body to its end, so that the connection can be used again.
func drop(resp *http.Response) {
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10))
	_ = resp.Body.Close()
}
