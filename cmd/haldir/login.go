package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cli/browser"
	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/upstream"
	"github.com/haldir-mcp/haldir/upstream/oauth"
)

// source finds the upstream that a person names, and what signs haldir in to it.
func (a *app) source(name string) (*oauth.Source, error) {
	if err := a.load(); err != nil {
		return nil, err
	}
	for _, c := range a.cfg.Upstreams {
		if c.Name != name {
			continue
		}
		u := a.upstream(c, a.resolver(), func() {})
		a.ups = append(a.ups, u)
		s, err := u.Auth()
		if errors.Is(err, upstream.ErrNoOAuth) {
			err = usage("%w; set: auth: {type: oauth}", err)
		}
		return s, err
	}
	return nil, a.noUpstream(name)
}

func (a *app) noUpstream(name string) error {
	var names []string
	for _, u := range a.cfg.Upstreams {
		names = append(names, u.Name)
	}
	return usage("there is no upstream %q in %s%s", name, a.place(), config.Suggest(name, names))
}

func upstreamLogin(a *app) *cobra.Command {
	var noBrowser bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "login NAME",
		Short: "Sign in to an upstream whose auth is of type oauth",
		Long: "login finds the authorization server of the upstream, opens the browser there and\n" +
			"waits for it to return. What is granted is kept with the other secrets; every\n" +
			"haldir that runs uses it from then on, and renews it.\n\n" +
			"Over SSH, open the address on your own machine and paste the one that the\n" +
			"browser is sent to, which begins with http://127.0.0.1, into the terminal.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.source(args[0])
			if err != nil {
				return err
			}
			l, err := s.Begin(cmd.Context(), true)
			if err != nil {
				return err
			}
			if l != nil {
				defer l.Close()
				if err := a.signIn(cmd.Context(), l, !noBrowser, wait); err != nil {
					return fmt.Errorf("sign in to upstream %q: %w", args[0], err)
				}
			}
			g, err := s.Granted()
			if err != nil {
				return err
			}
			a.say("signed in to upstream %s at %s", args[0], plain(g.Issuer, 200))
			if !g.Renews {
				a.say("haldir: hint: it was granted nothing to renew it by; it lasts until %s", when(g.Expires))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&noBrowser, "no-browser", false, "print the address and open nothing")
	durationVar(cmd.Flags(), &wait, "wait", 10*time.Minute, "how long to wait for the browser to return")
	return cmd
}

// signIn shows a person where to sign in and waits for the answer.
func (a *app) signIn(ctx context.Context, l *oauth.Login, open bool, wait time.Duration) error {
	a.say("sign in at %s:\n\n  %s\n", plain(l.Issuer(), 200), plain(l.URL, 0))
	if open {
		browser.Stdout, browser.Stderr = a.err, a.err
		if err := browser.OpenURL(l.URL); err != nil {
			a.say("haldir: the browser could not be opened (%v); open the address yourself", err)
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, wait, fmt.Errorf("the browser has not returned within %v", wait))
	defer cancel()
	if terminal(a.in) != nil {
		a.say("waiting for the browser; if it is on another machine, paste the address that it is sent to here")
		go a.pasted(l) // not waited for: a read from a terminal cannot be interrupted
	}
	return l.Wait(ctx)
}

func (a *app) pasted(l *oauth.Login) {
	lines := bufio.NewScanner(a.in)
	for lines.Scan() {
		if lines.Text() == "" {
			continue
		}
		err := l.Answer(lines.Text())
		if err == nil {
			return
		}
		a.say("haldir: %v", err)
	}
}

func upstreamLogout(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "logout NAME",
		Short: "Forget what an upstream has granted, and have it revoked",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.source(args[0])
			if err != nil {
				return err
			}
			was, told, err := s.Logout(cmd.Context())
			switch {
			case err != nil:
				return err
			case !was:
				a.say("nobody was signed in to upstream %s", args[0])
			case told:
				a.say("signed out of upstream %s; the authorization server has revoked what it had granted", args[0])
			default:
				a.say("signed out of upstream %s; the authorization server could not be asked to revoke what it had granted, which runs out by itself", args[0])
			}
			return nil
		},
	}
}
