package ledger_test

import (
	"bytes"
	"context"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
)

func createKey(t *testing.T, l *ledger.Ledger, terms ledger.KeyTerms, parent string) (ledger.Key, string) {
	t.Helper()
	k, secret, err := l.CreateKey(context.Background(), terms, parent)
	if err != nil {
		t.Fatal(err)
	}
	return k, secret
}

func TestOnlyTheHashOfAKeyIsStored(t *testing.T) {
	dir := stateDir(t)
	l := quick(t, dir)
	seen := map[string]bool{}
	for range 50 {
		k, secret := createKey(t, l, ledger.KeyTerms{Name: "ci", Scopes: []string{"audit:read"}}, "")
		if !regexp.MustCompile(`^hld_[0-9A-Za-z]{43}$`).MatchString(secret) || seen[secret] {
			t.Fatalf("%q is no new key", secret)
		}
		seen[secret] = true
		got, err := l.Authenticate(context.Background(), secret)
		if err != nil || got.ID != k.ID || got.LastUsed.IsZero() {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	inspect(t, dir, func(tx *bolt.Tx) {
		err := tx.ForEach(func(_ []byte, b *bolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error {
				for secret := range seen {
					if bytes.Contains(k, []byte(secret[4:])) || bytes.Contains(v, []byte(secret[4:])) {
						t.Errorf("a key is in the file, under %q", k)
					}
				}
				return nil
			})
		})
		if err != nil {
			t.Error(err)
		}
	})
	for _, wrong := range []string{"", "hld_", strings.Repeat("0", 47), "hld_" + strings.Repeat("0", 43)} {
		if _, err := l.Authenticate(context.Background(), wrong); !errors.Is(err, ledger.ErrNoKey) {
			t.Errorf("%q: %v", wrong, err)
		}
	}
}

func TestAKeyEnds(t *testing.T) {
	clock := newClock()
	l := open(t, ledger.Options{Dir: stateDir(t), NoSync: true, Clock: clock.now})
	ctx := context.Background()
	parent, first := createKey(t, l, ledger.KeyTerms{Name: "parent"}, "")
	child, second := createKey(t, l, ledger.KeyTerms{Name: "child"}, parent.ID)
	_, third := createKey(t, l, ledger.KeyTerms{Name: "grandchild"}, child.ID)
	_, other := createKey(t, l, ledger.KeyTerms{Name: "other", ExpiresAt: clock.now().Add(time.Hour)}, "")
	if _, err := l.RevokeKey(ctx, "key_none"); !errors.Is(err, ledger.ErrNoKey) {
		t.Errorf("revoke what is not there: %v", err)
	}
	for range 2 { // twice changes nothing
		if k, err := l.RevokeKey(ctx, parent.ID); err != nil || !k.RevokedAt.Equal(clock.now()) {
			t.Fatalf("%+v, %v", k, err)
		}
	}
	for _, secret := range []string{first, second, third} {
		if _, err := l.Authenticate(ctx, secret); !errors.Is(err, ledger.ErrNoKey) {
			t.Errorf("a key that is revoked, or whose parent is, holds: %v", err)
		}
	}
	if _, _, err := l.CreateKey(ctx, ledger.KeyTerms{}, child.ID); !errors.Is(err, ledger.ErrNoKey) {
		t.Errorf("a revoked key makes another: %v", err)
	}
	if _, err := l.Authenticate(ctx, other); err != nil {
		t.Error(err)
	}
	clock.add(time.Hour)
	if _, err := l.Authenticate(ctx, other); !errors.Is(err, ledger.ErrNoKey) {
		t.Errorf("an expired key holds: %v", err)
	}
	var seen []string
	for _, e := range entries(t, l) {
		seen = append(seen, e.Kind+" "+string(e.Status)+" "+e.Client)
	}
	want := []string{
		"key revoked grandchild", "key revoked child", "key revoked parent",
		"key created other", "key created grandchild", "key created child", "key created parent",
	}
	slicesSortFirst(seen, 3)
	slicesSortFirst(want, 3)
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Error(diff)
	}
	verify(t, l)
}

// slicesSortFirst sorts the first n, whose order follows that of hashes.
func slicesSortFirst(s []string, n int) {
	for i := range min(n, len(s)) {
		for j := i + 1; j < min(n, len(s)); j++ {
			if s[j] < s[i] {
				s[i], s[j] = s[j], s[i]
			}
		}
	}
}

func TestTheLastUseIsKeptToTheHour(t *testing.T) {
	clock := newClock()
	l := open(t, ledger.Options{Dir: stateDir(t), NoSync: true, Clock: clock.now})
	ctx := context.Background()
	_, secret := createKey(t, l, ledger.KeyTerms{Name: "ci"}, "")
	began := clock.now()
	for _, step := range []struct {
		pass time.Duration
		want time.Time
	}{{0, began}, {59 * time.Minute, began}, {time.Minute, began.Add(time.Hour)}} {
		clock.add(step.pass)
		if _, err := l.Authenticate(ctx, secret); err != nil {
			t.Fatal(err)
		}
		if list, err := l.Keys(ctx); err != nil || len(list) != 1 || !list[0].LastUsed.Equal(step.want) {
			t.Errorf("after %v: %+v, %v; want %v", step.pass, list, err, step.want)
		}
	}
}

func TestASessionKnowsTheKeyThatMadeIt(t *testing.T) {
	l := quick(t, stateDir(t))
	s, err := l.MintSession(context.Background(), ledger.Terms{Agent: "bot", Scopes: []string{"read"}, SpendLimit: dollars(3), TTL: time.Hour}, "key_x", "api key ci")
	if err != nil {
		t.Fatal(err)
	}
	got := session(t, l, ledger.Use{ID: s.ID})
	if diff := cmp.Diff(s, got); diff != "" || got.Key != "key_x" || got.Origin != ledger.OriginAPI || got.AllScopes || *got.Limit != *dollars(3) || got.ExpiresAt.Sub(got.Created) != time.Hour {
		t.Errorf("%+v %s", got, diff)
	}
	if e := entries(t, l)[0]; e.Kind != audit.KindSession.String() || e.SessionID != s.ID || e.AgentID != "bot" || e.Client != "api key ci" {
		t.Errorf("%+v", e)
	}
}
